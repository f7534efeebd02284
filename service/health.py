"""Readiness and state of the service."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from sqlalchemy import text

from gadfly.actor import Actor
from gadfly.engine_client import Adapters, Engine
from gadfly.engine_health import EngineStanding
from gadfly.errors import EngineError, EngineRefused, EngineUnavailable, GadflyError
from gadfly.records import SwapStatus
from gadfly.service.answering.single_flight import SingleFlight
from gadfly.service.critics.loader import without_adapters
from gadfly.service.critics.serving import CriticServing
from gadfly.service.metrics import Metrics
from gadfly.service.recording.recorder import Recorder
from gadfly.service.room import Room
from gadfly.service.wire.health import (
    Check,
    EngineState,
    Readiness,
    ReplicaState,
    SpoolState,
    State,
    SwapState,
    TaskState,
    path_of,
)
from gadfly.settings import without_password
from gadfly.store.database import Database
from gadfly.tasks import ServedTask, ServedTasks

_ACTOR_VALID_S = 60.0
_READY_VALID_S = 1.0  # /readyz generates a token; more frequent requests share one check


class _Ejected(EngineError):
    """The engine generates a token, and fails requests."""


class Health:
    """Checks each part by using it: generates a token, runs a statement, finds the live critic on an engine that has
    proven it.

    Its results need no key, so they name versions but give no reasons: those may hold admins' texts and file paths.
    """

    def __init__(
        self,
        *,
        tasks: ServedTasks,
        database: Database,
        critics: CriticServing,
        actor: Actor,
        recorder: Recorder,
        room: Room,
        metrics: Metrics,
    ) -> None:
        self._tasks = tasks
        self._database = database
        self._critics = critics
        self._pool = critics.engines
        self._actor = actor
        self._recorder = recorder
        self._room = room
        self._metrics = metrics
        self._started_at = time.monotonic()
        self._last: tuple[float, Readiness] | None = None
        self._last_actor: tuple[float, Check] | None = None
        self._checks: SingleFlight[Readiness] = SingleFlight()
        self.running = False

    @property
    def _engines(self) -> tuple[Engine, ...]:
        return self._pool.members

    async def check(self) -> Readiness:
        """Check every part now, or return a positive result that is at most a second old."""
        if self._last is not None and time.monotonic() - self._last[0] < _READY_VALID_S:
            return self._last[1]
        return await self._checks.run("readiness", self._check)

    async def _check(self) -> Readiness:
        engine, database, critic, disk, actor = await asyncio.gather(
            _timed(self._check_engines),
            _timed(self._check_database),
            _timed(self._check_critic),
            _timed(self._room.check),
            self._check_actor(),
        )
        watch = self._check_watch()
        readiness = Readiness(
            ready=self.running and engine.ok and database.ok and critic.ok and disk.ok and watch.ok,
            engine=engine,
            database=database,
            critic=critic,
            disk=disk,
            swap=self._check_swap(),
            actor=actor,
            sampling=self._check_sampling(),
            watch=watch,
        )
        self._last = (time.monotonic(), readiness) if readiness.ready else None
        self._metrics.ready.set(readiness.ready)
        return readiness

    async def _check_engines(self) -> str:
        # One engine that generates is enough to answer requests.
        outcomes = await asyncio.gather(*map(self._probe, self._engines), return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if not outcomes:
            raise EngineUnavailable("no engine is known: the names in GADFLY_ENGINE_URLS lead to no address")
        if len(failures) == len(outcomes):
            raise failures[0]
        refused = [f"; {failure}" for failure in failures if isinstance(failure, EngineRefused | _Ejected)]
        return f"{len(outcomes) - len(failures)} of {len(outcomes)} engines generate{''.join(refused)}"

    async def _probe(self, engine: Engine) -> None:
        """Raises EngineError where an engine does not generate, or gets no requests because it failed several."""
        await self._pool.probe(engine)
        if engine.health.standing is EngineStanding.EJECTED:
            raise _Ejected(f"{without_password(engine.url)} failed several requests in a row (see the log)")

    async def _check_database(self) -> str:
        async with self._database.session() as session:
            await session.execute(text("SELECT 1"))
        return "answers"

    async def _check_critic(self) -> str:
        self._critics.require_words(self._tasks.default.name)
        live = await self._critics.pointers.resolve("live")
        engines = self._engines
        served = await asyncio.gather(*map(_models, engines))
        if not any(
            live.engine_name in names and self._critics.loader.may_serve(engine, live.engine_name)
            for engine, names in zip(engines, served, strict=True)
        ):
            raise GadflyError(
                "; ".join(
                    [
                        f"no engine serves the live critic {live.engine_name} as it was published",
                        *filter(None, [self._critics.problem, without_adapters(self._engines)]),
                    ]
                )
            )
        lacking = len(self._critics.upkeep.lacking)
        notes = [f"{lacking} of {len(self._engines)} engines do not serve it (see the log)"] if lacking else []
        notes += filter(None, [without_adapters(self._engines)])
        return "; ".join([f"version {live.version} is served as {live.engine_name}", *notes])

    async def _check_actor(self) -> Check:
        """The actor; its own endpoint is asked once a minute at most, because each request may cost money."""
        if self._last_actor is None or time.monotonic() - self._last_actor[0] > _ACTOR_VALID_S:
            self._last_actor = time.monotonic(), await _timed(self._actor.check)
        return self._last_actor[1]

    def _check_swap(self) -> Check:
        """The deployment's last swap, and whether this replica has followed the swaps of all tasks."""
        last = max(
            (line.swaps.last for line in self._critics.pointers if line.swaps.last is not None),
            key=lambda swap: (swap.finished_at or swap.requested_at, swap.id),
            default=None,
        )
        if self._critics.problem is not None:
            ok, detail = False, self._critics.problem
        elif last is None:
            ok, detail = True, "no swap yet"
        elif last.status is SwapStatus.REFUSED:
            ok, detail = False, f"version {last.version} was refused; see {path_of(last)}"
        else:
            ok, detail = True, f"version {last.version} followed {last.from_version}"
        return Check(ok=ok, detail=detail, seconds=0.0)

    def _check_watch(self) -> Check:
        """Whether automatic rollback works: a worse critic would stay live while it does not."""
        failure = self._critics.watch.failure
        if failure is None:
            return Check(ok=True, detail="automatic rollback has not failed for a minute", seconds=0.0)
        return Check(ok=False, detail=f"automatic rollback fails: {failure}", seconds=0.0)

    def _check_sampling(self) -> Check:
        """Whether the engines have proven that they sample as they report."""
        faults, proven = self._critics.sampling.faults, self._critics.sampling.proven
        if faults:
            return Check(ok=False, detail="; ".join(faults), seconds=0.0)
        return Check(
            ok=True, detail=f"{proven} of {len(self._engines)} engines have proven that they sample as they report",
            seconds=0.0,
        )  # fmt: skip

    def state(self) -> State:
        """The state of this replica, from memory alone: available even when Postgres and the engines are not."""
        now = time.monotonic()
        line = self._critics.pointers.default
        return State(
            status="running" if self.running else "starting",
            uptime_s=round(now - self._started_at, 3),
            live_critic=line.known_live,
            task=self._tasks.default.name,
            task_version=self._tasks.default.task.version,
            pointers=line.current,
            swap=SwapState.of(line.swaps.pending or line.swaps.last),
            tasks=[self._task_state(each) for each in self._tasks],
            replicas=[
                ReplicaState(
                    id=replica.id,
                    live_critic=replica.live_version,
                    in_flight=_by_version(replica.leases),
                    problem=replica.problem,
                )
                for replica in self._critics.replicas.known
            ],
            in_flight=_by_version(self._critics.leases.counts),
            engines=[
                EngineState(
                    url=without_password(engine.url),
                    in_flight=engine.in_flight,
                    reachable=engine.is_reachable,
                    health=engine.health.standing,
                    adapters=None if engine.known_adapters is None else engine.known_adapters is Adapters.LOADED,
                    critics=self._critics.loader.proven_on(engine),
                )
                for engine in self._engines
            ],
            watch=self._critics.watch.problems.get(line.task),
            records_pending=self._recorder.pending,
            spool=SpoolState(
                records=self._recorder.spooled,
                bytes=self._recorder.spool_bytes,
                rejected=self._recorder.rejected,
            ),
        )

    def _task_state(self, served: ServedTask) -> TaskState:
        line = self._critics.pointers.line(served.name)
        live = None if line.known_live is None else self._critics.pointers.known(line.known_live)
        return TaskState(
            name=served.name,
            version=served.task.version,
            live_critic=line.known_live,
            status=None if live is None else live.status,
            is_loaded=live is not None and (live.is_base or self._critics.loader.is_proven(live.version)),
            pointers=line.current,
            swap=SwapState.of(line.swaps.pending or line.swaps.last),
            watch=self._critics.watch.problems.get(served.name),
        )

    def render_metrics(self) -> bytes:
        """The metrics in Prometheus' text format, with current gauges."""
        self._metrics.pending.set(self._recorder.pending)
        self._metrics.spool_depth.set(self._recorder.spooled)
        self._metrics.spool_bytes.set(self._recorder.spool_bytes)
        self._metrics.rejected.set(self._recorder.rejected)
        self._metrics.watch_failing.set(self._critics.watch.failure is not None)
        return self._metrics.render()


def _by_version(leases: Mapping[int, int]) -> dict[str, int]:
    return {str(version): count for version, count in sorted(leases.items()) if count}


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
