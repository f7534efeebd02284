"""How long the console's lists take over many rows: `python -m bench.traffic [ROWS]`.

Fills a new Postgres with interactions, critiques and labels, and times the queries of `GET /interactions` with each
filter, of the label queue and of the overview. Prints the median and the 95th percentile of each, in milliseconds.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sqlalchemy import text

from gadfly import store
from gadfly.records import LabelState
from gadfly.store.database import Database, migrate
from gadfly.store.interactions import Filters
from gadfly.verdict import Verdict
from tests.support.postgres import PostgresServer

_REPEATS = 12
_FILL = [
    "SET synchronous_commit = off",
    "INSERT INTO critic_versions (version, base_model, created_at, task) VALUES"
    " (0, 'tiny', now() - interval '90 days', 'math'), (1, 'tiny', now() - interval '60 days', 'math')",
    "INSERT INTO questions (hash, split, created_at, is_keyed) SELECT sha256(int4send(n)),"
    " CASE WHEN n % 5 = 0 THEN 'heldout' ELSE 'train' END, now() - (:rows - n) * interval '5 seconds', true"
    " FROM generate_series(1, :rows) AS n",
    "INSERT INTO episodes (id, question_hash, created_at) SELECT md5('e' || n)::uuid, sha256(int4send(n)), now()"
    " FROM generate_series(1, :rows) AS n",
    "INSERT INTO interactions (id, kind, created_at, episode_id, question_hash, question, response, metadata,"
    " parameters, critic_version, verdict, prompt_tokens, completion_tokens, text_sha256, task)"
    " SELECT md5('i' || n)::uuid, 'critique', now() - (:rows - n) * interval '5 seconds', md5('e' || n)::uuid,"
    " sha256(int4send(n)), 'A box of type t' || n % 5000 || ' holds ' || n || ' pens. How many pens are in 2 boxes'"
    " || ' and ' || n % 97 || ' loose pens of ' || CASE WHEN n % 9973 = 0 THEN 'vermilion' ELSE 'blue' END || ' ink?',"
    " 'There are 2 * ' || n || ' pens in the boxes. With the loose ones the answer is ' || 2 * n, '{}', '{}', n % 2,"
    " CASE WHEN n % 20000 = 0 THEN 'unparsed' WHEN n % 3 = 0 THEN 'incorrect' ELSE 'correct' END, 300, 100,"
    " sha256(int4send(-n)), CASE WHEN n % 50000 = 0 THEN 'law' ELSE 'math' END FROM generate_series(1, :rows) AS n",
    "INSERT INTO critiques (id, interaction_id, position, round, sample, text, stated, verdict, verdict_source,"
    " p_correct, p_incorrect, prompt_tokens, completion_tokens, supplied)"
    " SELECT md5('c' || n)::uuid, md5('i' || n)::uuid, 0, 0, 0, repeat('2 * 3 = 6 is right. ', 20),"
    " CASE WHEN n % 3 = 0 THEN 'incorrect' ELSE 'correct' END, CASE WHEN n % 3 = 0 THEN 'incorrect' ELSE 'correct' END,"
    " 'stated', CASE WHEN n % 3 = 0 THEN 0.1 ELSE 0.9 END * (0.9 + 0.1 * sin(n)), 0.05, 300, 100, false"
    " FROM generate_series(1, :rows) AS n",
    "INSERT INTO answers (question_hash, text_sha256, votes, standing, is_right, voted_right, source, changed_at)"
    " SELECT sha256(int4send(n)), sha256(int4send(-n)),"
    ' \'[{"key": null, "source": "person", "right": true}]\', CASE WHEN n % 1000 = 0 THEN \'conflict\' ELSE \'agreed\''
    " END, CASE WHEN n % 1000 = 0 THEN NULL ELSE n % 4 <> 0 END, n % 4 <> 0, 'person',"
    " now() - (:rows - n) * interval '5 seconds' FROM generate_series(1, :rows, 20) AS n",
]

FILTERS: dict[str, Filters] = {
    "all": Filters(),
    "verdict incorrect": Filters(verdict=Verdict.INCORRECT),
    "verdict unparsed (rare)": Filters(verdict=Verdict.UNPARSED),
    "label right": Filters(label=LabelState.RIGHT),
    "label none": Filters(label=LabelState.NONE),
    "label conflict": Filters(label=LabelState.CONFLICT),
    "confidence 0.5 to 0.6": Filters(confidence_from=0.5, confidence_to=0.6),
    "confidence 0 to 0.01 (none)": Filters(confidence_from=0.0, confidence_to=0.01),
    "task law (rare)": Filters(task="law"),
    "critic 1": Filters(critic_version=1),
    "words: pens (all)": Filters(words="pens"),
    "words: vermilion (rare)": Filters(words="vermilion"),
    "words: t17 boxes": Filters(words="t17 boxes"),
    "words: nowhere": Filters(words="nowhere"),
    "incorrect, labelled wrong": Filters(verdict=Verdict.INCORRECT, label=LabelState.WRONG),
}


async def _timed(work: Callable[[], Awaitable[Any]]) -> tuple[float, float]:
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        await work()
        times.append(1000 * (time.perf_counter() - began))
    times.sort()
    return statistics.median(times), times[-1]


async def measure(url: str) -> None:
    """Print a line for each query."""
    async with Database(url, timeout_s=60) as database:

        async def run(call: Callable[..., Awaitable[Any]], **given: Any) -> Any:
            async with database.session() as session:
                return await call(session, **given)

        cases: dict[str, Callable[[], Awaitable[Any]]] = {
            f"list: {name}": lambda filters=filters: run(  # type: ignore[misc]
                store.interactions.list_interactions, scope=None, filters=filters, limit=50
            )
            for name, filters in FILTERS.items()
        }
        cases["label queue"] = lambda: run(
            store.label_queue.waiting_answers, scope=None, voter=None, labeller="a", limit=3, heldout_share=0.2
        )
        cases["label counts"] = lambda: run(store.label_queue.labelled_questions)
        for name, work in cases.items():
            median, slowest = await _timed(work)
            print(f"{name:35} median {median:7.1f} ms   slowest of {_REPEATS} {slowest:7.1f} ms", flush=True)


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory(prefix="gadfly-") as folder:
        server = PostgresServer(Path(folder))
        server.options["fsync"] = "off"
        server.start()
        try:
            server.execute("CREATE DATABASE traffic")
            url = server.url_of("traffic")
            migrate(url)
            asyncio.run(_fill(url, rows))
            asyncio.run(measure(url))
        finally:
            server.kill()


async def _fill(url: str, rows: int) -> None:
    async with Database(url, timeout_s=900) as database:
        for statement in _FILL:
            began = time.perf_counter()
            async with database.session(limit_s=900) as session:
                await session.execute(text(statement), {"rows": rows} if ":rows" in statement else {})
            print(f"{time.perf_counter() - began:6.1f} s  {statement[:60]}", flush=True)
        async with database.session(limit_s=900) as session:
            for table in ("questions", "interactions", "critiques", "answers"):
                await session.execute(text(f"ANALYZE {table}"))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
