"""What a run's answers earned, and the critiques of a step that people may read."""

from collections.abc import Sequence
from typing import Any

from gadfly.store.learning import RESPONSE, SAMPLED, Learned
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.rl.rewards import states_the_truth
from gadfly.trainer.rollouts import Rollout, RolloutGroup
from gadfly.training import Stage

_CHARS = 2000  # of a critique
_SHOWN = 2  # groups of each class


class Ledger:
    """The draws and the scores of each answer of a run, by stage. It starts with the entries of a checkpoint."""

    def __init__(self, entries: Sequence[Learned] = ()) -> None:
        self._entries = {(entry.interaction_id, entry.answer, entry.stage): entry for entry in entries}

    @property
    def entries(self) -> list[Learned]:
        return list(self._entries.values())

    def add(self, stage: Stage, step: int, groups: Sequence[RolloutGroup]) -> None:
        """Count the groups of one step, which counts from 0; the ledger's steps count from 1, as events do."""
        for group in groups:
            item = group.item
            key = (item.interaction_id, _answer(item), stage.value)
            before = self._entries.get(key) or Learned(
                interaction_id=key[0],
                answer=key[1],
                stage=key[2],
                draws=0,
                critiques=0,
                mean_score=0.0,
                verdicts_right=0,
                first_step=step + 1,
                last_step=step + 1,
            )
            right = sum(states_the_truth(rollout.verdict, was_right=item.is_right) for rollout in group.rollouts)
            self._entries[key] = before.with_draw(step + 1, [rollout.score for rollout in group.rollouts], right)


def _answer(item: LabelledAnswer) -> str:
    if item.sample is not None:
        return SAMPLED
    return RESPONSE if item.refinement_id is None else str(item.refinement_id)


def shown(groups: Sequence[RolloutGroup]) -> list[dict[str, Any]]:
    """The best and the worst critique of up to two right and two wrong answers of a step."""
    chosen: list[tuple[LabelledAnswer, Rollout]] = []
    for kind in (True, False):
        for group in [each for each in groups if each.item.is_right is kind][:_SHOWN]:
            ranked = sorted(group.rollouts, key=lambda rollout: rollout.score)
            chosen += [(group.item, rollout) for rollout in ([ranked[-1], ranked[0]] if len(ranked) > 1 else ranked)]
    return [
        {
            "interaction_id": str(item.interaction_id),
            "was_right": item.is_right,
            "verdict": rollout.verdict.value,
            "score": rollout.score,
            "refined": None if rollout.refined is None else rollout.refined.value,
            "critique": rollout.text[:_CHARS],
        }
        for item, rollout in chosen
    ]
