"""Which of a critic's own critiques it learns the format from, and how one without a verdict is brought to an end."""

from pathlib import Path

import pytest

from gadfly import store
from gadfly.grading import Grade
from gadfly.store.database import Database
from gadfly.trainer.warm_start import Written, chosen, whole_steps
from gadfly.verdict import Verdict
from tests.support import worlds
from tests.trainer.test_rollouts import ITEMS

STEP = "Step sentence: {0}\nCorrectness of the step: Correct\nExplanation: because.\n"
ONE, TWO = STEP.format("one"), STEP.format("two")

CASES = [  # text, what is kept of it, why this row exists
    (ONE + TWO + "Step sentence: thr", ONE + TWO, "the cut end goes"),
    (ONE + TWO, ONE, "the last step may have been cut, too"),
    (ONE + ONE + TWO, ONE, "from the first repetition on it is babble"),
    (ONE + "Step sentence: two\nExplanation: no verdict\n" + TWO, ONE, "a step without a verdict is not whole"),
    ("Well, " + ONE + TWO, "", "text before the first field is no line of it, and one step is left, which may be cut"),
    ("no step at all", "", "nothing to finish"),
    (ONE + TWO + "Correctness of the final answer: Corr", ONE + TWO, "a verdict that has begun ends the last step"),
    (ONE + "Correctness of the final answer: Wrong\n" + TWO, ONE, "what follows a verdict is no step before it"),
]


@pytest.mark.parametrize(("text", "kept", "why"), CASES)
def test_a_critique_is_cut_after_its_last_whole_step(text: str, kept: str, why: str) -> None:
    assert whole_steps(text, is_ended=False) == kept, why


def test_the_last_step_of_a_critique_that_came_to_its_end_is_whole() -> None:
    assert whole_steps(ONE + TWO, is_ended=True) == ONE + TWO
    assert whole_steps(ONE + "Step sentence: two", is_ended=True) == ONE


def written(
    item: int, verdict: Verdict, number: int, *, refined: Grade | None = None, is_told: bool = False
) -> Written:
    return Written(item=ITEMS[item], pair=((1, 2), (3, number)), verdict=verdict, refined=refined, is_told=is_told)


def test_both_classes_are_learned_from_alike_and_wrong_verdicts_never() -> None:
    found = [
        *(written(0, Verdict.CORRECT, number) for number in range(5)),
        *(written(1, Verdict.INCORRECT, number) for number in (10, 11, 11)),
        written(1, Verdict.CORRECT, 12),
        written(0, Verdict.INCORRECT, 13),
    ]
    assert [pair[1][1] for pair in chosen(found)] == [0, 1, 10, 11]
    assert chosen(found[:5]) == []


def test_critiques_that_helped_come_alone_when_there_are_enough() -> None:
    helped = [
        written(item, verdict, 10 * item + number, refined=Grade.RIGHT)
        for item, verdict in ((0, Verdict.CORRECT), (1, Verdict.INCORRECT))
        for number in range(4)
    ]
    other = [written(0, Verdict.CORRECT, 90, refined=Grade.WRONG), written(1, Verdict.INCORRECT, 91)]
    assert len(chosen([*helped, *other])) == 8
    too_few = [pair[1][1] for pair in chosen([*helped[1:], *other])]
    assert too_few == [1, 2, 3, 90, 10, 11, 12, 13]


def test_a_critic_is_told_the_verdict_only_where_its_own_are_too_few() -> None:
    own = [written(0, Verdict.CORRECT, number) for number in range(4)]
    told = [written(1, Verdict.INCORRECT, number, is_told=True) for number in range(10, 14)]
    assert len(chosen([*own, *told])) == 8, "a critic that calls everything correct"
    mixed = [*own, *told, *(written(1, Verdict.INCORRECT, number) for number in range(20, 24))]
    assert [pair[1][1] for pair in chosen(mixed)] == [0, 1, 2, 3, 20, 21, 22, 23]


@pytest.mark.timeout(240)
async def test_a_critic_without_the_format_is_taught_it(
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
