"""Whether the service can do its work, and what it is doing."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from pydantic import BaseModel
from sqlalchemy import text

from core.database import Database
from core.engine import Engine, EnginePool
from core.errors import GadflyError
from core.settings import without_password
from service.answering import Answerer
from service.critics import Critics
from service.metrics import Metrics
from service.once import Shared
from service.recorder import Recorder

_BELIEVED_S = 1.0  # /readyz costs a token: asking more often gets the last answer


class Check(BaseModel):
    ok: bool
    detail: str
    seconds: float


class Readiness(BaseModel):
    """`ready` when the service can answer and keep what it answers; each part says why not."""

    ready: bool
    engine: Check
    database: Check
    critic: Check


class EngineState(BaseModel):
    url: str
    in_flight: int
    reachable: bool


class SpoolState(BaseModel):
    records: int
    bytes: int
    rejected: int


class State(BaseModel):
    """What is at work now."""

    status: Literal["starting", "running"]
    uptime_s: float
    live_critic: int | None
    in_flight: dict[str, int]
    engines: list[EngineState]
    records_pending: int
    spool: SpoolState


class Health:
    """Looks at every part by using it: a real token, a real statement, the live critic among the engine's models."""

    def __init__(
        self,
        *,
        database: Database,
        engines: EnginePool,
        critics: Critics,
        recorder: Recorder,
        answerer: Answerer,
        metrics: Metrics,
    ) -> None:
        self._database = database
        self._engines = engines
        self._critics = critics
        self._recorder = recorder
        self._answerer = answerer
        self._metrics = metrics
        self._started_at = time.monotonic()
        self._last: tuple[float, Readiness] | None = None
        self._checks: Shared[Readiness] = Shared()
        self.running = False

    async def check(self) -> Readiness:
        """Check everything now, or return a yes that is at most a second old."""
        if self._last is not None and time.monotonic() - self._last[0] < _BELIEVED_S:
            return self._last[1]
        return await self._checks.run("readiness", self._check)

    async def _check(self) -> Readiness:
        engine, database, critic = await asyncio.gather(
            _timed(self._check_engines), _timed(self._check_database), _timed(self._check_critic)
        )
        readiness = Readiness(
            ready=self.running and engine.ok and database.ok and critic.ok,
            engine=engine,
            database=database,
            critic=critic,
        )
        self._last = (time.monotonic(), readiness) if readiness.ready else None
        self._metrics.ready.set(readiness.ready)
        return readiness

    async def _check_engines(self) -> str:
        # Ready means that requests can be answered, so one living engine of many is enough.
        outcomes = await asyncio.gather(*(engine.probe() for engine in self._engines.engines), return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if len(failures) == len(outcomes):
            raise failures[0]
        return f"{len(outcomes) - len(failures)} of {len(outcomes)} engines generate"

    async def _check_database(self) -> str:
        async with self._database.session() as session:
            await session.execute(text("SELECT 1"))
        return "answers"

    async def _check_critic(self) -> str:
        live = await self._critics.resolve("live")
        served = await asyncio.gather(*map(_models, self._engines.engines))
        if not any(live.engine_name in names for names in served):
            raise GadflyError(f"no engine serves the live critic {live.engine_name}")
        return f"version {live.version} is served as {live.engine_name}"

    def state(self) -> State:
        """What is at work, from memory alone: it answers even when everything else is down."""
        now = time.monotonic()
        return State(
            status="running" if self.running else "starting",
            uptime_s=round(now - self._started_at, 3),
            live_critic=self._critics.known_live,
            in_flight={str(version): count for version, count in sorted(self._answerer.leases.items()) if count},
            engines=[
                EngineState(
                    url=without_password(engine.url), in_flight=engine.in_flight, reachable=engine.down_until <= now
                )
                for engine in self._engines.engines
            ],
            records_pending=self._recorder.pending,
            spool=SpoolState(
                records=self._recorder.spooled,
                bytes=self._recorder.spool_bytes,
                rejected=self._recorder.rejected,
            ),
        )

    def render_metrics(self) -> bytes:
        """Prometheus' text, with the gauges read now."""
        self._metrics.pending.set(self._recorder.pending)
        self._metrics.spool_depth.set(self._recorder.spooled)
        self._metrics.spool_bytes.set(self._recorder.spool_bytes)
        self._metrics.rejected.set(self._recorder.rejected)
        return self._metrics.render()


async def _models(engine: Engine) -> frozenset[str]:
    try:
        return await engine.models()
    except GadflyError:
        return frozenset()


async def _timed(check: Callable[[], Awaitable[str]]) -> Check:
    started = time.perf_counter()
    try:
        detail, ok = await check(), True
    except GadflyError as error:
        detail, ok = str(error), False
    return Check(ok=ok, detail=detail, seconds=round(time.perf_counter() - started, 4))
