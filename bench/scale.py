"""What reads over a large log cost: `python -m bench.scale [--interactions 1000000]`.

An embedded Postgres gets interactions with one critique each, made inside the server; every third has a label, every
fifth question is held out. Then each read runs three times, as its user runs it: the median is shown, and for the
rollback watch also its first look after a start. Needs about 1.5 GB on the disk for a million.
"""

import argparse
import asyncio
import resource
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly import store
from gadfly.records import Split, now
from gadfly.store.database import Database, migrate
from gadfly.store.embedded import EmbeddedPostgres
from gadfly.store.interactions import Filters
from gadfly.store.watch import OutcomeLog
from gadfly.training import TrainConfig

_ROUNDS = 3

_FILL = (
    "SET LOCAL session_replication_role = replica",  # without checks of foreign keys, which hold by construction
    "SET LOCAL statement_timeout = 0",
    """INSERT INTO questions (hash, split, created_at, is_keyed)
    SELECT sha256(n::text::bytea), CASE WHEN n % 5 = 0 THEN 'heldout' ELSE 'train' END,
        now() - make_interval(secs => :n - n), true FROM generate_series(1, :n) AS n""",
    """INSERT INTO episodes (id, question_hash, critic_version, created_at)
    SELECT md5('e' || n)::uuid, sha256(n::text::bytea), 0, now() - make_interval(secs => :n - n)
    FROM generate_series(1, :n) AS n""",
    """INSERT INTO interactions (id, kind, created_at, stored_at, episode_id, question_hash, question, response,
        reference, grade, own_grade, grader, metadata, parameters, model, prompt_set, critic_version, verdict,
        prompt_tokens, completion_tokens, latency_ms, text_sha256)
    SELECT md5('i' || n)::uuid, 'critique', now() - make_interval(secs => :n - n),
        now() - make_interval(secs => :n - n), md5('e' || n)::uuid, sha256(n::text::bytea),
        'A box holds ' || n || ' pens. Ann buys 5 boxes and gives 17 pens away. How many pens are left?',
        'She buys 5 * ' || n || ' pens, and has ' || 5 * n - 17 || ' left. The answer is ' || 5 * n - 17 || '.',
        CASE WHEN n % 3 = 0 THEN (5 * n - 17 + n % 2)::text END,
        CASE WHEN n % 3 = 0 THEN CASE WHEN n % 2 = 0 THEN 'right' ELSE 'wrong' END END,
        CASE WHEN n % 3 = 0 THEN CASE WHEN n % 2 = 0 THEN 'right' ELSE 'wrong' END END,
        CASE WHEN n % 3 = 0 THEN 1 END, '{}', '{"temperature": 0.0, "max_tokens": 256}', 'bench', 'stepwise@1',
        CASE WHEN 2 * n > :n THEN 1 ELSE 0 END, 'correct', 200, 100, 500, sha256(('r' || n)::bytea)
    FROM generate_series(1, :n) AS n""",
    """INSERT INTO critiques (id, interaction_id, position, round, sample, text, stated, verdict, verdict_source,
        p_correct, p_incorrect, finish_reason, prompt_tokens, completion_tokens, supplied)
    SELECT md5('c' || n)::uuid, md5('i' || n)::uuid, 0, 0, 0,
        'The number of pens is right, step by step. Correctness of the final answer: correct', 'correct', 'correct',
        'stated', 0.8, 0.2, 'stop', 200, 100, false FROM generate_series(1, :n) AS n""",
    """INSERT INTO answers (question_hash, text_sha256, votes, voted_right, standing, is_right, source, changed_at)
    SELECT sha256(n::text::bytea), sha256(('r' || n)::bytea),
        jsonb_build_array(jsonb_build_object('key', null, 'source', 'reference', 'right', n % 2 = 0)),
        n % 2 = 0, 'agreed', n % 2 = 0,
        'reference', now() - make_interval(secs => :n - n) FROM generate_series(3, :n, 3) AS n""",
)


async def fill(database: Database, interactions: int) -> float:
    """Seconds that it took."""
    started = time.perf_counter()
    async with database.session(limit_s=3600) as session:
        await store.critics.ensure_version_zero(session, "bench")
        await session.execute(
            text("INSERT INTO critic_versions (version, parent, base_model, created_at) VALUES (1, 0, 'bench', now())")
        )
        for statement in _FILL:
            await session.execute(text(statement), {"n": interactions} if ":n" in statement else {})
    async with database.session(limit_s=3600) as session:
        await session.execute(text("SET LOCAL statement_timeout = 0"))
        await session.execute(text("ANALYZE"))
    return time.perf_counter() - started


async def median_s(database: Database, read: Callable[[AsyncSession], Awaitable[object]]) -> float:
    taken = []
    for _ in range(_ROUNDS):
        async with database.session(limit_s=600) as session:
            await session.execute(text("SET LOCAL statement_timeout = 0"))
            started = time.perf_counter()
            await read(session)
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


async def export(session: AsyncSession, limit: int) -> int:
    rows = 0
    async for part in store.interactions.stream_interactions(session, Filters(), batch=500):
        rows += len(part)
        if rows >= limit:
            break
    return rows


async def measure(database: Database, console: Console, interactions: int) -> None:
    limit = TrainConfig().max_questions
    since = now() - timedelta(seconds=interactions / 2)
    log = OutcomeLog(version=1, since=since)
    reads: list[tuple[str, Callable[[AsyncSession], Awaitable[object]]]] = [
        ("watch, first look", lambda session: OutcomeLog(version=1, since=since).refresh(session)),
        ("watch, each later look", lambda session: log.refresh(session)),  # noqa: PLW0108
        ("watch, the critic before", lambda session: OutcomeLog(version=0).refresh(session)),
        ("label trigger", lambda session: store.training_data.count_new_labels(session, at_most=200)),
        ("status: rows", store.interactions.count_rows),
        ("page", lambda s: store.interactions.list_interactions(s, scope=None, filters=Filters(), limit=50)),
        ("dry run: train side", lambda s: store.training_data.answers_to_learn_from(s, limit=limit)),
        ("dry run: held-out side", lambda s: store.training_data.labelled_answers(s, Split.HELDOUT, limit=limit)),
        ("dry run: patterns of votes", store.labels.read_patterns),
    ]
    async with database.session(limit_s=600) as session:
        await session.execute(text("SET LOCAL statement_timeout = 0"))
        await log.refresh(session)
    table = Table(title=f"{interactions:,} interactions, median of {_ROUNDS}")
    table.add_column("read")
    table.add_column("seconds", justify="right")
    for name, read in reads:
        seconds = await median_s(database, read)
        console.print(f"{name}: {seconds:.3f} s", style="dim")
        table.add_row(name, f"{seconds:.3f}")
    console.print(table)
    for rows in (5_000, 50_000):
        async with database.session(limit_s=600) as session:
            await export(session, rows)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        console.print(f"largest memory of this process after an export of {rows:,} rows: {peak:.0f} MB")


async def run(url: str, interactions: int) -> None:
    console = Console(width=120)
    async with Database(url, timeout_s=5.0) as database:
        console.print(f"filled in {await fill(database, interactions):.0f} s")
        await measure(database, console, interactions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gadfly-bench-") as folder, EmbeddedPostgres(Path(folder)) as postgres:
        migrate(postgres.url)
        asyncio.run(run(postgres.url, options.interactions))


if __name__ == "__main__":
    main()
