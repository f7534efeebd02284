"""The hot swap: prove the new critic on every engine, move the pointer, let requests in flight finish, unload.

Each task's live critic has a swapper of its own. The eldest replica does a pending swap; the others see the pointer
move and follow once their own engines have proven the critic. A failure before the pointer
moves refuses the swap and changes nothing: the old critic goes on answering. No request waits for a swap, and no swap
ends a request.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from datetime import datetime
from uuid import UUID

import structlog

from gadfly import store, tracing
from gadfly.errors import Conflict, GadflyError, NoSlot, StoreUnavailable
from gadfly.records import CanaryTerms, CriticVersion, Swap, SwapKind, SwapStatus, now
from gadfly.repeating import repeat
from gadfly.service.critics.loader import Loader
from gadfly.service.critics.pointers import CriticLine, CriticPointers
from gadfly.service.critics.receipts import Handover, SwapReceipts
from gadfly.service.critics.replicas import Replicas
from gadfly.service.critics.upkeep import EngineUpkeep
from gadfly.service.critics.verification import Proof
from gadfly.service.metrics import Metrics
from gadfly.store.database import Database

_POLL_S = 0.05

log = structlog.get_logger(__name__)


class Swapper:
    """Follows the live pointer of a task, and moves it."""

    def __init__(
        self,
        *,
        database: Database,
        line: CriticLine,
        pointers: CriticPointers,
        loader: Loader,
        replicas: Replicas,
        receipts: SwapReceipts,
        upkeep: EngineUpkeep,
        metrics: Metrics,
        quorum: float,
    ) -> None:
        """`quorum`: the share of the engines that must prove a critic before it becomes the live one."""
        self._quorum = quorum
        self._database = database
        self._line = line
        self._pointers = pointers
        self._loader = loader
        self._replicas = replicas
        self._metrics = metrics
        self._receipts = receipts
        self._upkeep = upkeep
        self._not_adopted: tuple[int, str] | None = None  # the version of the last failed adoption, and the reason
        self.problem: str | None = None  # why this replica does not serve the live critic

    # ----------------------------------------------------------------------------------------------------- requests

    async def request(
        self,
        *,
        version: int | None,
        kind: SwapKind,
        from_version: int | None = None,
        canary: CanaryTerms | None = None,
        key_id: UUID | None,
        reason: str | None,
        patience_s: float,
    ) -> Swap:
        """Request a swap and wait for its end, at most `patience_s`; then it is returned as pending.

        A requested swap survives an outage of Postgres and goes on afterwards.

        Raises:
            NotFound, Conflict: as `gadfly.store.swaps.request_swap`.
            StoreUnavailable: Postgres is unavailable, so the swap was not requested.
        """
        async with self._database.session() as session:
            swap = await store.swaps.request_swap(
                session,
                version=version,
                kind=kind,
                from_version=from_version,
                key_id=key_id,
                reason=reason,
                task=self._line.task,
                canary=canary,
            )
        self._pointers.refresh_soon()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while swap.status is SwapStatus.PENDING:
                    await asyncio.sleep(_POLL_S)
                    with suppress(StoreUnavailable):
                        async with self._database.session() as session:
                            swap = await store.swaps.read_swap(session, swap.id)
        return swap

    # --------------------------------------------------------------------------------------------- background tasks

    async def run(self) -> None:
        """Do pending swaps and follow the live pointer, after every reading of it, until cancelled."""
        await repeat(self._follow, wait=self._line.next_reading, failure="swap_failed")

    # ------------------------------------------------------------------------------------------------------ a swap

    async def _follow(self) -> None:
        if self._line.serving is None:
            await self._adopt()
        pending = self._line.swaps.pending
        if pending is not None and self._replicas.is_eldest:
            await self._trace(pending)
            await self._pointers.refresh()
        if self._line.current["live"] != self._line.serving:
            await self._adopt()
        live = self._line.current["live"]
        if pending is None and live in self._pointers.incomplete and self._replicas.is_eldest:
            await self._leave_incomplete(live)

    async def _leave_incomplete(self, live: int) -> None:
        """Request the swap from a critic that lost an example of its prompt to the one before, or to the base model."""
        before, task = self._line.current.get("previous"), self._line.task
        base_model = (await self._pointers.resolve(live)).base_model
        reason = f"an example in the prompt of version {live} was deleted with its interaction"
        async with self._database.session() as session:
            version, kind = before, SwapKind.ROLLBACK
            if before is None or before in self._pointers.incomplete:
                version, kind = (await store.critics.base_version(session, base_model, task)).version, SwapKind.PROMOTE
            with suppress(Conflict):  # another swap was requested in the meantime
                await store.swaps.request_swap(
                    session, version=version, kind=kind, from_version=live, reason=reason, task=task
                )
        log.warning("critic_lost_an_example", version=live, task=task, reason=reason)
        self._pointers.refresh_soon()

    async def _trace(self, swap: Swap) -> None:
        """Do a swap in a trace of its own."""
        attributes = {
            "gadfly.swap_id": swap.id,
            "gadfly.task": swap.task,
            "gadfly.swap_kind": swap.kind,
            "gadfly.critic_version": swap.version,
            "gadfly.from_version": swap.from_version,
        }
        with tracing.root("swap", attributes, trace_id=swap.id):
            await self._do(swap)

    async def _do(self, swap: Swap) -> None:
        critic = await self._pointers.resolve(swap.version)
        began_at = now()
        try:
            # The way back must not need every engine: one may be broken, and this critic was proven before.
            share = self._quorum if swap.kind in (SwapKind.GATE, SwapKind.PROMOTE) else 0.0
            await self._make_room(critic)
            proofs = await self._while_pending(swap, self._loader.prove(critic, share=share))
        except StoreUnavailable:
            raise
        except GadflyError as error:
            await self._refuse(swap, critic, str(error))
            return
        except Exception as error:
            log.exception("proof_failed", critic=critic.engine_name)
            await self._refuse(swap, critic, f"proving the critic failed: {type(error).__name__}: {error}")
            return
        if proofs is None:
            return
        proved_at = now()
        with tracing.span("move_pointer"):
            async with self._database.session() as session:
                finished = await store.swaps.move_pointer(session, swap.id)
        tracing.annotate({"gadfly.swap_status": finished.swap.status})
        if finished.ended_here:
            self._count(finished.swap)
        if finished.swap.status is SwapStatus.DONE:
            self._serve(finished.swap, critic, proofs, began_at=began_at, proved_at=proved_at)

    async def _while_pending(self, swap: Swap, proof: Awaitable[list[Proof]]) -> list[Proof] | None:
        """The proofs, or None if the swap ends before them: a rollback supersedes a promotion without waiting."""
        proving = asyncio.ensure_future(proof)
        try:
            while not proving.done():
                await asyncio.wait((proving,), timeout=_POLL_S)
                pending = self._line.swaps.pending
                if not proving.done() and (pending is None or pending.id != swap.id):
                    log.info("swap_superseded", version=swap.version, kind=swap.kind.value)
                    self._metrics.swaps.labels(swap.kind.value, SwapStatus.REFUSED.value, swap.task).inc()
                    return None
            return await proving
        finally:
            if not proving.done():
                proving.cancel()
                await asyncio.wait((proving,))

    async def _refuse(self, swap: Swap, critic: CriticVersion, reason: str) -> None:
        async with self._database.session() as session:
            finished = await store.swaps.finish_swap(session, swap.id, SwapStatus.REFUSED, reason)
        tracing.annotate({"gadfly.swap_status": finished.swap.status})
        if finished.ended_here:
            self._count(finished.swap)
            if critic.version not in self._upkeep.in_use(with_candidate=False):
                await self._loader.unload_everywhere(critic)

    def _count(self, swap: Swap) -> None:
        kind, status = swap.kind.value, swap.status.value
        self._metrics.swaps.labels(kind, status, swap.task).inc()
        log.info("swap_finished", task=swap.task, version=swap.version, kind=kind, status=status, reason=swap.reason)

    async def _make_room(self, critic: CriticVersion) -> None:
        """Free a slot if a critic that is not in use has one. Without one, the engine still has room for a few more."""
        if critic.adapter_path is not None:
            with suppress(NoSlot):
                await self._loader.make_room(critic)

    async def _adopt(self) -> None:
        """Serve the critic of the live pointer once an engine of this replica has proven it; until then the old one.

        At the start of a replica, that of an idle task without a free slot is proven at its first request instead.
        """
        began_at = now()
        critic = await self._pointers.resolve(self._line.current["live"])
        if self._line.serving is None and not self._loader.is_busy(self._line) and not self._loader.has_room(critic):
            self._begin(critic)
            return
        try:
            self._loader.raise_recent_refusal(critic)
            await self._make_room(critic)
            proofs = await self._loader.prove(critic, share=0.0)
        except StoreUnavailable:
            raise
        except GadflyError as error:
            self._metrics.adoptions.labels("failed").inc()
            serving = self._line.serving
            still = "" if serving is None else f", still answering with {serving}"
            of_task = "" if self._line is self._pointers.default else f" of the task {critic.task}"
            self.problem = f"the live critic {critic.version}{of_task} is not served here (see the log){still}"
            if (critic.version, str(error)) != self._not_adopted:  # every attempt of each second has the same reason
                log.warning("live_critic_not_served", critic=critic.engine_name, reason=str(error), still=serving)
            self._not_adopted = critic.version, str(error)
            return
        if self._line.current["live"] != critic.version:
            self._pointers.refresh_soon()  # the pointer has moved again; the next reading starts another adoption
            return
        if self._line.serving is None:
            self._begin(critic)
            return
        swap = self._line.swaps.last_done
        if swap is None or swap.version != critic.version:
            await self._pointers.refresh()  # the pointer was moved without a swap
            return
        self._serve(swap, critic, proofs, began_at=began_at, proved_at=now())

    def _begin(self, critic: CriticVersion) -> None:
        self._line.serving = critic.version
        self.problem = self._not_adopted = None
        self._metrics.live.labels(critic.task).set(critic.version)
        self._metrics.adoptions.labels("done").inc()

    def _serve(
        self, swap: Swap, critic: CriticVersion, proofs: Sequence[Proof], *, began_at: datetime, proved_at: datetime
    ) -> None:
        left = self._line.known_live
        self._begin(critic)  # requests resolved from here on get the new critic
        if left is None or left == critic.version:
            return
        known = self._pointers.known(left)
        assert known is not None
        self._receipts.begin(
            Handover(
                swap=swap,
                left=known,
                critic=critic,
                proofs=proofs,
                began_at=began_at,
                proved_at=proved_at,
                moved_at=now(),
            )
        )
