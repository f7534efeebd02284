"""The duplicates that the wall's blocks find, and their cost: `python -m bench.wall FILE [FILE ...] [--runs 200]`.

Each line of a FILE is JSON with a `question`; questions of different people, such as GSM8K's, show best what is merged
wrongly. Prints Markdown tables: the recall of changed questions, the pairs that share a block, the sides in simulated
deployments (many secrets each), and the time to store questions in a temporary Postgres.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import psutil
from sqlalchemy import text

from bench.overhead import run
from gadfly import store
from gadfly.lab import world
from gadfly.lab.world import LabSplit
from gadfly.records import Interaction, Kind, Split, Usage, new_id, now
from gadfly.service.recording.recorder import Recorder
from gadfly.settings import SplitBlocks
from gadfly.store.blocks import BlockKeys, Blocks, block_keys
from gadfly.store.database import Database, migrate
from gadfly.store.embedded import EmbeddedPostgres
from gadfly.store.split import question_hash, split_of
from gadfly.store.wall import key_stored_questions, place_questions

SHARE = 0.2
_BATCH = 300  # as `gadfly import`
_STORED = 10_000
_ROUNDS = 10

Change = Callable[[random.Random, str], str]


# ------------------------------------------------------------------------------------------------------------- the keys


def other_numbers(rng: random.Random, question: str) -> str:
    return re.sub(r"\d[\d.,]*\d|\d", lambda _: str(rng.randint(2, 999)), question)


def one_word(rng: random.Random, question: str) -> str:
    words = question.split()
    words[rng.randrange(len(words))] = "another"
    return " ".join(words)


def three_words(rng: random.Random, question: str) -> str:
    return one_word(rng, one_word(rng, one_word(rng, question)))


CHANGES: dict[str, Change] = {
    "`Question: ` in front": lambda rng, question: f"Question: {question}",
    "`Question 12: ` in front": lambda rng, question: f"Question {rng.randint(1, 99)}: {question}",
    "`Please solve this problem step by step.` in front": lambda rng, question: (
        f"Please solve this problem step by step.\n\n{question}"
    ),
    "bold, and `Show your work.` at the end": lambda rng, question: f"**{question}** Show your work.",
    "other numbers": other_numbers,
    "other numbers, and `Q: ` in front": lambda rng, question: f"Q: {other_numbers(rng, question)}",
    "one word replaced": one_word,
    "three words replaced": three_words,
    "an unknown sentence of ten words in front": lambda rng, question: (
        f"Our pupils of class seven got this from their book. {question}"
    ),
    "an unknown text of forty words in front": lambda rng, question: (
        f"{' '.join(f'lorem{chr(97 + number % 26)} ipsum{chr(97 + number // 2)}' for number in range(20))}. {question}"
    ),
}


def recall(questions: Sequence[str], runs: int) -> list[str]:
    rng = random.Random(1)
    rows = []
    for name, change in CHANGES.items():
        chosen = rng.choices(questions, k=5 * runs)
        pairs = [(block_keys(question), block_keys(change(rng, question))) for question in chosen]
        same = sum(one.same == other.same for one, other in pairs)
        near = sum(bool(set(one) & set(other)) for one, other in pairs)
        rows.append(f"| {name} | {100 * same / len(pairs):.1f} % | {100 * near / len(pairs):.1f} % |")
    return ["| change of a question | the same question | the same block |", "|---|---|---|", *rows]


def merges(questions: Sequence[str], runs: int) -> list[str]:
    del runs
    distinct = list(dict.fromkeys(questions))
    started = time.process_time()
    keys = [block_keys(question) for question in distinct]
    seconds = time.process_time() - started
    owners: defaultdict[int, list[int]] = defaultdict(list)
    for number, each in enumerate(keys):
        for key in each:
            owners[key].append(number)
    pairs = {pair for numbers in owners.values() for pair in combinations(numbers, 2)}
    similar = Counter(min(9, int(10 * _jaccard(distinct[one], distinct[other]))) for one, other in pairs)
    return [
        "| questions | pairs that share a key | of these with a Jaccard similarity below 0.4 | 0.4 to 0.6 | above | "
        "CPU per question |",
        "|---|---|---|---|---|---|",
        f"| {len(distinct)} | {len(pairs)} | {sum(similar[each] for each in range(4))} | {similar[4] + similar[5]} | "
        f"{sum(similar[each] for each in range(6, 10))} | {1e6 * seconds / len(distinct):.0f} µs |",
    ]


def _jaccard(one: str, other: str) -> float:
    first, second = (set(pairwise(words)) for words in (_plain(one), _plain(other)))
    return len(first & second) / max(1, len(first | second))


def _plain(question: str) -> list[str]:
    return re.findall(r"#|[a-z]+", re.sub(r"\d[\d.,]*\d|\d", "#", question.lower()))


# ------------------------------------------------------------------------------------------------------------ the sides


def sides(questions: Sequence[str], runs: int) -> list[str]:
    rng = random.Random(5)

    def of_templates(count: int, of: int) -> list[str]:
        templates = rng.sample(list(questions), count)
        return [other_numbers(rng, rng.choice(templates)) for _ in range(of)]

    lab = [each.text for each in world.problems(LabSplit.IN_DOMAIN, 2000, seed=3)]
    worlds = {
        "questions of the file": rng.sample(list(questions), min(2000, len(questions))),
        "one template": of_templates(1, 400),
        "5 templates": of_templates(5, 400),
        "10 templates": of_templates(10, 400),
        "30 templates": of_templates(30, 400),
        "100 templates": of_templates(100, 400),
        "the lab's world, first 320": lab[:320],
        "the lab's world": lab,
    }
    rows = []
    for name, texts in worlds.items():
        keyed = [(question_hash(text), block_keys(text)) for text in texts]
        for rule in SplitBlocks:
            found = [_simulated(keyed, rule, secret=number.to_bytes(8)) for number in range(1, runs + 1)]
            shares, crossed, near = zip(*found, strict=True)
            low, *_, high = statistics.quantiles(shares, n=20)
            cells = (
                f"{100 * low:.0f} to {100 * high:.0f} %",
                f"{100 * sum(share < SHARE / 4 for share in shares) / runs:.0f} %",
                f"{100 * statistics.mean(crossed):.1f} %",
                f"{100 * statistics.mean(near):.0f} %",
            )
            rows.append(f"| {name} | {len(texts)} | {rule.value} | {' | '.join(cells)} |")
    return [
        "| deployment | questions | blocks | share held out, 5th to 95th percentile | "
        "deployments with less than a quarter of that share | questions with a numbers-only twin across the wall | "
        "held-out questions near to training |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def _simulated(
    keyed: Sequence[tuple[bytes, BlockKeys]], rule: SplitBlocks, *, secret: bytes
) -> tuple[float, float, float]:
    """The share that is held out, that of twins across the wall, and that of held-out questions near to training."""
    blocks = Blocks({}, Counter(), SHARE, rule)
    placed = [blocks.place(keys, split_of(hash_, SHARE, secret=secret)) for hash_, keys in keyed]
    twins: defaultdict[tuple[int, ...], set[Split]] = defaultdict(set)
    for (_, keys), side in zip(keyed, placed, strict=True):
        twins[keys.near].add(side)
    heldout = [keys for (_, keys), side in zip(keyed, placed, strict=True) if side is Split.HELDOUT]
    near = sum(any(blocks.keys[key].in_training for key in keys) for keys in heldout)
    crossed = sum(len(twins[keys.near]) == 2 for _, keys in keyed)
    return len(heldout) / len(placed), crossed / len(placed), near / max(1, len(heldout))


# ------------------------------------------------------------------------------------------------------------- the time


def asked(question: str) -> Interaction:
    return Interaction(
        id=new_id(), kind=Kind.IMPORT, created_at=now(), episode_id=new_id(), key_id=None, request_id=None,
        fingerprint=None, question=question, response="The answer is 4.", reference=None, grade=None, metadata={},
        parameters={}, model=None, prompt_set=None, critic_version=None, adapter_sha256=None, verdict=None,
        refined_response=None, stop_reason=None, usage=Usage(), latency_ms=None,
    )  # fmt: skip


def new_questions(questions: Sequence[str], count: int) -> list[str]:
    """Questions that are near to none: those of the files, and then their words in another order."""
    rng = random.Random(2)
    found = list(dict.fromkeys(questions))[:count]
    while len(found) < count:
        words = rng.choice(questions).split()
        rng.shuffle(words)
        found.append(" ".join(words))
    return found


def cpu_s(server: EmbeddedPostgres) -> float:
    """CPU time so far of this process and of the server's, which does not depend on what else the machine does."""
    postmaster = psutil.Process(int((server.data / "postmaster.pid").read_text().split()[0]))
    times = [each.cpu_times() for each in (psutil.Process(), postmaster, *postmaster.children())]
    return float(sum(each.user + each.system for each in times))


async def store_all(server: EmbeddedPostgres, folder: Path, questions: Sequence[str]) -> list[str]:
    texts = new_questions(questions, _STORED + 2 * 100 * _ROUNDS)
    imported, fresh = texts[:_STORED], iter(texts[_STORED:])
    placing = storing = placing_cpu = storing_cpu = 0.0
    async with Database(server.url) as database:
        for start in range(0, len(imported), _BATCH):
            batch = [asked(question) for question in imported[start : start + _BATCH]]
            async with database.session() as session:
                started, started_cpu = time.perf_counter(), cpu_s(server)
                by_hash = {question_hash(item.question): item.question for item in batch}
                await place_questions(session, by_hash, heldout_share=SHARE, blocks=SplitBlocks.NEAR, sides={})
                placing += time.perf_counter() - started
                placing_cpu += cpu_s(server) - started_cpu
                started, started_cpu = time.perf_counter(), cpu_s(server)
                await store.interactions.insert_interactions(session, batch, heldout_share=SHARE)
            storing += time.perf_counter() - started
            storing_cpu += cpu_s(server) - started_cpu
        rows = [
            "| | time | CPU of both processes |",
            "|---|---|---|",
            f"| sides and keys of {_STORED} new questions, in batches of {_BATCH} | {placing:.1f} s | "
            f"{placing_cpu:.1f} s |",
            f"| the rest of their rows | {storing:.1f} s | {storing_cpu:.1f} s |",
        ]
        async with database.session() as session:
            size = await session.scalar(text("SELECT pg_total_relation_size('block_keys')"))
            await session.execute(text("DELETE FROM block_keys"))
            await session.execute(text("UPDATE questions SET is_keyed = false"))
        started, started_cpu = time.perf_counter(), cpu_s(server)
        await key_stored_questions(database)
        rows += [
            f"| keys for {_STORED} stored questions after a migration | {time.perf_counter() - started:.1f} s | "
            f"{cpu_s(server) - started_cpu:.1f} s |",
            f"| disk space of the keys | {size / _STORED:.0f} bytes per question | |",
        ]
        sample = asked(imported[0])
        async with Recorder(database, folder / "spool", heldout_share=SHARE, spool_max_bytes=2**30) as recorder:

            async def write(question: str) -> None:
                await recorder.record(replace(sample, id=new_id(), episode_id=new_id(), question=question))

            for callers in (1, 32):
                known: list[tuple[float, float]] = []
                new: list[tuple[float, float]] = []
                for _ in range(_ROUNDS):
                    for medians, pick in ((known, lambda: imported[0]), (new, lambda: next(fresh))):

                        async def call(_: int, pick: Callable[[], str] = pick) -> None:
                            await write(pick())

                        started_cpu = cpu_s(server)
                        measured = await run(call, callers=callers, requests=100)
                        medians.append((1000 * measured.quantile(0.5), 10 * (cpu_s(server) - started_cpu)))
                rows += [
                    f"| durable write of a {name} question, {callers} at a time: median of the fastest round | "
                    f"{min(medians)[0]:.1f} ms | {min(cpu for _, cpu in medians):.1f} ms per write |"
                    for name, medians in (("known", known), ("new", new))
                ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.wall", description=__doc__.partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", help="JSON lines with a `question`")
    parser.add_argument("--runs", type=int, default=200, help="simulated deployments per row")
    options = parser.parse_args()
    questions = [json.loads(line)["question"] for file in options.files for line in file.open()]
    for table in (recall, merges, sides):
        print("\n".join(table(questions, options.runs)), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="gadfly-bench-") as folder, EmbeddedPostgres(Path(folder)) as server:
        migrate(server.url)
        print("\n".join(asyncio.run(store_all(server, Path(folder), questions))))


if __name__ == "__main__":
    main()
