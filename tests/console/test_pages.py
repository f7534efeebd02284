"""The main path of every page but the label queue."""

import re
from uuid import UUID

import pytest
from playwright.async_api import expect

from gadfly import store
from gadfly.errors import NotFound
from gadfly.store.database import Database
from gadfly.training import EventKind, RunStatus
from tests.console.conftest import Console


async def test_the_playground_streams_two_critiques_and_a_rewrite(console: Console, database: Database) -> None:
    page = await console.open("#/playground")
    await page.get_by_role("button", name="Use an example").click()
    await page.get_by_label("Compare with").select_option("0")
    await page.get_by_text("Also rewrite").click()
    before = await rows(database)
    await page.get_by_role("button", name="Judge and rewrite").click()
    await expect(page.locator(".sides .step-correct")).to_have_count(4)
    await expect(page.get_by_role("heading", name="Rewrite")).to_have_count(2)
    await expect(page.locator(".diff ins").first).to_be_visible()
    assert await rows(database) == before, "nothing is stored unless it is asked for"
    assert "question=A+baker" in page.url, "the address holds the input"
    again = await console.open(page.url.partition("console/")[2])
    await expect(again.get_by_label("Answer", exact=True)).to_have_value(re.compile("The answer is 33"))


async def test_a_judged_answer_can_be_stored_and_labelled(console: Console, database: Database) -> None:
    page = await console.open("#/playground")
    await page.get_by_role("button", name="Use an example").click()
    await page.get_by_text("Store as traffic").click()
    before = await rows(database)
    await page.get_by_role("button", name="Judge").click()
    await page.get_by_role("button", name="Wrong").click()
    await expect(page.get_by_role("button", name="Wrong")).to_have_attribute("aria-pressed", "true")
    assert await rows(database) == before + 1
    await page.get_by_role("link", name="Open in traffic").click()
    await expect(page.get_by_role("heading", name="Label Wrong")).to_be_visible()


async def rows(database: Database) -> int:
    async with database.session() as session:
        return sum((await store.interactions.count_rows(session)).interactions.values())


async def test_traffic_is_filtered_searched_opened_and_deleted(console: Console, database: Database) -> None:
    page = await console.open("#/traffic")
    items = page.locator(".interaction")
    await expect(items).to_have_count(50)
    await page.get_by_role("button", name="Show more").click()
    await expect(items).to_have_count(100)
    await page.get_by_label("Verdict").select_option("incorrect")
    await expect(page.get_by_role("link", name="Clear")).to_be_visible()
    await expect(items.filter(has_text="Correct")).to_have_count(0)
    assert "verdict=incorrect" in page.url
    await page.get_by_label("Search").fill("packs rolls")
    await page.get_by_label("Search").press("Enter")
    await expect(items).to_have_count(1)
    await items.get_by_role("link").click()
    await expect(page.get_by_role("heading", name="Interaction")).to_be_visible()
    await expect(page.locator(".diff del").first).to_have_text("33")
    await expect(page.get_by_text("No run has learned from this answer.")).to_be_visible()
    await page.get_by_role("button", name="Judge again").click()
    await expect(page.get_by_text("before: incorrect")).to_be_visible()
    await page.get_by_role("button", name="Delete").click()
    await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(page.get_by_role("heading", name="Traffic")).to_be_visible()
    async with database.session() as session:
        with pytest.raises(NotFound):
            await store.interactions.read_interaction(session, console.world.refined, scope=None)


async def test_votes_and_their_keys_are_shown_and_an_admin_decides(console: Console) -> None:
    conflicts = (await console.client.get("/admin/labels/conflicts", headers=console.admin)).json()["items"]
    page = await console.open(f"#/traffic/{conflicts[0]['interaction_id']}")
    votes = page.locator("section", has=page.get_by_role("heading", name="Votes")).last
    await expect(votes.get_by_text("evaluation bot")).to_be_visible()
    await page.get_by_label("Decide as admin").select_option("right")
    await page.get_by_role("dialog").get_by_label("Reason").fill("recomputed by hand")
    await page.get_by_role("dialog").get_by_role("button", name="Decide").click()
    await expect(page.get_by_role("heading", name="Label Right")).to_be_visible()
    acts = await console.open("#/settings?view=acts")
    await expect(acts.get_by_text("recomputed by hand")).to_be_visible()


async def test_the_overview_says_whether_it_learns_and_what_waits(console: Console) -> None:
    page = await console.open("#/overview")
    await expect(page.get_by_text("answers without a label")).to_be_visible()
    await expect(page.get_by_text("the gate needs more evidence")).to_be_visible()
    chart = page.get_by_role("img", name=re.compile("^Verdict accuracy"))
    await expect(chart).to_have_attribute("aria-label", re.compile("critic@0: .* critic@1: "))
    await page.get_by_label("Class", exact=True).select_option("wrong")
    await expect(chart).to_have_attribute("aria-label", re.compile("Wrong answers called incorrect"))
    assert "class=wrong" in page.url
    await chart.focus()
    await page.keyboard.press("ArrowRight")
    await expect(page.locator(".tip")).to_contain_text("answers")
    await page.get_by_text("3 swaps").click()
    await expect(page.get_by_text("too many false alarms on refunds", exact=True)).to_be_visible()


async def test_a_critic_shows_its_gate_and_the_receipt_of_its_swap(console: Console) -> None:
    page = await console.open("#/critics")
    await page.get_by_role("link", name="critic@1").click()
    await expect(page.get_by_text("+19.0 [+13.0, +25.0]")).to_be_visible()
    await page.get_by_text(re.compile("^Receipt of replica")).click()
    await expect(page.get_by_text("8 probes, 412 tokens")).to_be_visible()
    await page.get_by_role("button", name="Make live").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Reason").fill("better on refunds")
    await dialog.get_by_role("button", name="Make live").click()
    await expect(dialog.get_by_role("alert")).to_contain_text("loads no adapters at run time")


async def test_a_dry_run_says_what_a_run_would_do(console: Console) -> None:
    page = await console.open("#/runs")
    await page.get_by_role("link", name="Start a run").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_role("button", name="Start")).to_be_disabled()
    await dialog.get_by_label("Options").fill("steps_stage_1 = 3\nsteps_stage_2 = 4")
    await dialog.get_by_role("button", name="Dry run").click()
    await expect(dialog.get_by_text("Stage I learns verdicts from")).to_be_visible()
    await expect(dialog.get_by_text("7 steps")).to_be_visible()
    await dialog.get_by_label("Options").fill("steps_stage_9 = 3")
    await dialog.get_by_role("button", name="Dry run").click()
    await expect(dialog.get_by_role("alert")).to_contain_text("steps_stage_9")


async def test_a_run_is_followed_live_and_cancelled(console: Console, database: Database) -> None:
    run_id: UUID = console.world.running_run
    page = await console.open(f"#/runs/{run_id}")
    await expect(page.get_by_text("Step 24 of 60")).to_be_visible()
    reward = page.get_by_role("img", name=re.compile("^Reward"))
    await expect(reward).to_be_visible()
    async with database.session() as session:
        await store.runs.append_event(
            session, run_id, EventKind.STEP, {"step": 25, "seconds": 60.0, "metrics": {"mean_score": 0.987}}
        )
    await expect(page.get_by_text("Step 25 of 60")).to_be_visible()
    await expect(reward).to_have_attribute("aria-label", re.compile("to 0.987$"))
    async with database.session() as session:
        await store.runs.append_event(session, run_id, EventKind.ALARM, {"message": "KL is too large", "evidence": {}})
    await expect(page.get_by_text("KL is too large")).to_be_visible()
    await page.get_by_role("link", name="Samples").click()
    await expect(page.get_by_text("She sells 17, so 60 - 17 = 33 are left.")).to_be_visible()
    await page.get_by_role("button", name="Cancel").click()
    await page.get_by_role("dialog").get_by_role("button", name="Cancel the run").click()
    await expect(page.get_by_role("button", name="Cancelling…")).to_be_disabled()
    async with database.session() as session:
        await store.runs.finish_run(session, run_id, RunStatus.CANCELLED)
    await expect(page.get_by_text("Cancelled", exact=True).first).to_be_visible()


async def test_two_runs_are_compared(console: Console) -> None:
    world = console.world
    page = await console.open(f"#/runs/{world.finished_run}?with={world.undecided_run}")
    await expect(page.get_by_role("heading", name="Compared with")).to_be_visible()
    await expect(page.get_by_text("The options are equal.")).to_be_visible()
    await expect(page.locator(".legend-list", has_text="Right answers").first).to_contain_text(
        str(world.undecided_run)[-8:]
    )


async def test_settings_keys_and_the_grader(console: Console) -> None:
    page = await console.open("#/settings")
    await page.get_by_label("Answer").fill("2 + 2 = 4. The answer is 4.")
    await page.get_by_label("Reference").fill("4")
    await page.get_by_role("button", name="Grade").click()
    await expect(page.get_by_role("status").get_by_text("Right")).to_be_visible()
    await page.get_by_role("link", name="Keys").click()
    await page.get_by_role("button", name="New key").click()
    await page.get_by_label("Name").fill("night job")
    await page.get_by_role("button", name="Make the key").click()
    secret = await page.get_by_role("dialog").locator(".block code").inner_text()
    assert (await console.client.get("/session", headers={"authorization": f"Bearer {secret}"})).status_code == 200
    await page.get_by_role("button", name="Done").click()
    row = page.get_by_role("listitem").filter(has_text="night job")
    await row.get_by_role("button", name="Revoke").click()
    await page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    await expect(row.get_by_text("Revoked")).to_be_visible()
    await page.get_by_role("link", name="Settings").last.click()
    await page.get_by_label("Find a setting").fill("max_tokens")
    await expect(page.get_by_text("GADFLY_MAX_TOKENS", exact=True)).to_be_visible()
