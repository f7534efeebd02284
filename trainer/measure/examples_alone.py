"""What the same labels give without training: examples in the prompt, alone and with a fitted verdict threshold.

A run's candidate is compared with it in the gate's report, and it does not decide.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from gadfly.scoreboard import Threshold
from gadfly.trainer.measure.gate import Axis, compare, threshold_alone
from gadfly.trainer.measure.metrics import Judged
from gadfly.training import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ExamplesAlone:
    """The critic by examples beside the live critic and the candidate, on the first critique of each answer."""

    from_live: Sequence[Axis]  # examples - live
    to_candidate: Sequence[Axis]  # candidate - examples
    threshold: Threshold | None  # fitted to its probabilities, cross-fitted over questions

    @classmethod
    def of(
        cls,
        live: Sequence[Judged],
        candidate: Sequence[Judged],
        by_examples: Sequence[Judged],
        config: TrainConfig,
    ) -> Self | None:
        """The comparison; None without answers of both classes. Raises as `gadfly.trainer.measure.gate.units_of`."""
        from_live = compare(_first(live), by_examples, config)
        if not from_live:
            return None
        return cls(
            from_live=from_live,
            to_candidate=compare(by_examples, _first(candidate), config),
            threshold=threshold_alone(by_examples),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "from_live": {axis.name: asdict(axis) for axis in self.from_live},
            "to_candidate": {axis.name: asdict(axis) for axis in self.to_candidate},
            "threshold": None if self.threshold is None else asdict(self.threshold),
        }

    def sentence(self, examples: int) -> str:
        """The comparison in words; `examples` is the number of examples in the prompt."""
        found = (
            f"Without training, {examples} labelled examples in the prompt would change the live critic's "
            f"{_changes(self.from_live)}. Compared with them, the candidate changes {_changes(self.to_candidate)}."
        )
        if self.threshold is not None:
            value = self.threshold.balanced
            found += (
                f" With a fitted threshold they would judge {100 * value.value:.1f} % of both classes rightly "
                f"({100 * value.low:.1f} to {100 * value.high:.1f} %, cross-fitted)."
            )
        return f"{found} This does not decide."


def _changes(axes: Sequence[Axis]) -> str:
    return " and ".join(
        f"{axis.name} by {100 * axis.difference:+.1f} points [{100 * axis.low:+.1f}, {100 * axis.high:+.1f}]"
        for axis in axes
    )


def _first(items: Sequence[Judged]) -> list[Judged]:
    return [item for item in items if item.sample == 0]
