"""A run's use of the serving engines: its adapters under names that are never reused, and retries during outages."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import structlog

from gadfly import tracing
from gadfly.concurrency import gather
from gadfly.engine_client import Engine
from gadfly.engine_fleet import EngineFleet
from gadfly.engine_pool import EnginePool
from gadfly.errors import EngineError, EngineTimeout, EngineUnavailable, GadflyError, WrongSampling
from gadfly.sampling_proof import prove_sampling
from gadfly.settings import without_password

ROLLOUT_PRIORITY = 10  # live requests have a lower number and go first
PREFIX = "run@"

T = TypeVar("T")
log = structlog.get_logger(__name__)

REQUEST_LIMIT_S = 3600.0
"""Time limit of a rollout's request, which waits while live requests are in progress."""

_PATIENCE_S = 900.0  # a restarted engine loads its model first
_LONGEST_WAIT_S = 15.0
_WORKED_S = 30.0  # work that fails later than this has made progress, so the patience starts again


@dataclass(slots=True)
class RunEngines:
    """All engines of the deployment. A run loads its adapters on each of them, since rollouts go to any."""

    pool: EnginePool
    run_id: UUID
    sequences: int  # most sequences that one engine runs at a time
    patience_s: float = _PATIENCE_S
    temperature: float | None = None  # of the rollouts; with it, engines prove that they sample as they report
    fleet: EngineFleet | None = None  # where engines are found again that changed their address; None: only in the pool
    _proven: dict[Engine, int] = field(default_factory=dict)  # with its drops before the proof
    _loaded: dict[str, Path] = field(default_factory=dict)

    def at_once(self, samples: int) -> int:
        """How many concurrent requests of `samples` samples keep all engines busy; more would wait in their queues."""
        return max(1, len(self.pool.members) * self.sequences // samples)

    async def prove_sampling(self) -> None:
        """Have every engine prove that it samples as it reports; those that do not get no rollouts.

        Raises:
            WrongSampling: no engine does.
            EngineUnavailable, EngineTimeout: as `patiently`.
        """
        await self.patiently(self._prove_sampling)

    async def _prove_sampling(self) -> None:
        if self.temperature is None:
            return
        fault: GadflyError | None = None
        members = []
        for engine in self.pool.members if self.fleet is None else tuple(self.fleet):
            drops = engine.drops
            try:
                if self._proven.get(engine) != drops:
                    await prove_sampling(engine, temperature=self.temperature)
                    self._proven[engine] = drops
                members.append(engine)
            except (EngineUnavailable, EngineTimeout):
                raise
            except GadflyError as error:
                fault = error
                log.error("engine_sampling_not_proven", engine=without_password(engine.url), reason=str(error))
        if not members and fault is None:
            raise EngineUnavailable("no engine is known: the names in GADFLY_ENGINE_URLS lead to no address")
        if not members:
            raise WrongSampling(f"no engine can be used for rollouts: {fault}") from fault
        self.pool.keep(members)

    def name(self, label: str) -> str:
        """The name that engines serve an adapter of this run under. A resumed run may load the same folder again."""
        return f"{name_prefix(self.run_id)}{label}"

    async def load(self, name: str, folder: Path) -> None:
        """Load the adapter in a folder on every engine as `name`.

        Raises:
            AdapterRefused: an engine cannot load it.
            EngineUnavailable, EngineTimeout: as `patiently`.
        """
        self._loaded[name] = folder
        await self.patiently(self._load_again)

    async def unload(self, name: str) -> None:
        """Unload an adapter that no request in flight uses. An unavailable engine loses its adapters anyway."""
        self._loaded.pop(name, None)
        for engine in self.pool.members:
            try:
                await engine.unload_adapter(name)
            except (EngineUnavailable, EngineTimeout) as error:
                log.warning(
                    "adapter_not_unloaded", adapter=name, engine=without_password(engine.url), reason=str(error)
                )

    async def unload_all(self) -> None:
        for name in list(self._loaded):
            await self.unload(name)

    async def patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work`, retried while an engine is unavailable or too busy. A restarted engine gets the adapters back.

        The requests of a run are thousands, so they have no spans of their own.

        Raises:
            EngineUnavailable, EngineTimeout: an engine stayed unavailable for `patience_s` seconds.
        """
        failing_since: float | None = None
        wait_s = 0.5
        while True:
            began = time.monotonic()
            try:
                with tracing.unrecorded():
                    return await work()
            except (EngineUnavailable, EngineTimeout) as error:
                now = time.monotonic()
                if failing_since is None or now - began > _WORKED_S:
                    failing_since, wait_s = now, 0.5
                if now - failing_since > self.patience_s:
                    raise
                log.warning("engine_unavailable", reason=str(error), retry_in_s=wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                try:
                    if self.fleet is not None:
                        await self.fleet.look_if_due()
                    await self._prove_sampling()
                    await self._load_again()
                except (EngineUnavailable, EngineTimeout):
                    pass  # still unavailable: the next attempt reports it

    async def _load_again(self) -> None:
        loads = [(engine, name, path) for name, path in self._loaded.items() for engine in self.pool.members]
        await gather(*(engine.load_adapter(name, path) for engine, name, path in loads))


def name_prefix(run_id: UUID) -> str:
    """The common prefix of the names of a run's adapters."""
    return f"{PREFIX}{run_id}/"


async def sweep(pool: EnginePool, run_id: UUID) -> None:
    """Unload the adapters that a killed run left on the engines."""
    for engine in pool.members:
        try:
            for name in await engine.models():
                if name.startswith(name_prefix(run_id)):
                    await engine.unload_adapter(name)
        except EngineError as error:
            log.warning("engine_not_swept", engine=without_password(engine.url), reason=str(error))
