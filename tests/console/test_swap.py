"""A swap and a rollback from the console, on a real engine with a real adapter."""

from pathlib import Path

from playwright.async_api import Browser, expect

from gadfly.store.database import Database
from tests.console.conftest import Console
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
