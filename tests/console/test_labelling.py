"""The label queue in a browser: by keyboard alone, with undo, edits and references, and two people at once."""

import asyncio
from uuid import UUID

from playwright.async_api import Page, expect

from gadfly import store
from gadfly.store.database import Database
from tests.console.conftest import Console

ITEM = "article[data-interaction]"


async def shown(page: Page) -> str:
    """The interaction that waits for a label on this page."""
    await page.locator(ITEM).wait_for()
    return await page.locator(ITEM).get_attribute("data-interaction") or ""


async def next_after(page: Page, before: str) -> str:
    await expect(page.locator(ITEM)).not_to_have_attribute("data-interaction", before)
    return await shown(page)


async def stored(database: Database, interaction: str) -> list[bool | None]:
    """The verdicts of people about an interaction, once one is stored or a second has passed."""
    for _ in range(20):
        async with database.session() as session:
            found = await store.interactions.feedback_of(session, UUID(interaction))
        if found:
            break
        await asyncio.sleep(0.05)
    return [feedback.correct for feedback in found]


async def test_one_keystroke_labels_and_undo_takes_it_back(console: Console, database: Database) -> None:
    page = await console.open("#/label?reason=uncertain")
    first = await shown(page)
    await page.keyboard.press("w")
    second = await next_after(page, first)
    assert await stored(database, first) == [False]
    await page.keyboard.press("r")
    third = await next_after(page, second)
    assert await stored(database, second) == [True]
    await page.keyboard.press("u")
    assert await next_after(page, third) == second, "the withdrawn answer is back at once"
    await expect(page.get_by_text("Withdrawn")).to_be_visible()
    assert await stored(database, second) == []
    await page.keyboard.press("s")
    assert await next_after(page, second) == third
    await expect(page.get_by_text("1 by you")).to_be_visible()


async def test_the_critics_opinion_is_shown_on_request(console: Console) -> None:
    page = await console.open("#/label?reason=uncertain")
    await shown(page)
    opinion = page.get_by_role("region", name="The critic's opinion")
    await expect(opinion).to_have_count(0)
    await page.keyboard.press("v")
    await expect(opinion).to_be_visible()
    await expect(opinion.locator(".step")).to_have_count(2)


async def test_an_edited_answer_is_stored_with_its_difference(console: Console, database: Database) -> None:
    page = await console.open("#/label?reason=uncertain")
    first = await shown(page)
    await page.keyboard.press("e")
    box = page.get_by_label("How the answer should read")
    await expect(box).to_be_focused()
    text = await box.input_value()
    await box.fill(text.replace("The answer is", "So the answer is"))
    await expect(page.locator(".diff ins")).to_have_text("So the")
    await box.press("Control+Enter")
    await next_after(page, first)
    assert await stored(database, first) == [False]
    async with database.session() as session:
        [feedback] = await store.interactions.feedback_of(session, UUID(first))
    assert feedback.edited_response == text.replace("The answer is", "So the answer is")


async def test_a_reference_labels_by_the_grader(console: Console, database: Database) -> None:
    page = await console.open("#/label?reason=uncertain")
    first = await shown(page)
    await page.keyboard.press("f")
    await page.get_by_role("textbox", name="The right answer").fill("123456")
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("By this reference the answer is wrong.")).to_be_visible()
    async with database.session() as session:
        [feedback] = await store.interactions.feedback_of(session, UUID(first))
    assert (feedback.reference, feedback.grade) == ("123456", "wrong")


async def test_two_people_never_get_the_same_answer(console: Console, database: Database) -> None:
    ann, bob = await asyncio.gather(console.open("#/label"), console.open("#/label"))
    seen: dict[str, list[str]] = {"ann": [], "bob": []}

    async def label(name: str, page: Page) -> None:
        current = await shown(page)
        for number in range(10):
            seen[name].append(current)
            await page.keyboard.press("w" if number % 2 else "r")
            current = await next_after(page, current)

    await asyncio.gather(label("ann", ann), label("bob", bob))
    assert len({*seen["ann"], *seen["bob"]}) == 20
