"""What forgetting costs those who write meanwhile: `python -m bench.forget [--interactions 200000]`.

The interactions of `bench.scale`, a third of them labelled, are all deleted in three ways, each from a database of its
own: by one DELETE statement (which counts no label again and leaves no tombstone, so it is the least that a single
transaction would do), in batches as `POST /admin/forget` does, and in batches with pauses, as retention does. Meanwhile
a writer stores one record after the other, half of them with feedback about the oldest interaction, the next to be
deleted. Shown are the transactions that delete, and the writer's.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy import select, text

from bench import scale
from gadfly import store
from gadfly.errors import NotFound, StoreUnavailable
from gadfly.records import now
from gadfly.service.forgetting import DeletedBatch, batches
from gadfly.store.database import Database, migrate
from gadfly.store.embedded import EmbeddedPostgres
from gadfly.store.forgetting import What
from gadfly.store.tables import InteractionRow
from tests.support.records import make_feedback, make_interaction

_PAUSE_S = 0.01  # between two records of the writer


@dataclass(slots=True)
class Taken:
    """Seconds of each transaction, and what was deleted."""

    deleting: list[float] = field(default_factory=list)
    writing: list[float] = field(default_factory=list)
    failed: int = 0  # records of the writer that waited until Postgres' limit for locks
    deleted: int = 0
    total_s: float = 0.0


async def at_once(database: Database, what: What) -> AsyncGenerator[DeletedBatch, None]:
    started = time.perf_counter()
    async with database.session(limit_s=3600) as session:
        await session.execute(text("SET LOCAL statement_timeout = 0"))
        found = await session.scalars(
            text("DELETE FROM interactions WHERE created_at < :until RETURNING id"), {"until": what.until}
        )
        deleted = list(found)
    yield DeletedBatch(deleted=deleted, took_s=time.perf_counter() - started)


async def in_batches(database: Database, what: What) -> AsyncGenerator[DeletedBatch, None]:
    async for batch in batches(database, what, skip_locked=False):
        yield batch


async def with_pauses(database: Database, what: What) -> AsyncGenerator[DeletedBatch, None]:
    async for batch in batches(database, what, skip_locked=True):
        yield batch
        await asyncio.sleep(batch.took_s)


Way = Callable[[Database, What], AsyncGenerator[DeletedBatch, None]]
WAYS: dict[str, Way] = {"one DELETE": at_once, "batches": in_batches, "batches, with pauses": with_pauses}


async def write(database: Database, taken: Taken) -> None:
    """Store records until cancelled: in turns a new interaction, and feedback about the oldest one."""
    number = 0
    while True:
        number += 1
        started = time.perf_counter()
        try:
            async with database.session(limit_s=600) as session:
                await session.execute(text("SET LOCAL statement_timeout = 0"))
                record, feedback = make_interaction(question=f"What is {number} + 1?", reference="5"), []
                if number % 2:
                    oldest = select(InteractionRow.id).order_by(InteractionRow.created_at, InteractionRow.id).limit(1)
                    feedback = [make_feedback(await session.scalar(oldest) or record.id, correct=True)]
                await store.interactions.insert_interactions(session, [record], feedback, heldout_share=0.2)
        except NotFound:  # deleted while the writer waited
            pass
        except StoreUnavailable:
            taken.failed += 1
        taken.writing.append(time.perf_counter() - started)
        await asyncio.sleep(_PAUSE_S)


async def delete(database: Database, way: Way, taken: Taken, limit_s: float) -> None:
    started = time.perf_counter()
    async for batch in way(database, What(until=now())):
        taken.deleting.append(batch.took_s)
        taken.deleted += len(batch.deleted)
        if time.perf_counter() - started > limit_s:
            break
    taken.total_s = time.perf_counter() - started


async def measure(url: str, way: Way, interactions: int, limit_s: float) -> Taken:
    taken = Taken()
    async with Database(url, timeout_s=5.0) as database:
        await scale.fill(database, interactions)
        writer = asyncio.create_task(write(database, taken))
        try:
            await asyncio.sleep(2)
            taken.writing.clear()
            await delete(database, way, taken, limit_s)
        finally:
            writer.cancel()
            ended = await asyncio.gather(writer, return_exceptions=True)
    assert isinstance(ended[0], asyncio.CancelledError), ended
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=200_000)
    parser.add_argument("--way", choices=WAYS, action="append", help="only this one; may be repeated")
    parser.add_argument("--seconds", type=float, default=600.0, help="end the batches of a way after this time")
    options = parser.parse_args()
    table = Table(title=f"Deletion from {options.interactions:,} interactions, seconds")
    for name in (
        "",
        "deleted",
        "total",
        "longest deletion",
        "median",
        "writer: longest wait",
        "p99",
        "median",
        "failed",
    ):
        table.add_column(name, justify="right" if name else "left")
    for name in options.way or WAYS:
        with tempfile.TemporaryDirectory(prefix="gadfly-bench-") as folder, EmbeddedPostgres(Path(folder)) as postgres:
            migrate(postgres.url)
            taken = asyncio.run(measure(postgres.url, WAYS[name], options.interactions, options.seconds))
        writing = sorted(taken.writing)
        p99 = writing[int(0.99 * (len(writing) - 1))]
        figures = (taken.total_s, max(taken.deleting), statistics.median(taken.deleting), writing[-1], p99)
        shown = (f"{figure:.3f}" for figure in (*figures, statistics.median(writing)))
        table.add_row(name, f"{taken.deleted:,}", *shown, str(taken.failed))
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
