"""Which of its own critiques a critic learns the format from, and where a critique without a verdict is cut."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import cast

import pytest

from gadfly import store
from gadfly.actor import BaseActor
from gadfly.critique import VERDICT_PREFIX
from gadfly.engine_client import ACTOR
from gadfly.grading import Grade, Grader
from gadfly.lab.runs import LabReport
from gadfly.prompts import parse_prompt_set
from gadfly.store.database import Database
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.engines import RunEngines
from gadfly.trainer.rl.processes import ProcessGroup
from gadfly.trainer.rl.sft import Pair
from gadfly.trainer.rollouts import Collector
from gadfly.trainer.warm_start import Candidate, WarmStarter, chosen, whole_steps
from gadfly.trainer.workspace import Workspace
from gadfly.training import TrainConfig
from gadfly.verdict import Verdict
from tests.support import worlds
from tests.trainer.test_rollouts import ITEMS, engines, item

__all__ = ["engines"]  # a fixture

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


@dataclass
class Listener:
    """Takes the place of the training processes, and keeps what it is to learn."""

    heard: list[Pair] = field(default_factory=list)

    def warm_start(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        self.heard += pairs
        return []

    def save_adapter(self, folder: Path) -> None:
        (folder / "adapter").touch()


async def test_a_critique_that_begins_with_its_verdict_is_given_the_known_one(
    engines: RunEngines, tmp_path: Path
) -> None:
    # The critic is wrong about nearly all of these, and its critiques have no steps to continue.
    items = [
        item(number, text, is_right=text == worlds.RIGHT, reference=None)
        for number in range(6)
        for text in (worlds.RIGHT, worlds.WRONG)
    ]
    bare = files("gadfly").joinpath("prompt_sets", "bare@1.toml").read_text()
    content = bare.replace("[critique]", f'[critique]\nopener = "{VERDICT_PREFIX}"', 1)
    prompts = parse_prompt_set(content.encode(), name="first@1", where="here")
    config = TrainConfig.read({**worlds.GLANCE, "warm_start": "always", "temperature": 0.3})
    workspace, listener = Workspace(tmp_path), Listener()
    async with Grader(timeout_s=5) as grader:
        await WarmStarter(
            config=config,
            processes=cast(ProcessGroup, listener),
            engines=engines,
            collector=Collector(
                engines=engines, actor=BaseActor(engines.pool), prompts=prompts, grader=grader, config=config
            ),
            workspace=workspace,
            report=LabReport(workspace=workspace, steps=1),
            items=items,
        ).run(ACTOR)

    async def tokens(of: LabelledAnswer, critique: str) -> tuple[int, ...]:
        prompt = prompts.critique(question=of.question, response=of.response)
        return await engines.pool.tokenize(prompt.continued(critique))

    words = {True: f"{VERDICT_PREFIX} {prompts.correct}", False: f"{VERDICT_PREFIX} {prompts.incorrect}"}
    known = {await tokens(each, VERDICT_PREFIX): (await tokens(each, words[each.is_right]))[-1] for each in items}
    assert len(listener.heard) >= 8
    assert [reply[0] for _, reply in listener.heard] == [known[prompt] for prompt, _ in listener.heard]
