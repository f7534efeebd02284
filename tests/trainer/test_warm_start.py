"""Which of its own critiques a critic learns the format from, and where a critique without a verdict is cut."""

from pathlib import Path

import pytest

from gadfly import store
from gadfly.grading import Grade
from gadfly.store.database import Database
from gadfly.trainer.warm_start import Candidate, before_verdict, chosen, whole_steps
from gadfly.verdict import Verdict
from tests.support import worlds
from tests.trainer.test_rollouts import ITEMS

STEP = "Step sentence: {0}\nCorrectness of the step: Correct\nExplanation: because.\n"
ONE, TWO = STEP.format("one"), STEP.format("two")

CASES = [  # text, the kept part, why this row exists
    (ONE + TWO + "Step sentence: thr", ONE + TWO, "an incomplete step is dropped"),
    (ONE + TWO, ONE, "the last step may be incomplete, too"),
    (ONE + ONE + TWO, ONE, "nothing is kept from the first repetition on"),
    (ONE + "Step sentence: two\nExplanation: no verdict\n" + TWO, ONE, "a step without a verdict is not whole"),
    ("Well, " + ONE + TWO, "", "a step starts a line, so one is left, and it may be incomplete"),
    ("no step at all", "", "there is no step to keep"),
    (ONE + TWO + "Correctness of the final answer: Corr", ONE + TWO, "an incomplete verdict ends the last step"),
    (ONE + "Correctness of the final answer: Wrong\n" + TWO, ONE, "a step after the verdict does not count"),
]


@pytest.mark.parametrize(("text", "kept", "why"), CASES)
def test_a_critique_is_cut_after_its_last_whole_step(text: str, kept: str, why: str) -> None:
    assert whole_steps(text, is_ended=False) == kept, why


def test_the_last_step_of_a_critique_that_ended_by_itself_is_whole() -> None:
    assert whole_steps(ONE + TWO, is_ended=True) == ONE + TWO
    assert whole_steps(ONE + "Step sentence: two", is_ended=True) == ONE


def test_a_verdict_follows_the_steps_or_begins_the_critique() -> None:
    field = "Correctness of the final answer:"
    assert before_verdict(ONE + TWO, opener="Step sentence:", is_ended=True) == f"{(ONE + TWO).rstrip()}\n{field}"
    assert before_verdict("no step at all", opener="", is_ended=True) == ""
    assert before_verdict(f"{field} 3 euros", opener=field, is_ended=False) == field, "no step comes before it"


def candidate(
    item: int, verdict: Verdict, number: int, *, refined: Grade | None = None, is_given: bool = False
) -> Candidate:
    return Candidate(item=ITEMS[item], pair=((1, 2), (3, number)), verdict=verdict, refined=refined, is_given=is_given)


def test_both_classes_have_equal_shares_and_wrong_verdicts_are_left_out() -> None:
    candidates = [
        *(candidate(0, Verdict.CORRECT, number) for number in range(5)),
        *(candidate(1, Verdict.INCORRECT, number) for number in (10, 11, 11)),
        candidate(1, Verdict.CORRECT, 12),
        candidate(0, Verdict.INCORRECT, 13),
    ]
    assert [pair[1][1] for pair in chosen(candidates)] == [0, 1, 10, 11]
    assert chosen(candidates[:5]) == []


def test_critiques_with_a_right_refinement_are_used_alone_if_they_are_enough() -> None:
    helpful = [
        candidate(item, verdict, 10 * item + number, refined=Grade.RIGHT)
        for item, verdict in ((0, Verdict.CORRECT), (1, Verdict.INCORRECT))
        for number in range(4)
    ]
    other = [candidate(0, Verdict.CORRECT, 90, refined=Grade.WRONG), candidate(1, Verdict.INCORRECT, 91)]
    assert len(chosen([*helpful, *other])) == 8
    too_few = [pair[1][1] for pair in chosen([*helpful[1:], *other])]
    assert too_few == [1, 2, 3, 90, 10, 11, 12, 13]


def test_given_verdicts_are_used_only_where_the_critics_own_are_too_few() -> None:
    own = [candidate(0, Verdict.CORRECT, number) for number in range(4)]
    given = [candidate(1, Verdict.INCORRECT, number, is_given=True) for number in range(10, 14)]
    assert len(chosen([*own, *given])) == 8, "a critic that calls everything correct"
    mixed = [*own, *given, *(candidate(1, Verdict.INCORRECT, number) for number in range(20, 24))]
    assert [pair[1][1] for pair in chosen(mixed)] == [0, 1, 2, 3, 20, 21, 22, 23]


@pytest.mark.timeout(240)
async def test_a_critic_without_the_format_learns_it(
    database: Database, database_url: str, engine_url: str, critic_model: Path, tmp_path: Path
) -> None:
    settings = worlds.trainer_settings(
        home=tmp_path / "home", database_url=database_url, engine_urls=(engine_url,), model=critic_model
    )
    await worlds.fill(database, base_model=str(critic_model))
    run = await worlds.ask_for_run(
        database,
        warm_start="always",
        warm_start_prompts=32,
        warm_start_learning_rate=3e-3,
        steps_stage_1=1,
        steps_stage_2=0,
    )
    log = tmp_path / "log"
    process = worlds.start_phase(settings, "learn", run.id, log=log)
    assert process.wait(200) == 0, log.read_text()
    async with database.session() as session:
        events = await store.runs.events_after(session, run.id, after=0)
    notes = [event.data for event in events if event.data.get("message") == "warm start"]
    assert notes[0]["kept"] >= 8
    losses = [note["loss"] for note in notes[1:]]
    assert losses[-1] < losses[0]
