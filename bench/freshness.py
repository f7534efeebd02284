"""What a run draws: how often new labels, and how many groups that teach something.

python -m bench.freshness

A deployment has 4,096 labelled answers, of which some are new since the run of its critic. A run has the default steps.
Each answer has its own chance of a right verdict under the critic, from a Beta distribution with mean 0.75; a group of
four critiques is informative if their verdicts differ. The confidence that served the answer is that chance with noise.
"""

import argparse
import random
from dataclasses import dataclass
from uuid import UUID

from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.data import Dealer, Known
from gadfly.training import TrainConfig
from gadfly.votes import LabelSource

ANSWERS = 4096
RUNS = 20
A, B = 0.9, 0.3  # of the Beta distribution: most answers are judged rightly almost always, some almost never
NOISE = 0.15  # standard deviation of the confidence
CONFIG = TrainConfig()


@dataclass(frozen=True, slots=True)
class World:
    """The answers, each one's chance of a right verdict, and the trainer's estimates."""

    items: list[LabelledAnswer]
    chances: dict[str, float]
    known: Known


def world(rng: random.Random, *, new: int, is_confident: bool) -> World:
    items = [
        LabelledAnswer(
            interaction_id=UUID(int=number),
            question_hash=number.to_bytes(32),
            question="",
            response="",
            is_right=number % 2 == 0,
            source=LabelSource.REFERENCE,
            reference="1",
        )
        for number in range(ANSWERS)
    ]
    chances = {item.key: rng.betavariate(A, B) for item in items}
    confidences = {
        item.id: min(0.99, max(0.01, (chances[item.key] if item.is_right else 1 - chances[item.key]) + noise))
        for item in items
        for noise in (rng.gauss(0.0, NOISE),)
    }
    fresh = frozenset(item.key for item in items[:new])
    return World(items, chances, Known(fresh=fresh, confidences=confidences if is_confident else {}))


def draws(found: World, rng: random.Random, *, fresh_share: float) -> tuple[int, int, int]:
    """Draws of new answers, informative groups, and all draws of one run."""
    fresh = informative = total = 0
    size = CONFIG.samples_per_prompt
    for stage in range(2):
        dealer = Dealer(
            found.items,
            seed=f"{rng.random()} {stage}",
            balance=True,
            total=CONFIG.steps_stage_1 * CONFIG.prompts_per_step,
            fresh_share=fresh_share,
            fresh_repeats=CONFIG.fresh_repeats,
            known=found.known,
        )
        for _ in range(CONFIG.steps_stage_1):
            for item in dealer.deal(CONFIG.prompts_per_step):
                scores = [float(rng.random() < found.chances[item.key]) for _ in range(size)]
                dealer.observe(item, scores)
                fresh += found.known.is_fresh(item)
                informative += len(set(scores)) > 1
                total += 1
    return fresh, informative, total


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.freshness", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=RUNS)
    runs: int = parser.parse_args().runs
    print("| new answers | drawn | new answers drawn, of 640 draws | per new answer | informative groups |")
    print("| ---: | --- | ---: | ---: | ---: |")
    for new in (5, 50, 500):
        for title, share, is_confident in (
            ("alike", 0.0, False),
            ("half from the new", CONFIG.fresh_share, False),
            ("... and uncertain ones first", CONFIG.fresh_share, True),
        ):
            rng = random.Random(0)  # not a secret
            counts = [
                draws(world(rng, new=new, is_confident=is_confident), rng, fresh_share=share) for _ in range(runs)
            ]
            fresh, informative, total = (sum(numbers) for numbers in zip(*counts, strict=True))
            each, share_informative = fresh / runs / new, 100 * informative / total
            print(f"| {new} | {title} | {fresh / runs:.0f} | {each:.1f} | {share_informative:.0f} % |")


if __name__ == "__main__":
    main()
