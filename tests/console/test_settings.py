"""Keys with scopes and limits, webhooks with their deliveries, and pages that a key may not open."""

import re

from playwright.async_api import expect

from gadfly.webhooks import signed_headers
from tests.console.conftest import Console
from tests.support.receivers import Receiver


async def test_a_key_gets_scopes_and_limits(console: Console) -> None:
    page = await console.open("#/settings?view=keys")
    await page.get_by_role("button", name="New key").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Name").fill("dashboard")
    await dialog.get_by_label("Use the service").uncheck()
    await expect(dialog.get_by_role("button", name="Make the key")).to_be_disabled()
    await dialog.get_by_label("Read all traffic").check()
    await dialog.get_by_label("Train plan").check()
    await dialog.get_by_label("Kind").select_option("admin")
    await expect(dialog.get_by_text("Limits (optional)")).to_be_hidden()
    await dialog.get_by_label("Kind").select_option("caller")
    await dialog.get_by_text("Limits (optional)").click()
    await dialog.get_by_label("Requests a minute").fill("60")
    await dialog.get_by_role("button", name="Make the key").click()
    secret = await dialog.locator(".block code").inner_text()
    session = (await console.client.get("/session", headers={"authorization": f"Bearer {secret}"})).json()
    assert (session["tier"], sorted(session["scopes"])) == ("caller", ["read", "train"])
    await dialog.get_by_role("button", name="Done").click()
    row = page.get_by_role("listitem").filter(has_text="dashboard")
    await expect(row).to_contain_text("at most 60 requests a minute")
    await row.get_by_role("button", name="Limits").click()
    await expect(dialog.get_by_label("Requests a minute")).to_have_value("60")
    await expect(dialog.get_by_role("button", name="Store")).to_be_disabled()
    await dialog.get_by_label("Requests a minute").fill("")
    await dialog.get_by_label("Requests in flight").fill("4.5")
    await dialog.get_by_role("button", name="Store").click()
    await expect(dialog.get_by_role("alert")).to_contain_text("Requests in flight: give a whole number")
    await dialog.get_by_label("Requests in flight").fill("4")
    await dialog.get_by_label("Tokens a day").fill("2 000 000")
    await dialog.get_by_label("Reason").fill("as agreed")
    await dialog.get_by_role("button", name="Store").click()
    await expect(row).to_contain_text(re.compile(r"at most 2\s000\s000 tokens a day, 4 in flight"))
    admins = page.get_by_role("listitem").filter(has_text="operations")
    await expect(admins.get_by_role("button", name="Revoke")).to_be_visible()
    await expect(admins.get_by_role("button", name="Limits")).to_be_hidden()
    keys = (await console.client.get("/admin/keys", headers=console.admin)).json()
    [key] = [key for key in keys if key["name"] == "dashboard"]
    assert key["requests_per_minute"] is None
    assert key["engine_calls_per_minute"] is None
    assert (key["tokens_per_day"], key["max_in_flight"]) == (2_000_000, 4)
    acts = await console.open("#/settings?view=acts")
    await expect(acts.get_by_text("as agreed")).to_be_visible()


async def test_a_webhook_is_made_tried_and_deleted(console: Console) -> None:
    async with Receiver([500]).listening() as receiver:
        page = await console.open("#/settings?view=webhooks")
        await expect(page.get_by_role("heading", name="No webhooks")).to_be_visible()
        await page.get_by_role("button", name="New webhook").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("Address").fill("ftp://example.com")
        await dialog.get_by_label("label.changed").uncheck()
        await dialog.get_by_role("button", name="Make the webhook").click()
        await expect(dialog.get_by_role("alert")).to_contain_text("must begin with http")
        await dialog.get_by_label("Address").fill(receiver.url)
        await dialog.get_by_role("button", name="Make the webhook").click()
        await expect(dialog.locator(".block code")).to_be_visible()
        await page.mouse.click(5, 5)  # outside: the secret cannot be shown again
        secret = await dialog.locator(".block code").inner_text()
        await dialog.get_by_role("button", name="Done").click()
        hooks = page.get_by_role("region", name="Webhooks")
        await expect(hooks.get_by_role("listitem")).to_contain_text("critic.rolled_back")
        await expect(hooks.get_by_role("listitem")).not_to_contain_text("label.changed")
        await hooks.get_by_role("button", name="Send a test event").click()
        deliveries = page.get_by_role("region", name="Deliveries").get_by_role("listitem")
        await expect(deliveries).to_contain_text("Last attempt: status 500")
        await expect(deliveries).to_contain_text("Pending")
        receiver.replies = [200]
        await deliveries.get_by_role("button", name="Send again: test").click()
        await expect(deliveries).to_contain_text("Delivered")
        received = receiver.received[-1]
        signed = signed_headers(
            secret,
            id=received.headers["webhook-id"],
            timestamp=int(received.headers["webhook-timestamp"]),
            body=received.body,
        )
        assert received.headers["webhook-signature"] == signed["webhook-signature"]
        await deliveries.get_by_text("What is sent").click()
        await expect(deliveries.locator("pre")).to_contain_text('"type": "test"')
        await page.get_by_label("State", exact=True).select_option("dead")
        await expect(page.get_by_role("heading", name="No deliveries")).to_be_visible()
        assert "status=dead" in page.url
        await hooks.get_by_role("button", name="Delete").click()
        await dialog.get_by_role("button", name="Delete").click()
        await expect(page.get_by_role("heading", name="No webhooks")).to_be_visible()
        assert (await console.client.get("/admin/webhooks", headers=console.admin)).json() == []


async def test_a_page_that_the_key_may_not_open_says_so(console: Console) -> None:
    page = await console.open("#/runs", key=console.world.caller_key)
    await expect(page.get_by_role("heading", name="This key may not open Runs")).to_be_visible()
    await expect(page.get_by_text("a key with the scope read or train, or an admin key")).to_be_visible()
    await page.get_by_role("main").get_by_role("link", name="Label queue").click()
    await expect(page.get_by_role("heading", name="Label queue")).to_be_visible()
    await page.goto(f"{console.address}#/settings")
    await expect(page.get_by_text("It needs an admin key.")).to_be_visible()
    await page.goto(f"{console.address}#/nothing")
    await expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()
