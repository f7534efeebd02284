"""Who may see what: keys on and off, tiers, the end of a session, another theme, and a path prefix."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from playwright.async_api import Browser, expect

from gadfly import store
from gadfly.settings import Settings
from gadfly.store.database import Database
from tests.console.conftest import Console
from tests.support.console_world import World
from tests.support.services import serving


async def test_with_keys_a_person_logs_in_and_out(console: Console) -> None:
    page = await console.open("#/traffic?verdict=incorrect", key="")
    await page.get_by_label("API key").fill("gf_wrong")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_be_visible()
    await page.get_by_label("API key").fill(console.world.admin_key)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Traffic")).to_be_visible()
    await expect(page.get_by_label("Verdict")).to_have_value("incorrect")
    assert console.world.admin_key not in str(await page.context.storage_state()), "the browser keeps no key"
    assert await page.evaluate("document.cookie") == "", "no script reads the cookie"
    await page.reload()
    await expect(page.get_by_role("heading", name="Traffic")).to_be_visible()
    await page.get_by_role("button", name="Log out").click()
    await expect(page.get_by_role("heading", name="Log in")).to_be_visible()


async def test_a_revoked_key_ends_its_session(console: Console, database: Database) -> None:
    page = await console.open("#/label", key=console.world.caller_key)
    await expect(page.get_by_role("heading", name="Label queue")).to_be_visible()
    async with database.session() as session:
        [key] = [key for key in await store.keys.list_keys(session) if key.name == "shop assistant"]
        await store.keys.revoke_key(session, key.id)
    await asyncio.sleep(6)  # replicas notice within five seconds
    await page.get_by_role("link", name="Traffic").click()
    await expect(page.get_by_role("heading", name="Log in")).to_be_visible()


async def test_a_caller_sees_its_own_rows_and_no_page_of_admins(console: Console) -> None:
    page = await console.open("", key=console.world.caller_key)
    await expect(page.get_by_role("heading", name="Nothing waits for a label")).to_be_visible()
    pages = page.get_by_role("navigation", name="Pages")
    await expect(pages.get_by_role("link", name="Runs")).to_have_count(0)
    await expect(pages.get_by_role("link", name="Settings")).to_have_count(0)
    await pages.get_by_role("link", name="Traffic").click()
    await expect(page.get_by_role("heading", name="No traffic yet")).to_be_visible()


async def test_without_keys_no_log_in_is_needed(settings: Settings, browser: Browser) -> None:
    async with serving(settings) as client:
        console = Console(browser, client, World(), [])
        page = await console.open("", key="")
        await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        await expect(page.get_by_text("No curve for this time yet")).to_be_visible()
        await page.get_by_role("link", name="Label queue").click()
        await expect(page.get_by_role("heading", name="Nothing waits for a label")).to_be_visible()
        await page.get_by_role("link", name="Judge an answer").click()
        await page.get_by_role("button", name="Use an example").click()
        await page.get_by_text("Store as traffic").click()
        await page.get_by_role("button", name="Judge").click()
        await page.get_by_role("button", name="Right").click()
        await expect(page.get_by_role("button", name="Right")).to_have_attribute("aria-pressed", "true")
        await page.context.close()
        assert console.problems == []


async def test_the_theme_is_the_systems_until_one_is_chosen(console: Console) -> None:
    page = await console.open("#/critics", dark=True)
    background = "getComputedStyle(document.body).backgroundColor"
    dark = await page.evaluate(background)
    await page.get_by_role("button", name="Theme: system").first.click()
    light = await page.evaluate(background)
    assert dark != light
    await page.reload()
    assert await page.evaluate(background) == light, "the choice is kept"


async def test_the_menu_of_a_narrow_screen_opens_and_closes_by_keyboard(console: Console) -> None:
    page = await console.open("#/critics", width=375, height=812)
    traffic = page.get_by_role("link", name="Traffic")
    await expect(traffic).to_be_hidden()
    await page.get_by_role("button", name="Menu", exact=True).press("Enter")
    await expect(traffic).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(traffic).to_be_hidden()
    await page.get_by_role("button", name="Menu", exact=True).press("Enter")
    await traffic.press("Enter")
    await expect(page.get_by_role("heading", name="Traffic")).to_be_visible()
    await expect(traffic).to_be_hidden()


async def test_below_a_path_of_a_proxy(console: Console) -> None:
    async with proxy(str(console.client.base_url), "/tools/gadfly") as address:
        context = await console.browser.new_context()
        page = await context.new_page()
        await page.goto(f"{address}/console")
        await page.get_by_label("API key").fill(console.world.admin_key)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        await page.get_by_role("link", name="Playground").click()
        await page.get_by_role("button", name="Use an example").click()
        await page.get_by_role("button", name="Judge").click()
        await expect(page.locator(".step-correct")).to_have_count(2)
        [cookie] = await context.cookies()
        assert cookie["path"] == "/tools/gadfly"


@asynccontextmanager
async def proxy(upstream: str, prefix: str) -> AsyncIterator[str]:
    """A proxy that serves the service under a path, which it removes and names in X-Forwarded-Prefix."""
    async with aiohttp.ClientSession(auto_decompress=False) as client:

        async def forward(request: web.Request) -> web.StreamResponse:
            headers = {name: value for name, value in request.headers.items() if name != "Content-Length"}
            async with client.request(
                request.method,
                upstream + request.path_qs.removeprefix(prefix),
                headers=headers | {"X-Forwarded-Prefix": prefix},
                data=await request.read(),
                allow_redirects=False,
            ) as answer:
                kept = {
                    name: value
                    for name, value in answer.headers.items()
                    if name.lower() not in ("content-length", "transfer-encoding")
                }
                response = web.StreamResponse(status=answer.status, headers=kept)
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response

        app = web.Application()
        app.router.add_route("*", f"{prefix}/{{path:.*}}", forward)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            yield f"http://127.0.0.1:{port}{prefix}"
        finally:
            await runner.cleanup()
