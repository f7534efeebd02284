"""Pictures of every page, wide and narrow, in light and dark, and the rules of axe on each."""

from pathlib import Path
from typing import Any

import pytest

from tests.console.conftest import PICTURES, Console, settled

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
    "settings": "#/settings",
}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [375, 1600])
async def test_every_page_fits_and_keeps_the_rules_of_axe(console: Console, width: int, dark: bool) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page = await console.open("", width=width, height=812 if width < 600 else 1000, dark=dark)
    faults: dict[str, Any] = {}
    for name, view in VIEWS.items():
        await page.evaluate("address => { location.hash = address }", view.format(**vars(console.world)))
        await page.locator("h1").first.wait_for()
        await settled(page)
        await page.screenshot(path=PICTURES / f"{name}-{width}-{'dark' if dark else 'light'}.png", full_page=True)
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
    assert faults == {}
