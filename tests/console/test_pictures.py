"""Pictures of every page, wide and narrow, in light and dark, and the rules of axe on each."""

from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from gadfly.store.database import Database
from tests.console.conftest import PICTURES, Console, settled
from tests.support.console_world import add_webhooks, begin_canary

AXE = Path(__file__).resolve().parents[2] / "console" / "node_modules" / "axe-core" / "axe.min.js"
VIEWS = {
    "overview": "#/overview",
    "label": "#/label",
    "playground": "#/playground",
    "traffic": "#/traffic",
    "interaction": "#/traffic/{refined}",
    "critics": "#/critics",
    "critic": "#/critics/1",
    "runs": "#/runs",
    "run": "#/runs/{finished_run}",
    "tasks": "#/settings",
    "keys": "#/settings?view=keys",
    "webhooks": "#/settings?view=webhooks",
    "settings": "#/settings?view=settings",
    "forget": "#/settings?view=forget",
    "acts": "#/settings?view=acts",
}
DIALOGS = {
    "new-key": ("keys", "New key"),
    "limits": ("keys", "Limits"),
    "new-webhook": ("webhooks", "New webhook"),
}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [375, 1600])
async def test_every_page_fits_and_keeps_the_rules_of_axe(
    console: Console, database: Database, width: int, dark: bool
) -> None:
    await begin_canary(database)
    await add_webhooks(database)
    page = await console.open("", width=width, height=812 if width < 600 else 1000, dark=dark)
    suffix = f"{width}-{'dark' if dark else 'light'}"
    faults: dict[str, Any] = {}
    for name, view in VIEWS.items():
        await open_view(page, view.format(**vars(console.world)))
        faults |= await look(page, name, suffix)
        if name == "critics":
            await expect(page.get_by_role("region", name="Canary critic@1")).to_be_visible()
    for name, (view, button) in DIALOGS.items():
        await open_view(page, VIEWS[view])
        await page.get_by_role("button", name=button).first.click()
        await page.get_by_role("dialog").locator("summary").evaluate_all("all => all.forEach(each => each.click())")
        faults |= await look(page, name, suffix)
        await page.keyboard.press("Escape")
    other = await console.open("#/runs", width=width, height=812, dark=dark, key=console.world.caller_key)
    await other.get_by_role("heading", name="This key may not open Runs").wait_for()
    faults |= await look(other, "forbidden", suffix)
    assert faults == {}


async def open_view(page: Page, view: str) -> None:
    await page.evaluate("address => { location.hash = address }", view)
    await page.locator("h1").first.wait_for()
    await settled(page)


async def look(page: Page, name: str, suffix: str) -> dict[str, Any]:
    """Keep a picture, and say what is too wide or against the rules of axe."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=PICTURES / f"{name}-{suffix}.png", full_page=True)
    faults: dict[str, Any] = {}
    if await page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        faults[f"{name} is wider than the window"] = await page.evaluate(
            "[...document.querySelectorAll('main *')]"
            ".filter(each => each.getBoundingClientRect().right > innerWidth + 1)"
            ".slice(0, 5).map(each => each.outerHTML.slice(0, 120))"
        )
    await page.evaluate(AXE.read_text())
    found = await page.evaluate("axe.run({ resultTypes: ['violations'] })")
    for violation in found["violations"]:
        faults[f"{name}: {violation['id']}"] = [node["html"][:160] for node in violation["nodes"][:4]]
    return faults
