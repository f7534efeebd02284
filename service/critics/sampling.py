"""Has every engine prove that it samples as it reports: at the start, and again after a connection failed."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from gadfly.engine_client import Engine
from gadfly.errors import EngineTimeout, EngineUnavailable, GadflyError
from gadfly.repeating import repeat
from gadfly.sampling_proof import prove_sampling
from gadfly.settings import without_password

_TICK_S = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Outcome:
    drops: int  # the engine's failed connections before the proof
    fault: str | None  # why the engine has not proven it


class SamplingProofs:
    """Which engines have proven that they sample as they report. A fault does not keep an engine from answering."""

    def __init__(self, engines: Sequence[Engine], *, temperature: float) -> None:
        self._engines = engines
        self._temperature = temperature
        self._outcomes: dict[str, _Outcome] = {}  # by URL

    @property
    def faults(self) -> list[str]:
        """The engines that have not proven it, each with the reason."""
        return [
            f"{without_password(engine.url)}: {outcome.fault}"
            for engine in self._engines
            if (outcome := self._outcomes.get(engine.url)) is not None and outcome.fault is not None
        ]

    @property
    def proven(self) -> int:
        """The number of engines that have proven it."""
        outcomes = (self._outcomes.get(engine.url) for engine in self._engines)
        return sum(outcome is not None and outcome.fault is None for outcome in outcomes)

    def forget(self, engine: Engine) -> None:
        """Drop the outcome of an engine that joined or was removed."""
        self._outcomes.pop(engine.url, None)

    async def run(self) -> None:
        """Have engines prove it until cancelled: each once, and again when another process may have taken its place."""

        async def prove_all() -> None:
            await asyncio.gather(*(self._prove(engine) for engine in self._engines if self._is_due(engine)))

        await repeat(prove_all, wait=partial(asyncio.sleep, _TICK_S), failure="engines_not_checked", waits_first=False)

    def _is_due(self, engine: Engine) -> bool:
        known = self._outcomes.get(engine.url)
        return known is None or known.drops != engine.drops

    async def _prove(self, engine: Engine) -> None:
        drops, where = engine.drops, without_password(engine.url)
        try:
            proof = await prove_sampling(engine, temperature=self._temperature)
        except (EngineUnavailable, EngineTimeout):
            return  # the next round tries again
        except GadflyError as error:
            log.error("engine_sampling_not_proven", engine=where, reason=str(error))
            self._outcomes[engine.url] = _Outcome(drops, str(error))
            return
        log.info("engine_sampling_proven", engine=where, draws=proof.draws, seconds=round(proof.seconds, 2))
        self._outcomes[engine.url] = _Outcome(drops, None)
