"""Reconciles each engine once a second: loads live critics where they are missing and unloads unused adapters.

An engine that restarts therefore gets the live critics without a request. Where tasks have more live critics than the
engines have slots, those of idle tasks wait for their next request.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import structlog

from gadfly.engine_client import Engine
from gadfly.errors import EngineError, EngineRefused, EngineTimeout, GadflyError, NoSlot
from gadfly.repeating import repeat
from gadfly.service.critics.leases import Leases
from gadfly.service.critics.loader import Loader
from gadfly.service.critics.pointers import CriticLine, CriticPointers
from gadfly.service.critics.receipts import SwapReceipts
from gadfly.service.critics.replicas import FRESH_S, Replicas
from gadfly.settings import without_password

_TICK_S = 1.0
_UNUSED_S = 2 * FRESH_S + 2.0  # longer than the age of what two replicas know of each other
PINNED_S = 300.0  # how long a critic that is no longer live stays loaded after an episode's last request

log = structlog.get_logger(__name__)


class EngineUpkeep:
    """Keeps the adapters that this replica's engines serve in line with the pointers and the leases."""

    def __init__(
        self,
        *,
        engines: Sequence[Engine],
        pointers: CriticPointers,
        loader: Loader,
        leases: Leases,
        replicas: Replicas,
        receipts: SwapReceipts,
    ) -> None:
        self._engines = engines
        self._pointers = pointers
        self._loader = loader
        self._leases = leases
        self._replicas = replicas
        self._receipts = receipts
        self._unused_since: dict[tuple[str, int], float] = {}  # by engine and version, in the loop's seconds
        self._refusals: dict[str, str] = {}  # by engine's URL: why it refuses this deployment
        self._failed: set[tuple[str, int]] = set()  # engines and live versions that they do not serve

    async def run(self) -> None:
        """Reconcile every engine once a second, until cancelled."""

        async def reconcile_all() -> None:
            engines = tuple(self._engines)  # they may change meanwhile
            outcomes = await asyncio.gather(*map(self._reconcile, engines), return_exceptions=True)
            for engine, outcome in zip(engines, outcomes, strict=True):
                if isinstance(outcome, Exception):
                    log.error("engine_not_reconciled", engine=without_password(engine.url), exc_info=outcome)

        await repeat(
            reconcile_all, wait=partial(asyncio.sleep, _TICK_S), failure="engines_not_reconciled", waits_first=False
        )

    def in_use(self, *, with_candidate: bool) -> set[int]:
        """The versions that any pointer names, any replica serves as live, or any request needs."""
        used = {
            version
            for line in self._pointers
            for name, version in line.current.items()
            if with_candidate or name != "candidate"
        }
        used |= set(self._leases.used_within(PINNED_S)) | self._replicas.others_use()
        return used | {line.serving for line in self._pointers if line.serving is not None}

    @property
    def lacking(self) -> set[str]:
        """URLs of engines that do not serve this replica's live critic of the default task."""
        failed = {url for url, version in self._failed if version == self._pointers.default.serving}
        return failed & {engine.url for engine in self._engines}

    def forget(self, engine: Engine) -> None:
        """Drop what is known of an engine that joined or was removed."""
        self._refusals.pop(engine.url, None)
        self._failed = {(url, version) for url, version in self._failed if url != engine.url}
        for place in [place for place in self._unused_since if place[0] == engine.url]:
            del self._unused_since[place]

    async def _reconcile(self, engine: Engine) -> None:
        try:
            served = self._loader.versions_among(await engine.models())
            self._loader.note_served(engine, served)
            await self._note_adapters(engine)
            self._refusals.pop(engine.url, None)
        except EngineRefused as error:
            self._loader.forget_all(engine)
            self._loader.note_served(engine, ())
            if self._refusals.get(engine.url) != str(error):  # once: only a change of the settings helps
                log.error("engine_refuses", engine=without_password(engine.url), reason=str(error))
            self._refusals[engine.url] = str(error)
            return
        except EngineTimeout:
            return  # it is busy and has not restarted; the next round asks again
        except EngineError:
            self._loader.forget_all(engine)  # another process may answer next
            self._loader.note_served(engine, ())
            return
        for version in self._loader.proven_on(engine):
            critic = self._pointers.known(version)
            has_adapter = critic is None or critic.adapter_path is not None
            if has_adapter and version not in served:  # the engine restarted, or another replica unloaded the adapter
                self._loader.forget(engine, version)
        for line in self._pointers:
            for version in sorted(line.answering() if line.serving is not None else ()):
                await self._load_live(engine, line, version)
        if max(self._pointers.age_s, self._replicas.age_s) < FRESH_S:
            await self._unload_unused(engine, served)

    async def _note_adapters(self, engine: Engine) -> None:
        if engine.known_adapters is None and (problem := (await engine.adapters()).problem):
            log.warning("engine_serves_version_0_only", engine=without_password(engine.url), reason=f"it {problem}")

    async def _load_live(self, engine: Engine, line: CriticLine, version: int) -> None:
        critic = self._pointers.known(version)
        if critic is None:
            return
        place = (engine.url, critic.version)
        if critic.is_base or critic.version in self._loader.proven_on(engine):
            self._failed.discard(place)
            return
        if not self._loader.has_room(critic):
            if not self._loader.is_busy(line):
                self._failed.discard(place)
                return  # it is loaded at the task's next request
            with suppress(NoSlot):  # then it is loaded all the same: the engine has room for a few more
                await self._loader.make_room(critic)
        try:
            self._loader.raise_recent_refusal(critic, engine)
            await self._loader.prove_on(engine, critic, await self._loader.check(critic))
            self._failed.discard(place)
        except GadflyError as error:
            if place not in self._failed:
                where = without_password(engine.url)
                log.warning("engine_lacks_live_critic", critic=critic.engine_name, engine=where, reason=str(error))
            self._failed.add(place)

    async def _unload_unused(self, engine: Engine, served: set[int]) -> None:
        """Unload versions unused for `_UNUSED_S`. Adapters that are not this deployment's versions stay."""
        at = asyncio.get_running_loop().time()
        unused = {version for version in served if self._pointers.known(version)} - self.in_use(with_candidate=True)
        unused -= {line.swaps.pending.version for line in self._pointers if line.swaps.pending is not None}
        for url, version in list(self._unused_since):
            if url == engine.url and version not in unused:
                del self._unused_since[url, version]
        for version in sorted(unused):
            if at - self._unused_since.setdefault((engine.url, version), at) < _UNUSED_S:
                continue
            del self._unused_since[engine.url, version]
            await self._loader.unload(engine, await self._pointers.resolve(version))
            log.info("critic_unloaded", version=version, engine=without_password(engine.url))
            await self._receipts.note_unloaded(version)
