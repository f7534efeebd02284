"""The votes and labels of the experiment with a key that labels badly, without training."""

from pathlib import Path
from uuid import UUID

import orjson
import pytest

from bench.labels import BAD
from bench.poison import ARMS, ROW, Labels, _draws, poisoned, table, voted
from gadfly.lab.arena import Arena
from gadfly.lab.rows import BASE
from gadfly.lab.world import LabSplit
from gadfly.store.training_data import LabelledAnswer
from gadfly.votes import LabelSource


def answers(count: int, *, start: int = 0) -> list[LabelledAnswer]:
    return [
        LabelledAnswer(
            interaction_id=UUID(int=number),
            question_hash=number.to_bytes(4),
            question=f"What is {number} + 3?",
            response="It is 7." if number % 3 else "It is seven, and I am sure.",
            is_right=number % 2 == 0,
            source=LabelSource.REFERENCE,
            reference="7",
        )
        for number in range(start, start + count)
    ]


ARENA = Arena(learn=answers(1000), validate=answers(250, start=5000), tests={LabSplit.IN_DOMAIN: answers(4)})


def labels_of(arm: str, *, seed: int = 0) -> tuple[Arena, Labels]:
    return poisoned(ARENA, ARMS[arm][1], seed=seed, overlap=0.3, graded=0.1)


@pytest.mark.parametrize("arm", ARMS)
def test_a_bad_key_is_named_and_no_other(arm: str) -> None:
    _, found = labels_of(arm)
    assert found.named == ([] if arm in ("honest", "absent") else [5])
    assert found.answers == 1000
    assert 600 < found.labelled <= 1000
    assert found.wrong < 0.06


def test_arms_differ_in_the_words_of_the_fifth_key_only() -> None:
    honest, flipped, absent = (
        voted(ARENA.learn, ARMS[arm][1], seed=1, overlap=0.3, graded=0.1) for arm in ("honest", "flips-100", "absent")
    )
    others = [[[vote for vote in each if vote.key_id != BAD] for each in votes] for votes in (honest, flipped, absent)]
    assert others[0] == others[1] == others[2] == [list(each) for each in absent]
    counts = [sum(vote.key_id == BAD for each in votes for vote in each) for votes in (honest, flipped)]
    assert counts[0] == counts[1] > 200
    assert honest != flipped
    assert voted(ARENA.learn, ARMS["honest"][1], seed=2, overlap=0.3, graded=0.1) != honest


def test_learning_has_words_alone_and_the_tests_keep_the_truth() -> None:
    arena, _ = labels_of("flips-50")
    assert all(answer.reference is None for answer in arena.learn)
    assert all(answer.reference == "7" for answer in arena.validate)
    assert arena.tests == ARENA.tests
    assert len({answer.certainty for answer in arena.learn}) > 2


def test_the_table_compares_equal_seeds(tmp_path: Path) -> None:
    for arm, seed, test, heldout in (("absent", 0, 0.8, 0.7), ("absent", 1, 0.9, 0.8), ("flips-20", 1, 0.88, 0.79)):
        folder = tmp_path / arm / ROW.name / str(seed)
        folder.mkdir(parents=True)
        result = {
            "last": {"in_domain": {"discrimination_balanced": {"value": test}}},
            "curve": [{"metrics": {"discrimination_balanced": {"value": heldout}}}],
        }
        found = Labels(
            named=[5] if arm == "flips-20" else [],
            answers=100, labelled=90, wrong=0.02, heldout=20, heldout_wrong=0.04,
        )  # fmt: skip
        (folder / "result.json").write_bytes(orjson.dumps(result))
        (folder / "labels.json").write_bytes(orjson.dumps(found))
    assert table(tmp_path)[2:] == [
        "| flips 20 % | 1 | 1 of 1 | 0 of 1 | 2.0 % | 10.0 % | 4.0 % | 88.0 % | -2.0 points | 79.0 % | -1.0 points |",
        "| has no say | 2 | 0 of 2 | 0 of 2 | 2.0 % (0.0) | 10.0 % (0.0) | 4.0 % (0.0) | 85.0 % (5.0) | - | "
        "75.0 % (5.0) | - |",
    ]


def test_cells_with_the_same_draws_are_one() -> None:
    few = BASE.model_copy(update={"seed": 3, "steps_stage_1": 4})
    draws = {arm: _draws(labels_of(arm)[0], few) for arm in ("absent", "flips-100", "honest")}
    assert draws["absent"] == draws["flips-100"] != draws["honest"], "its votes count nothing in either"
    many = few.model_copy(update={"steps_stage_1": 100})
    assert _draws(labels_of("absent")[0], many) == "", "the critic decides about the second deck"
