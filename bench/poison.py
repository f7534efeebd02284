"""What a key with bad labels does to the critic that learns from them, and to the gate that measures it.

python -m bench.poison FOLDER [--arms honest,flips-20] [--seeds 0,1,2]

In the lab's world. Five equal keys say which answers are right; four err in 3 % of their words, and the fifth as the
arm says (`bench.labels`). A share of the answers is labelled by a second key, and a share has a reference of another
one. Votes become labels by the rule of a deployment (`gadfly.votes`), for the answers to learn from and for the
held-out ones; a critic learns from them and is measured on answers whose truth is known. Another arm leaves the fifth
key's votes out (`absent`); the others are compared with it. Arms with one seed differ in the words of the fifth key
only. An interrupted cell continues where it was, finished cells are kept, and a cell that would draw what another one
drew takes its result. Prints a Markdown table of the finished cells, with standard errors over the seeds.
"""

import argparse
import asyncio
import hashlib
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any
from uuid import UUID

import orjson
import structlog
import torch

from bench.labels import BAD, CASES, GRADE_ERROR, KEYS, Answer, Labelling, honest
from gadfly.adapters import write_durably
from gadfly.grading import Grader
from gadfly.lab.__main__ import MODEL
from gadfly.lab.arena import Arena, Sizes
from gadfly.lab.engine import Generator
from gadfly.lab.rows import BASE, Method, Row, config
from gadfly.lab.runs import Lab
from gadfly.lab.study import Study
from gadfly.lab.world import LabSplit
from gadfly.planning import within_key_share
from gadfly.settings import Settings
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.data import Dealer
from gadfly.training import Stage, TrainConfig
from gadfly.votes import LabelSource, Pattern, Vote, Votes, certainty, contradictions, fit, one_vote_each, opinion

ARMS: dict[str, tuple[str, Labelling | None]] = {
    name: (title, label)
    for name, (title, label) in zip(("honest", "flips-20", "flips-50", "flips-100", "long-wrong"), CASES, strict=True)
} | {"absent": ("has no say", None)}
ROW = Row("verdict", "stage I, from words alone", Method.LEARN, {"steps_stage_2": 0})
SIZES = Sizes(learn=320, validate=256, test=1024, out_of_domain=16, samples=4, sampled=16)
QUICK = Sizes(learn=64, validate=64, test=64, out_of_domain=8, samples=4, sampled=8)
_MOST_OF_A_KEY = Settings.model_fields["max_key_share"].default


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """What the votes make of the answers of one cell. Shares are in [0, 1]."""

    named: list[int]  # numbers of the keys that the dry run names, from 1; 5 is the fifth
    answers: int  # to learn from, before the votes
    labelled: int  # those of them that have a label and are within the share of their key
    wrong: float  # share of wrong labels among these
    heldout: int  # held-out answers with a label
    heldout_wrong: float


def voted(
    answers: Sequence[LabelledAnswer], label: Labelling | None, *, seed: int, overlap: float, graded: float
) -> list[Votes]:
    """The votes of five equal keys about these answers; `label` is how the fifth one labels, None: not at all."""
    typical = median(len(answer.response) for answer in answers)
    order = sorted(range(len(answers)), key=lambda place: random.Random(f"{seed} {answers[place].key}").random())
    votes: list[Votes] = [()] * len(answers)
    for number, place in enumerate(order):
        answer = answers[place]
        truth = Answer(answer.is_right, len(answer.response) > typical)
        rng = random.Random(f"{seed} votes {answer.key}")
        first = KEYS[number % len(KEYS)]
        second = rng.choice([other for other in KEYS if other != first])
        said = [_word(key, truth, label, f"{seed} {answer.key}") for key in (first, second)]
        if rng.random() >= overlap:
            said.pop()
        if rng.random() < graded:
            grade = truth.is_right is not (rng.random() < GRADE_ERROR)
            said.insert(0, Vote(rng.choice(KEYS[:-1]), LabelSource.REFERENCE, grade))
        votes[place] = one_vote_each([vote for vote in said if label or vote.key_id != BAD])
    return votes


def _word(key: UUID, truth: Answer, label: Labelling | None, seed: str) -> Vote:
    labels = label if label is not None and key == BAD else honest
    return Vote(key, LabelSource.PERSON, labels(random.Random(f"{seed} {key}"), truth))


def poisoned(
    arena: Arena, label: Labelling | None, *, seed: int, overlap: float, graded: float
) -> tuple[Arena, Labels]:
    """The arena with the labels that the votes give, and what these are. The tests keep the truth.

    The answers to learn from have no reference: references would teach the truth, whatever the words say.
    """
    known = [*arena.learn, *arena.validate]
    votes = voted(known, label, seed=seed, overlap=overlap, graded=graded)
    patterns = [Pattern(each, None, count) for each, count in sorted(Counter(votes).items(), key=repr) if each]
    model = fit(patterns)
    labelled: list[LabelledAnswer] = []
    heldout: list[LabelledAnswer] = []
    truths = {answer.key: answer.is_right for answer in known}
    for number, (answer, each) in enumerate(zip(known, votes, strict=True)):
        given = opinion(each, model)
        if given.is_right is None or given.source is None:
            continue
        changed = replace(
            answer,
            is_right=given.is_right,
            source=given.source,
            certainty=certainty(given.is_right, each, None, model, frozenset()),
            key_id=given.key_id,
        )
        if number < len(arena.learn):
            labelled.append(replace(changed, reference=None))
        else:
            heldout.append(changed)
    labelled, heldout = within_key_share(labelled, _MOST_OF_A_KEY), within_key_share(heldout, _MOST_OF_A_KEY)
    numbers: dict[UUID | None, int] = {key: number for number, key in enumerate(KEYS, start=1)}
    labels = Labels(
        named=sorted({numbers[case.voter.key_id] for case in contradictions(patterns, model)}),
        answers=len(arena.learn),
        labelled=len(labelled),
        wrong=fmean(answer.is_right is not truths[answer.key] for answer in labelled),
        heldout=len(heldout),
        heldout_wrong=fmean(answer.is_right is not truths[answer.key] for answer in heldout),
    )
    return replace(arena, learn=labelled, validate=heldout), labels


async def run_cell(lab: Lab, arm: str, seed: int, *, overlap: float, graded: float) -> None:
    """Train and measure one arm with one seed, unless its results are in the folder."""
    _, label = ARMS[arm]
    arena, labels = poisoned(lab.arena, label, seed=seed, overlap=overlap, graded=graded)
    cells = _cells(lab.folder, overlap, graded)
    cell = cells / arm / ROW.name / str(seed)
    draws = _draws(arena, config(ROW, lab.base, seed=seed))
    for other in sorted(cells.glob(f"*/{ROW.name}/{seed}/draws")):
        result = other.with_name("result.json")
        if draws and other.read_text() == draws and result.exists() and not (cell / "result.json").exists():
            cell.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(result, cell / "result.json")
    await replace(lab, folder=cells / arm, arena=arena, verdicts_only=True).result(ROW, seed)
    write_durably(cell / "draws", draws.encode())
    write_durably(cell / "labels.json", orjson.dumps(asdict(labels)))


def _draws(arena: Arena, config: TrainConfig) -> str:
    """A hash of all that a cell learns from and is measured on. Cells with the same one have the same result.

    "" where a class has too few answers: then the critic decides which are drawn a second time.
    """
    total = config.steps_stage_1 * config.prompts_per_step
    classes = Counter(answer.is_right for answer in arena.learn)
    if min(classes[True], classes[False]) < (total + 1) // 2:
        return ""
    seed = f"{config.fixed_seed} 0 {Stage.STAGE_1.value}"  # as in `trainer/learn.py`
    dealt = Dealer(arena.learn, seed=seed, balance=config.balance, total=total).deal(total)
    found = [[(answer.key, answer.is_right) for answer in answers] for answers in (dealt, arena.validate)]
    return hashlib.sha256(orjson.dumps(found)).hexdigest()


def _cells(folder: Path, overlap: float, graded: float) -> Path:
    return folder / f"overlap-{overlap:g}-graded-{graded:g}"


def table(cells_folder: Path) -> list[str]:
    """The finished cells in a folder as a Markdown table: means over seeds; differences are of equal seeds."""
    lines = [
        "| the fifth key | seeds | named, it alone | others named | wrong labels | without a label | "
        "wrong held-out labels | verdict accuracy | compared with its absence | as the held-out labels measure it | "
        "compared with its absence |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    usual = _read(cells_folder, "absent")
    for arm, (title, _) in ARMS.items():
        found = _read(cells_folder, arm)
        if not found:
            continue
        labels = [Labels(**each["labels"]) for each in found.values()]
        cells = [
            f"{sum(each.named == [len(KEYS)] for each in labels)} of {len(labels)}",
            f"{sum(bool(set(each.named) - {len(KEYS)}) for each in labels)} of {len(labels)}",
            _percent([each.wrong for each in labels]),
            _percent([1 - each.labelled / each.answers for each in labels]),
            _percent([each.heldout_wrong for each in labels]),
        ]
        for measured in ("test", "heldout"):
            pairs = [each[measured] - usual[seed][measured] for seed, each in found.items() if seed in usual]
            cells += [
                _percent([each[measured] for each in found.values()]),
                f"{100 * fmean(pairs):+.1f} points{_error(pairs)}" if pairs and arm != "absent" else "-",
            ]
        lines.append(f"| {title} | {len(found)} | {' | '.join(cells)} |")
    return lines


def _percent(values: Sequence[float]) -> str:
    return f"{100 * fmean(values):.1f} %{_error(values)}"


def _error(values: Sequence[float]) -> str:
    """The standard error of a mean in brackets, in points; nothing for a single value."""
    return f" ({100 * stdev(values) / len(values) ** 0.5:.1f})" if len(values) > 1 else ""


def _read(cells_folder: Path, arm: str) -> dict[str, dict[str, Any]]:
    """By seed, the results of this arm: balanced verdict accuracies and the labels."""
    cells = {}
    for path in sorted((cells_folder / arm / ROW.name).glob("*/labels.json")):
        result = orjson.loads(path.with_name("result.json").read_bytes())
        cells[path.parent.name] = {
            "labels": orjson.loads(path.read_bytes()),
            "test": result["last"][LabSplit.IN_DOMAIN.value]["discrimination_balanced"]["value"],
            "heldout": result["curve"][-1]["metrics"]["discrimination_balanced"]["value"],
        }
    return cells


async def run(study: Study, arms: Sequence[str], seeds: Sequence[int], *, overlap: float, graded: float) -> None:
    study.open()
    generator = Generator(str(study.model))
    async with Grader(timeout_s=10.0) as grader:
        lab = await study.lab(generator, grader)
        for seed in seeds:
            for arm in arms:
                await run_cell(lab, arm, seed, overlap=overlap, graded=graded)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the results")
    parser.add_argument("--arms", default=",".join(ARMS), help="what the fifth key does")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--overlap", type=float, default=0.3, help="share of the answers that a second key labels")
    parser.add_argument("--graded", type=float, default=0.0, help="share of the answers with a reference of a key")
    parser.add_argument("--steps", type=int, default=20, help="rollout steps of a cell")
    parser.add_argument("--quick", action="store_true", help="few answers, to see that it works")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    torch.set_num_threads(options.threads)
    arms = options.arms.split(",")
    if unknown := set(arms) - set(ARMS):
        parser.error(f"there is no arm {', '.join(sorted(unknown))}: the arms are {', '.join(ARMS)}")
    base = TrainConfig.model_validate(BASE.model_dump() | {"steps_stage_1": options.steps, "validate_every": 0})
    study = Study(options.folder, MODEL, base, QUICK if options.quick else SIZES)
    seeds = [int(each) for each in options.seeds.split(",")]
    asyncio.run(run(study, arms, seeds, overlap=options.overlap, graded=options.graded))
    print("\n".join(table(_cells(options.folder, options.overlap, options.graded))))


if __name__ == "__main__":
    main()
