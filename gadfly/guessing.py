"""Answers that are right by chance, where the number of possible answers is known.

The model is the usual one of multiple-choice tests: an answer is known, or guessed among all that there are.
"""

from dataclasses import dataclass


def corrected_for_guessing(share: float, guess_rate: float) -> float:
    """The share of questions that were known and not guessed: 0 for guessing alone, below 0 for less than that."""
    return (share - guess_rate) / (1 - guess_rate)


@dataclass(frozen=True, kw_only=True, slots=True)
class Guessing:
    """What guessing does to labelled answers. Shares are in [0, 1]."""

    rate: float  # of right answers by guessing alone
    right: float  # share of right answers
    known: float  # the same, corrected for guessing; not below 0
    lucky: float  # expected number of right answers that were guessed

    @classmethod
    def of(cls, *, right: int, wrong: int, rate: float) -> "Guessing | None":
        """Of so many right and wrong answers; None without any."""
        if not right + wrong:
            return None
        share = right / (right + wrong)
        known = max(0.0, corrected_for_guessing(share, rate))
        lucky = min(float(right), (right + wrong) * (1 - known) * rate)
        return cls(rate=rate, right=share, known=known, lucky=lucky)
