"""Swaps, canaries and rollbacks from the console, on a real engine with a real adapter."""

from pathlib import Path

from playwright.async_api import Browser, expect

from gadfly.store.database import Database
from tests.console.conftest import PICTURES, Console
from tests.service.conftest import WRONG, make_settings
from tests.support.adapters import insert_version, publish_adapter
from tests.support.console_world import World
from tests.support.services import serving


async def test_a_critic_is_made_live_and_rolled_back(
    tmp_path: Path, database_url: str, database: Database, engine_url: str, critic_model: Path, browser: Browser
) -> None:
    adapter = publish_adapter(tmp_path / "adapter", model=critic_model, seed=1)
    async with serving(make_settings(tmp_path, database_url, engine_url)) as client:
        await insert_version(database, adapter)
        console = Console(browser, client, World(), [])
        page = await console.open("#/critics", key="")
        await page.get_by_role("link", name="critic@1").click()
        await page.get_by_role("button", name="Make live").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("Reason").fill("better on refunds")
        await dialog.get_by_role("button", name="Make live").click()
        await expect(page.get_by_text("critic@1 is live.")).to_be_visible(timeout=60_000)
        await expect(page.get_by_role("heading", name="critic@1 Live")).to_be_visible()
        await expect(page.get_by_text("better on refunds")).to_be_visible()
        assert (await client.post("/critique", json=WRONG)).json()["critic"]["version"] == 1
        await page.get_by_role("button", name="Roll back").click()
        await dialog.get_by_label("Reason").fill("too many false alarms")
        await dialog.get_by_role("button", name="Roll back").click()
        await expect(page.get_by_text("critic@0 is live.")).to_be_visible(timeout=60_000)
        await expect(page.get_by_role("heading", name="critic@1", exact=True)).to_be_visible()
        assert (await client.post("/critique", json=WRONG)).json()["critic"]["version"] == 0
        await page.get_by_role("link", name="critic@0").first.click()
        await expect(page.get_by_text("too many false alarms")).to_be_visible()
        await page.context.close()
        assert console.problems == []


async def test_a_canary_is_watched_widened_and_rolled_back(
    tmp_path: Path, database_url: str, database: Database, engine_url: str, critic_model: Path, browser: Browser
) -> None:
    adapter = publish_adapter(tmp_path / "adapter", model=critic_model, seed=2)
    async with serving(make_settings(tmp_path, database_url, engine_url)) as client:
        version = (await insert_version(database, adapter)).version
        console = Console(browser, client, World(), [])
        page = await console.open(f"#/critics/{version}", key="")
        await page.get_by_role("button", name="Make live").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("Share of the requests").fill("100")
        await dialog.get_by_role("button", name="Make live").click()
        await expect(dialog.get_by_text("a number from 0 to less than 100")).to_be_visible()
        await dialog.get_by_label("Share of the requests").fill("25")
        await dialog.get_by_role("button", name="Make live").click()
        await expect(page.get_by_text(f"critic@{version} is live.")).to_be_visible(timeout=60_000)
        answered = [(await client.post("/critique", json=WRONG)).json()["critic"]["version"] for _ in range(3)]
        assert len(set(answered)) == 1, "a question of a caller keeps its critic"
        await page.goto(f"{console.address}#/critics")
        card = page.get_by_role("region", name=f"Canary critic@{version}")
        await expect(card.get_by_text("25 %")).to_be_visible()
        await expect(card.get_by_text("critic@0 answers the rest")).to_be_visible()
        counts = card.locator(".stat", has_text=f"Answers of critic@{answered[0]}")
        await expect(counts).to_contain_text("3")
        await expect(card.locator(".stat", has_text="Left")).to_contain_text(" min")
        PICTURES.mkdir(parents=True, exist_ok=True)
        await page.screenshot(path=PICTURES / "canary.png", full_page=True)
        await card.get_by_role("button", name="Widen").click()
        await dialog.get_by_label("Reason").fill("no complaints")
        await dialog.get_by_role("button", name="Widen").click()
        await expect(page.get_by_text(f"critic@{version} answers all requests.")).to_be_visible()
        await expect(card).to_have_count(0)
        assert (await client.post("/critique", json=WRONG)).json()["critic"]["version"] == version
        assert (await client.post("/admin/rollback", json={})).status_code == 200
        body = {"version": version, "canary": {"share": 0.5, "for_requests": 40}}
        assert (await client.post("/admin/promote", json=body)).status_code == 200
        await page.reload()
        await expect(card.locator(".stat", has_text="Left")).to_contain_text("0 of 40 answers")
        await card.get_by_role("button", name="Roll back").click()
        await dialog.get_by_role("button", name="Roll back").click()
        await expect(page.get_by_text("critic@0 is live.")).to_be_visible(timeout=60_000)
        await expect(card).to_have_count(0)
        ended = (await client.get("/admin/canaries")).json()
        assert [(each["outcome"], each["reason"]) for each in ended] == [
            ("rolled_back", None),
            ("widened", "no complaints"),
        ]
        await page.context.close()
        assert console.problems == []
