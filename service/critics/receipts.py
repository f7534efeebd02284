"""Swap receipts: the proof of each engine, the requests in flight when the critic changed, and how they ended."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import structlog

from gadfly import store
from gadfly.errors import GadflyError, StoreUnavailable
from gadfly.records import CriticVersion, Swap, SwapReceipt, new_id, now
from gadfly.repeating import retry
from gadfly.service.critics.leases import InFlight, Leases
from gadfly.service.critics.loader import Loader
from gadfly.service.critics.replicas import Replicas
from gadfly.service.critics.verification import Proof
from gadfly.store.database import Database

_RETRY_S = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Handover:
    """The change of this replica from one critic to another."""

    swap: Swap
    left: CriticVersion  # the critic before
    critic: CriticVersion  # the critic from now on
    proofs: Sequence[Proof]
    began_at: datetime
    proved_at: datetime
    moved_at: datetime


class SwapReceipts:
    """Writes this replica's swap receipts: at the handover, when the last request on the critic before has ended, and
    when that critic is unloaded.

    `lost` counts the requests of both critics that failed with an engine error between the handover and the end of the
    last request on the critic before. `mixed` counts probes sent again amid the traffic of both critics (`probes`), and
    those not answered as recorded (`mixed`); it is null where neither critic has probes or no engine answered.
    """

    def __init__(self, *, database: Database, loader: Loader, leases: Leases, replicas: Replicas) -> None:
        self._database = database
        self._loader = loader
        self._leases = leases
        self._replicas = replicas
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: dict[int, SwapReceipt] = {}  # by the version before, until it is unloaded

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def begin(self, handover: Handover) -> None:
        """Write the receipt of a handover that has just happened; a background task completes it."""
        in_flight = self._leases.in_flight(handover.left.version)
        receipt = SwapReceipt(
            id=new_id(),
            swap_id=handover.swap.id,
            replica_id=self._replicas.id,
            version=handover.critic.version,
            created_at=handover.moved_at,
            details=_details(handover, in_flight=len(in_flight.ends)),
        )
        task = asyncio.create_task(self._follow(handover, receipt, in_flight, self._failed(handover)))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("receipt_not_completed", exc_info=error)

    async def note_unloaded(self, version: int) -> None:
        """Complete the receipt of the swap away from this version."""
        receipt = self._open.pop(version, None)
        if receipt is not None:
            await self._save(_with_times(receipt, unloaded_at=now()))

    async def _follow(self, handover: Handover, receipt: SwapReceipt, in_flight: InFlight, failed: int) -> None:
        await self._save(receipt)
        mixed = await self._mixed(handover)
        await in_flight.all_ended()
        details = receipt.details | {"lost": self._failed(handover) - failed, "mixed": mixed}
        receipt = _with_times(replace(receipt, details=details), drained_at=now())
        self._open[handover.left.version] = receipt
        await self._save(receipt)

    def _failed(self, handover: Handover) -> int:
        return sum(self._leases.failed[critic.version] for critic in (handover.left, handover.critic))

    async def _mixed(self, handover: Handover) -> dict[str, int] | None:
        probes = mixed = 0
        try:
            for critic in (handover.left, handover.critic):
                sent, mismatches = await self._loader.probe_again(critic)
                probes, mixed = probes + sent, mixed + mismatches
        except GadflyError as error:
            log.warning("critics_not_probed_again", reason=str(error))
            return None
        return {"probes": probes, "mixed": mixed} if probes else None

    async def _save(self, receipt: SwapReceipt) -> None:
        async def insert() -> None:
            async with self._database.session() as session:
                await store.swaps.insert_receipt(session, receipt)

        await retry(insert, on=StoreUnavailable, every_s=_RETRY_S, event="receipt_waits_for_database")


def _details(handover: Handover, *, in_flight: int) -> dict[str, Any]:
    times = {
        "requested_at": handover.swap.requested_at.isoformat(),
        "began_at": handover.began_at.isoformat(),
        "proved_at": handover.proved_at.isoformat(),
        "moved_at": handover.moved_at.isoformat(),
        "drained_at": None,
        "unloaded_at": None,
    }
    return {
        "from_version": handover.left.version,
        "adapter_sha256": handover.critic.adapter_sha256,
        "examples_sha256": handover.critic.examples_sha256,
        "engines": [asdict(proof) for proof in handover.proofs],
        "in_flight": in_flight,
        "lost": None,
        "mixed": None,
        "times": times,
    }


def _with_times(receipt: SwapReceipt, **times: datetime) -> SwapReceipt:
    added = {name: at.isoformat() for name, at in times.items()}
    return replace(receipt, details=receipt.details | {"times": receipt.details["times"] | added})
