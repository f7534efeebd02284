"""What a run's answers earned, counted by hand."""

from uuid import UUID

from gadfly.records import new_id
from gadfly.store.learning import RESPONSE, SAMPLED
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.ledger import Ledger, shown
from gadfly.trainer.rollouts import Rollout, RolloutGroup
from gadfly.training import Stage
from gadfly.verdict import Verdict
from gadfly.votes import LabelSource


def answer(*, is_right: bool = True, sample: int | None = None, refinement_id: UUID | None = None) -> LabelledAnswer:
    return LabelledAnswer(
        interaction_id=new_id(), question_hash=b"q", question="?", response="!", is_right=is_right,
        source=LabelSource.PERSON, reference=None, sample=sample, refinement_id=refinement_id,
    )  # fmt: skip


def group(item: LabelledAnswer, *scored: tuple[float, Verdict]) -> RolloutGroup:
    rollouts = tuple(
        Rollout(
            text=f"critique {score}", verdict=verdict, verdict_lines=1, finish_reason="stop", tokens=(1,),
            logprobs=(-0.1,), refined=None, score=score,
        )
        for score, verdict in scored
    )  # fmt: skip
    return RolloutGroup(item=item, prompt=(1,), rollouts=rollouts)


def test_draws_scores_and_verdicts_add_up_by_answer_and_stage() -> None:
    logged, sampled, refined = answer(), answer(is_right=False, sample=3), answer(refinement_id=new_id())
    good, bad = (1.0, Verdict.CORRECT), (0.0, Verdict.INCORRECT)
    ledger = Ledger()
    ledger.add(Stage.STAGE_1, 0, [group(logged, good, bad), group(sampled, bad)])
    resumed = Ledger(ledger.entries)
    resumed.add(Stage.STAGE_1, 4, [group(logged, good, good, (0.5, Verdict.UNPARSED))])
    resumed.add(Stage.STAGE_2, 9, [group(logged, bad), group(refined, good)])
    found = {(entry.interaction_id, entry.stage): entry for entry in resumed.entries}
    first = found[logged.interaction_id, "stage_1"]
    assert (first.answer, first.draws, first.critiques, first.verdicts_right) == (RESPONSE, 2, 5, 3)
    assert (first.mean_score, first.first_step, first.last_step) == (0.7, 1, 5)
    assert found[sampled.interaction_id, "stage_1"].answer == SAMPLED
    assert found[sampled.interaction_id, "stage_1"].verdicts_right == 1
    assert found[refined.interaction_id, "stage_2"].answer == str(refined.refinement_id)
    assert found[logged.interaction_id, "stage_2"].first_step == 10


def test_samples_are_the_best_and_the_worst_of_both_classes() -> None:
    right, wrong = answer(), answer(is_right=False)
    samples = shown(
        [
            group(right, (0.2, Verdict.INCORRECT), (1.0, Verdict.CORRECT), (0.5, Verdict.CORRECT)),
            group(wrong, (0.0, Verdict.CORRECT)),
            *(group(answer(), (0.0, Verdict.CORRECT)) for _ in range(5)),
        ]
    )
    assert [(sample["interaction_id"], sample["score"]) for sample in samples if not sample["was_right"]] == [
        (str(wrong.interaction_id), 0.0)
    ]
    assert [sample["score"] for sample in samples if sample["was_right"]] == [1.0, 0.2, 0.0]
