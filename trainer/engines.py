"""The serving engines as a run uses them: adapters of its own under names that are never used again, and patience."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import structlog

from gadfly.concurrency import gather
from gadfly.engine_client import EnginePool
from gadfly.errors import EngineError, EngineTimeout, EngineUnavailable

ROLLOUT_PRIORITY = 10  # the engine lets whoever waits for an answer go first
PREFIX = "run@"

T = TypeVar("T")
log = structlog.get_logger(__name__)

REQUEST_LIMIT_S = 3600.0
"""How long a rollout's request may take: it waits whenever somebody waits for an answer."""

_PATIENCE_S = 900.0  # an engine that restarts has to load its model again
_LONGEST_WAIT_S = 15.0
_WORKED_S = 30.0


@dataclass(slots=True)
class RunEngines:
    """Every engine of the deployment. What a run loads is loaded on all, since any may get a rollout."""

    pool: EnginePool
    run_id: UUID
    sequences: int  # that one engine runs at once
    patience_s: float = _PATIENCE_S
    _loaded: dict[str, Path] = field(default_factory=dict)

    def at_once(self, samples: int) -> int:
        """How many requests of `samples` samples keep all engines busy: more would only wait in their queues."""
        return max(1, len(self.pool.members) * self.sequences // samples)

    def name(self, label: str) -> str:
        """The engine's name for an adapter of this run. A run that is resumed may load the same folder again."""
        return f"{name_prefix(self.run_id)}{label}"

    async def load(self, name: str, folder: Path) -> None:
        """Have every engine serve a folder under `name`.

        Raises:
            AdapterRefused: an engine cannot.
            EngineUnavailable: an engine stayed away.
        """
        self._loaded[name] = folder
        await self.patiently(self._load_again)

    async def unload(self, name: str) -> None:
        """Nobody asks for `name` any more: its requests have ended. An engine that is away has forgotten it anyway."""
        self._loaded.pop(name, None)
        for engine in self.pool.members:
            try:
                await engine.unload_adapter(name)
            except (EngineUnavailable, EngineTimeout) as error:
                log.warning("adapter_not_unloaded", adapter=name, engine=engine.url, reason=str(error))

    async def unload_all(self) -> None:
        for name in list(self._loaded):
            await self.unload(name)

    async def patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work`, and again while the engine is away, too busy or came back without this run's adapters.

        Raises:
            EngineUnavailable, EngineTimeout: it stayed away for `patience_s` seconds.
        """
        failing_since: float | None = None
        wait_s = 0.5
        while True:
            began = time.monotonic()
            try:
                return await work()
            except (EngineUnavailable, EngineTimeout) as error:
                now = time.monotonic()
                if failing_since is None or now - began > _WORKED_S:  # it did a good deal before it failed
                    failing_since, wait_s = now, 0.5
                if now - failing_since > self.patience_s:
                    raise
                log.warning("engine_away", reason=str(error), retry_in_s=wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                await self._bring_back()

    async def _bring_back(self) -> None:
        try:
            await self._load_again()
        except (EngineUnavailable, EngineTimeout):
            pass  # it is still away, which the next try will say

    async def _load_again(self) -> None:
        loads = [(engine, name, path) for name, path in self._loaded.items() for engine in self.pool.members]
        await gather(*(engine.load_adapter(name, path) for engine, name, path in loads))


def name_prefix(run_id: UUID) -> str:
    """What the names of a run's adapters begin with."""
    return f"{PREFIX}{run_id}/"


async def sweep(pool: EnginePool, run_id: UUID) -> None:
    """Unload what a run that was killed left on the engines."""
    for engine in pool.members:
        try:
            for name in await engine.models():
                if name.startswith(name_prefix(run_id)):
                    await engine.unload_adapter(name)
        except EngineError as error:
            log.warning("engine_not_swept", engine=engine.url, reason=str(error))
