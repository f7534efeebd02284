"""What a key with bad labels does to the labels of all: `python -m bench.labels [--runs 20] [--answers 300]`.

Simulated deployments: five keys label equally many answers, and some answers are labelled by a second key or graded
against a reference. Four keys err in 3 % of their labels, and the fifth as the row says. Prints a Markdown table:
whether the dry run names the fifth key, and it alone; and the share of wrong labels among all answers with a label, by
the rule before (the newest word counts) and by `gadfly.votes`.
"""

import argparse
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from uuid import UUID

from gadfly.votes import LabelSource, Pattern, Vote, contradictions, fit, one_vote_each, opinion

KEYS = [UUID(int=number) for number in range(1, 6)]
BAD = KEYS[-1]
HONEST_ERROR = 0.03
GRADE_ERROR = 0.005


@dataclass(frozen=True)
class Answer:
    """One simulated text."""

    is_right: bool
    is_long: bool


Labelling = Callable[[random.Random, Answer], bool]


def flips(share: float) -> Labelling:
    """A key that turns this share of its labels around, besides honest errors."""

    def label(rng: random.Random, answer: Answer) -> bool:
        return honest(rng, answer) is not (rng.random() < share)

    return label


def honest(rng: random.Random, answer: Answer) -> bool:
    return answer.is_right is not (rng.random() < HONEST_ERROR)


def calls_long_wrong(rng: random.Random, answer: Answer) -> bool:
    return False if answer.is_long else honest(rng, answer)


CASES: list[tuple[str, Labelling]] = [
    ("is as good as the others", honest),
    ("flips 20 %", flips(0.2)),
    ("flips 50 %", flips(0.5)),
    ("flips 100 %", flips(1.0)),
    ("calls all long answers wrong", calls_long_wrong),
]


@dataclass(frozen=True)
class Result:
    """What the label model makes of one simulated deployment."""

    named: frozenset[UUID | None]
    wrong_newest: float  # share of wrong labels, if the newest word counts
    wrong_votes: float  # the same by `opinion`
    unlabelled: float  # share of the answers with votes that get no label


def simulate(label: Labelling, *, seed: int, right: float, overlap: float, graded: float, answers: int) -> Result:
    """One deployment in which `label` is how the fifth of five equal keys labels its `answers` answers.

    A share `overlap` of the answers is labelled by a second key, and `graded` has a reference of the first one.
    """
    rng = random.Random(f"{seed} {right} {overlap} {graded}")
    patterns: Counter[tuple[Vote, ...]] = Counter()
    truths: list[tuple[bool, tuple[Vote, ...], bool]] = []  # the truth, the votes, the newest word
    for key in KEYS:
        for _ in range(answers):
            answer = Answer(rng.random() < right, rng.random() < 0.5)
            keys = [key, *([rng.choice([other for other in KEYS if other != key])] if rng.random() < overlap else [])]
            said = [Vote(each, LabelSource.PERSON, (label if each == BAD else honest)(rng, answer)) for each in keys]
            if rng.random() < graded:
                grade = answer.is_right is not (rng.random() < GRADE_ERROR)
                said.insert(0, Vote(rng.choice(KEYS[:-1]), LabelSource.REFERENCE, grade))
            votes = one_vote_each(said)
            patterns[votes] += 1
            truths.append((answer.is_right, votes, said[-1].is_right))
    stored = [Pattern(votes, None, count) for votes, count in patterns.items()]
    model = fit(stored)
    decided = [(truth, opinion(votes, model).is_right) for truth, votes, _ in truths]
    given = [(truth, is_right) for truth, is_right in decided if is_right is not None]
    return Result(
        named=frozenset(case.voter.key_id for case in contradictions(stored, model)),
        wrong_newest=fmean(newest is not truth for truth, _, newest in truths),
        wrong_votes=fmean(is_right is not truth for truth, is_right in given),
        unlabelled=1 - len(given) / len(decided),
    )


def flipped_in_rare_class(seed: int, *, right: float, error: float, answers: int) -> tuple[float, float]:
    """True and estimated share of right answers among those labelled wrong, for one key without any overlap."""
    rng = random.Random(seed)
    key = KEYS[0]
    said = [(truth, truth is not (rng.random() < error)) for truth in (rng.random() < right for _ in range(answers))]
    counts = Counter(label for _, label in said)
    patterns = [
        Pattern((Vote(key, LabelSource.PERSON, label),), None, count) for label, count in sorted(counts.items())
    ]
    estimate = opinion((Vote(key, LabelSource.PERSON, False),), fit(patterns)).probability
    assert estimate is not None
    return fmean(truth for truth, label in said if not label), estimate


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="simulated deployments per row")
    parser.add_argument("--answers", type=int, default=300, help="answers that each key labels first")
    options = parser.parse_args(arguments)
    runs, count = options.runs, options.answers
    print("| the fifth key | right answers | second votes | graded | named, it alone | others named | ", end="")
    print("wrong labels: newest word | by votes | without a label |")
    print("|---|---|---|---|---|---|---|---|---|")
    for right in (0.5, 0.95):
        for overlap, graded in ((0.3, 0.0), (0.1, 0.1), (0.05, 0.0)):
            for name, label in CASES:
                found = [
                    simulate(label, seed=seed, right=right, overlap=overlap, graded=graded, answers=count)
                    for seed in range(runs)
                ]
                alone = fmean(result.named == {BAD} for result in found)
                others = fmean(bool(result.named - {BAD}) for result in found)
                numbers = [fmean(getattr(result, part) for result in found) for part in _SHARES]
                cells = [f"{100 * value:.0f} %" for value in (right, overlap, graded, alone, others)]
                print(f"| {name} | {' | '.join(cells)} | {' | '.join(f'{100 * each:.1f} %' for each in numbers)} |")
    print("\n| right answers | label errors | right among those labelled wrong | estimated |\n|---|---|---|---|")
    for right, error in ((0.5, 0.05), (0.8, 0.05), (0.95, 0.05), (0.95, 0.02)):
        pairs = [flipped_in_rare_class(seed, right=right, error=error, answers=2000) for seed in range(runs)]
        true, estimated = (fmean(part) for part in zip(*pairs, strict=True))
        print(f"| {100 * right:.0f} % | {100 * error:.0f} % | {100 * true:.0f} % | {100 * estimated:.0f} % |")


_SHARES = ("wrong_newest", "wrong_votes", "unlabelled")

if __name__ == "__main__":
    main()
