"""A real service with a stand-in for the engine, a month of data, and a real Chromium."""

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from gadfly.service.app import CONSOLE
from gadfly.settings import Settings
from gadfly.store.database import Database
from tests.service.conftest import make_settings
from tests.support.console_world import World, fill
from tests.support.instant import instant_engine
from tests.support.services import serving

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
expect.set_options(timeout=20_000)  # the tests share two cores with others

PICTURES = Path(__file__).resolve().parents[2] / "build" / "console"


def find_chromium() -> str | None:
    """GADFLY_TEST_CHROMIUM, or the browser that is installed."""
    return os.environ.get("GADFLY_TEST_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


@pytest.fixture(scope="session")
def chromium() -> str:
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium is installed (on Debian: apt-get install chromium)")
    if not (CONSOLE / "index.html").is_file():
        pytest.skip("the console is not built: run `make console`")
    return path


@pytest.fixture(scope="session")
def instant_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with instant_engine(tmp_path_factory.mktemp("instant")) as url:
        yield url


@pytest.fixture
def settings(tmp_path: Path, database_url: str, instant_url: str) -> Settings:
    return make_settings(tmp_path, database_url, instant_url)


@pytest.fixture
async def world(database: Database) -> World:
    return await fill(database, base_model="tiny")


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        await browser.close()


@dataclass
class Console:
    """The console of a running service, and a client of the same service."""

    browser: Browser
    client: httpx.AsyncClient
    world: World
    problems: list[str]

    @property
    def address(self) -> str:
        return f"{self.client.base_url}/console/".replace("//console", "/console")

    @property
    def admin(self) -> dict[str, str]:
        """The headers of an admin's request."""
        return {"authorization": f"Bearer {self.world.admin_key}"}

    async def open(
        self, view: str = "", *, width: int = 1280, height: int = 900, dark: bool = False, key: str | None = None
    ) -> Page:
        """A page with cookies of its own, logged in with a key: the admin's by default, or with none if it is empty.

        Errors of scripts and refusals by the policy are noted in `problems`.
        """
        context = await self.browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", locale="en-GB"
        )
        key = self.world.admin_key if key is None else key
        if key:
            answer = await context.request.post(f"{self.client.base_url}/session", data={"key": key})
            assert answer.ok, await answer.text()
        page = await context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: self.problems.append(f"{view}: {error}"))
        page.on("console", lambda message: self._note(view, message.type, message.text))
        await page.goto(f"{self.address}{view}")
        await page.locator("main").wait_for()
        return page

    def _note(self, view: str, kind: str, text: str) -> None:
        if kind == "error" and "Failed to load resource" not in text:  # a refused request is a page's business
            self.problems.append(f"{view}: {text}")


@pytest.fixture
async def console(settings: Settings, world: World, browser: Browser) -> AsyncIterator[Console]:
    async with serving(settings) as client:
        console = Console(browser, client, world, [])
        yield console
        for context in browser.contexts:
            await context.close()
    assert console.problems == []


async def settled(page: Page) -> None:
    """Wait until nothing loads."""
    await page.wait_for_load_state("networkidle")
    await page.locator(".skeleton").first.wait_for(state="detached")
