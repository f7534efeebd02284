"""Idempotency: repeated requests with the same request id share one run and its result.

Within a process, concurrent requests share a single flight. Across replicas, the first to claim the id in Postgres does
the work; the others wait for the stored result, or take over when the claim's lease expires because its owner died. A
process that starts again frees the claims of the one before it at once.

While Postgres is unavailable there are no claims. A repeat then gets the result that is in this process's memory or in
its spool. A request id that could have been answered elsewhere, or before this process's memory begins, is refused: the
caller repeats it later.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from uuid import UUID

import structlog

from gadfly import store
from gadfly.errors import BadInput, Conflict, StoreUnavailable
from gadfly.records import Interaction
from gadfly.repeating import repeat
from gadfly.service.answering.recent import RecentResults
from gadfly.service.answering.single_flight import SingleFlight
from gadfly.service.keyring import Caller
from gadfly.service.recording.recorder import Recorder
from gadfly.store.claims import Claimed, Done, Held
from gadfly.store.database import Database

log = structlog.get_logger(__name__)

Work = Callable[[], Awaitable[Interaction]]

_LEASE_S = 15.0
_POLL_S = 0.2


class Idempotency:
    """Runs work at most once per (key, request id)."""

    def __init__(
        self,
        database: Database,
        recorder: Recorder,
        *,
        is_alone: Callable[[], bool] = lambda: True,
        recent: RecentResults | None = None,
    ) -> None:
        """`is_alone`: whether no other replica answers requests."""
        self._database = database
        self._recorder = recorder
        self._is_alone = is_alone
        self._recent = RecentResults() if recent is None else recent
        self._owner = recorder.owner
        self._shared: SingleFlight[Interaction] = SingleFlight()
        self._fingerprints: dict[tuple[UUID | None, str], str] = {}
        self._claims: set[UUID] = set()

    async def once(self, caller: Caller, request_id: str, fingerprint: str, work: Work) -> Interaction:
        """The stored result of `request_id`, or that of `work` if there is none yet.

        Raises:
            BadInput: the request id belongs to another request.
            StoreUnavailable: Postgres is unavailable, and the request id may have been answered before.
        """
        key = (caller.key_id, request_id)
        if key in self._shared:
            _must_equal(self._fingerprints[key], fingerprint)
        else:
            self._fingerprints[key] = fingerprint
        try:
            return await self._shared.run(key, lambda: self._first(caller, request_id, fingerprint, work))
        finally:
            if key not in self._shared:
                self._fingerprints.pop(key, None)

    async def _first(self, caller: Caller, request_id: str, fingerprint: str, work: Work) -> Interaction:
        spooled = await self._recorder.lookup_request(request_id, key_id=caller.key_id)
        if spooled is not None:
            _must_equal(spooled.fingerprint, fingerprint)
            return spooled
        try:
            claimed = await self._claim_or_find(caller, request_id, fingerprint)
        except StoreUnavailable as error:
            known = self._recent.get((caller.key_id, request_id))
            if known is not None:
                _must_equal(known.fingerprint, fingerprint)
                return known
            if not (self._is_alone() and self._recent.is_complete):
                raise StoreUnavailable(
                    "Postgres is unavailable, and this request_id may have been answered before: repeat it later"
                ) from error
            log.warning("request_id_not_claimed", request_id=request_id)
            claimed = None
        if isinstance(claimed, Interaction):
            return claimed
        async with self._held(claimed):
            try:
                result = await work()
                self._recent.put((caller.key_id, request_id), result)
                return result
            except Conflict:
                # Two replicas answered, because Postgres was unavailable or too slow to extend the claim. The first
                # stored result counts.
                first = await self._stored(caller, request_id)
                if first is None:
                    raise
                _must_equal(first.fingerprint, fingerprint)
                return first

    async def _stored(self, caller: Caller, request_id: str) -> Interaction | None:
        async with self._database.session() as session:
            return await store.interactions.find_by_request_id(session, request_id, key_id=caller.key_id)

    async def _claim_or_find(self, caller: Caller, request_id: str, fingerprint: str) -> UUID | Interaction:
        """A claim on the request id, or the stored result of another claim's owner.

        Waits while another replica holds the claim. Its lease is extended during the work, and expires if it dies.
        """
        while True:
            match await self._claim(caller, request_id, fingerprint):
                case Claimed(claim_id):
                    return claim_id
                case Done(stored, interaction_id):
                    _must_equal(stored, fingerprint)
                    async with self._database.session() as session:
                        return await store.interactions.read_interaction(session, interaction_id, scope=None)
                case Held(holder, _):
                    _must_equal(holder, fingerprint)
                    await asyncio.sleep(_POLL_S)

    async def _claim(self, caller: Caller, request_id: str, fingerprint: str) -> Claimed | Held | Done:
        async with self._database.session() as session:
            return await store.claims.claim_request(
                session,
                key_id=caller.key_id,
                request_id=request_id,
                fingerprint=fingerprint,
                owner=self._owner,
                lease_s=_LEASE_S,
            )

    @asynccontextmanager
    async def _held(self, claim_id: UUID | None) -> AsyncIterator[None]:
        if claim_id is None:
            yield
            return
        self._claims.add(claim_id)
        try:
            yield
        except BaseException:
            # Storing the result ends the claim. Nothing was stored, so the claim is released: a retry starts at once.
            self._claims.discard(claim_id)
            await asyncio.shield(self._release(claim_id))
            raise
        finally:
            self._claims.discard(claim_id)

    async def _release(self, claim_id: UUID) -> None:
        try:
            async with self._database.session() as session:
                await store.claims.release_claim(session, claim_id)
        except StoreUnavailable:
            log.warning("claim_not_released", claim_id=str(claim_id))

    async def start(self) -> None:
        """Free the claims of the processes before this one, so that their request ids are answered at once.

        Raises:
            StoreUnavailable: Postgres is unavailable.
        """
        if self._recorder.dead_owners:
            async with self._database.session() as session:
                freed = await store.claims.free_claims(session, self._recorder.dead_owners)
            if freed:
                log.info("claims_freed", claims=freed)

    def forget(self, interaction_id: UUID) -> None:
        """Drop the remembered result that is this deleted interaction."""
        self._recent.forget(interaction_id)

    async def run_claim_renewal(self) -> None:
        """Extend the claims of all work in progress, until cancelled."""
        await repeat(self._extend_claims, wait=partial(asyncio.sleep, _LEASE_S / 3), failure="claims_not_extended")

    async def _extend_claims(self) -> None:
        if self._claims:
            async with self._database.session() as session:
                await store.claims.extend_claims(session, self._owner, tuple(self._claims), lease_s=_LEASE_S)


def _must_equal(known: str | None, fingerprint: str) -> None:
    if known != fingerprint:
        raise BadInput("this request_id was used for another request", field="request_id")
