"""Loads critics into engines and has each engine prove them: it must answer an adapter's probes as recorded.

Happens in a swap, after an engine restarted without the critic, and when a request needs a critic that is not loaded.
With more critics than adapter slots, the one that was used longest ago gives up its slot. A critic with requests in
flight never does, nor does the live critic of the default task or of a task that had a request lately.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from gadfly import store, tracing
from gadfly.adapters import AdapterFolder, BadAdapter, ProbeRecord
from gadfly.concurrency import gather
from gadfly.engine_client import Adapters, Engine, Reply, Sampling
from gadfly.errors import (
    AdapterRefused,
    BadInput,
    BadSettings,
    Conflict,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    GadflyError,
    NoSlot,
    StoreUnavailable,
    TooBusy,
)
from gadfly.prompts import PromptSet
from gadfly.records import CriticVersion
from gadfly.service.answering.single_flight import SingleFlight
from gadfly.service.critics.leases import Leases
from gadfly.service.critics.pointers import CriticLine, CriticPointers
from gadfly.service.critics.replicas import Replicas
from gadfly.service.critics.verification import Deltas, Proof, compare, require_adapter
from gadfly.service.metrics import Metrics
from gadfly.settings import Settings, without_password
from gadfly.store.database import Database
from gadfly.tasks import ServedTasks

_PATIENCE_S = 60.0  # for one engine to load and prove one adapter
_UPLOAD_BYTES_PER_S = 4e6  # a slow connection between two hosts
_LATE_S = 2.0  # wait for the remaining engines once the one that is enough has proven the critic
_ATTEMPTS = 3  # an engine may be full for a moment
_RETRY_S = 1.0
_REFUSAL_VALID_S = 5.0  # requests get the same error for this long; then one tries again
_PROBE_PRIORITY = -1  # before all requests: a swap must not wait for the load to end

BUSY_S = 60.0  # a task is busy for so long after a request
_SLOT_PATIENCE_S = 5.0  # a request waits for a slot at most so long
_SLOT_POLL_S = 0.05

_POINTERS = 3  # live, previous, candidate: each has its slot in an engine
_ROOM_S = 60.0  # Retry-After: unused critics are unloaded after some minutes

_PREFIX = "critic@"
_FILES = ""  # instead of an engine's URL, where the adapter's files are at fault and every engine would refuse them

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Refusal:
    at: float  # monotonic seconds
    error: GadflyError


@dataclass(slots=True)
class _Attempt:
    """The state of one attempt to have an engine prove an adapter."""

    drops: int = 0  # the engine's failed connections before the adapter was loaded
    process: str | None = None  # the name of the engine's process before the adapter was loaded
    has_loaded: bool = False  # this attempt loaded the adapter; the engine did not serve it before


@dataclass(frozen=True, slots=True)
class Servable:
    """A checked critic: what engines load, if anything, its prompts, and the answers that prove it."""

    adapter: Path | None  # the folder of its adapter; None: the base model's weights, with examples in the prompt
    prompts: PromptSet
    probe: ProbeRecord


class Loader:
    """Loads critics into engines, and routes a critic's requests only to engines that have proven it."""

    def __init__(
        self,
        *,
        settings: Settings,
        tasks: ServedTasks,
        database: Database,
        engines: Sequence[Engine],
        pointers: CriticPointers,
        leases: Leases,
        replicas: Replicas,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._tasks = tasks
        self._database = database
        self._engines = engines
        self._pointers = pointers
        self._leases = leases
        self._replicas = replicas
        self._metrics = metrics
        self._used_at: dict[int, float] = {}  # by version, monotonic seconds
        self._served: dict[str, frozenset[int]] = {}  # by engine, the versions that it listed last
        self._loading: Counter[int] = Counter()  # versions that have a slot and are not proven yet
        self._proven: dict[tuple[str, int], int] = {}  # (engine, version) -> the engine's drops at the proof
        self._refused: dict[tuple[str, int], _Refusal] = {}  # by engine (`_FILES` for all) and version
        self._withdrawn: set[tuple[str, int]] = set()  # by process and version, while Postgres is unavailable
        self._work: SingleFlight[Proof] = SingleFlight()
        self._checks: SingleFlight[Servable] = SingleFlight()
        self._with_examples: dict[int, PromptSet] = {}  # by version
        self._wanted: Counter[int] = Counter()  # versions that requests wait for

    def proven_on(self, engine: Engine) -> list[int]:
        """The versions that an engine has proven to this replica since its last failed connection.

        After a failed connection another process may answer at the same address.
        """
        return sorted(
            version for (url, version), drops in self._proven.items() if url == engine.url and drops == engine.drops
        )

    def is_proven(self, version: int) -> bool:
        """Whether any engine has proven a version."""
        return any(version in self.proven_on(engine) for engine in self._engines)

    def may_serve(self, engine: Engine, name: str) -> bool:
        """Whether requests for this model may go to an engine: for a critic, only if the engine has proven it."""
        version = version_of(name)
        return version is None or version in self.proven_on(engine)

    async def ready(self, critic: CriticVersion) -> PromptSet:
        """The critic's prompts, when at least one engine has proven it: at once for all but its first requests.

        Raises:
            BadAdapter: the critic's files, its examples or its answers to the probes are not those published.
            AdapterRefused: the engines cannot load the adapter.
            EngineUnavailable: no engine can be reached.
            TooBusy: the adapter slots that pointers leave free are all taken by other critics.
            NoSlot: all slots are taken by critics in use, and none became free in time.
        """
        if critic.version in self._pointers.incomplete:
            self._forget_examples(critic.version)
        self._used_at[critic.version] = time.monotonic()
        if critic.is_base or self.is_proven(critic.version):
            return self._prompts_of(critic)
        self.raise_recent_refusal(critic)
        if critic.adapter_path is not None:
            self._require_room(critic)
        self._wanted[critic.version] += 1
        try:
            with tracing.span("load_critic", {"gadfly.critic_version": critic.version}):
                async with self._slot(critic):
                    await self.prove(critic, share=0.0)
        finally:
            self._wanted[critic.version] -= 1
        return self._prompts_of(critic)

    def _prompts_of(self, critic: CriticVersion) -> PromptSet:
        if not critic.examples:
            return self._task_prompts(critic)
        if critic.version not in self._with_examples:  # dropped since the proof
            raise BadAdapter(_lost_example(critic))
        return self._with_examples[critic.version]

    def _forget_examples(self, version: int) -> None:
        self._with_examples.pop(version, None)
        for engine in self._engines:
            self.forget(engine, version)

    # --------------------------------------------------------------------------------------------------------- slots

    @asynccontextmanager
    async def _slot(self, critic: CriticVersion) -> AsyncIterator[None]:
        """Hold a slot while a critic is loaded into it; one without an adapter needs none."""
        if critic.adapter_path is None:
            yield
            return
        await self.make_room(critic, patience_s=_SLOT_PATIENCE_S)
        self._loading[critic.version] += 1  # nothing was awaited since the slot was found
        try:
            yield
        finally:
            self._loading[critic.version] -= 1

    def has_room(self, critic: CriticVersion) -> bool:
        """Whether a critic has a slot or needs none, or there is a free one for it."""
        return critic.adapter_path is None or len(self._loaded() - {critic.version}) < self._settings.adapter_slots

    async def make_room(self, critic: CriticVersion, *, patience_s: float = 0.0) -> None:
        """Return when there is a slot for a critic, for which critics that are not in use are unloaded.

        Raises:
            NoSlot: all slots were taken by critics in use for `patience_s`.
        """
        deadline = time.monotonic() + patience_s
        while not self.has_room(critic):
            idle = self._loaded() - self._in_use() - {critic.version}
            victim = min(idle, key=self._worth, default=None)
            if victim is not None:
                found = self._pointers.known(victim)
                assert found is not None
                log.info("critic_evicted", version=victim, task=found.task, instead=critic.version)
                await self.unload_everywhere(found)
            elif time.monotonic() >= deadline:
                raise NoSlot(
                    f"the engines serve {self._settings.adapter_slots} critics that are in use, which is the limit "
                    f"(GADFLY_ADAPTER_SLOTS), so that critic {critic.version} of the task {critic.task} has to wait",
                    retry_after_s=BUSY_S / 4,
                )
            else:
                await asyncio.sleep(_SLOT_POLL_S)

    def _loaded(self) -> set[int]:
        """The versions that have a slot on any engine, or are being loaded."""
        urls = {engine.url for engine in self._engines}
        loading = {version for version, count in self._loading.items() if count}
        listed = {version for url in urls for version in self._served.get(url, ()) if self._pointers.known(version)}
        proven = {version for url, version in self._proven if url in urls and self._takes_slot(version)}
        return proven | loading | listed

    def _worth(self, version: int) -> tuple[bool, float, int]:
        """The order in which critics give up their slots: those that no pointer names first, then by their last use."""
        return version in self._pointers.pointed(), self._used_at.get(version, 0.0), version

    def _in_use(self) -> set[int]:
        """The versions that keep their slot."""
        pending = {line.swaps.pending.version for line in self._pointers if line.swaps.pending is not None}
        live = set().union(*(line.answering() for line in self._pointers if self.is_busy(line)))
        return live | pending | set(self._leases.counts) | self._replicas.others_use()

    def is_busy(self, line: CriticLine) -> bool:
        """Whether the live critic of a task keeps its slot: that of the default task, and of one in use."""
        return line is self._pointers.default or line.was_used_within(BUSY_S)

    def versions_among(self, names: Iterable[str]) -> set[int]:
        """The versions of this deployment among the models that an engine lists."""
        numbers = {name: version_of(name) for name in names}
        known = {name: None if number is None else self._pointers.known(number) for name, number in numbers.items()}
        return {critic.version for name, critic in known.items() if critic is not None and critic.engine_name == name}

    def note_served(self, engine: Engine, versions: Iterable[int]) -> None:
        """Note which versions an engine lists. Another replica may have loaded or unloaded some."""
        self._served[engine.url] = frozenset(versions)

    # --------------------------------------------------------------------------------------------------------- proof

    def _require_room(self, critic: CriticVersion) -> None:
        pointed = self._pointers.pointed()
        if critic.version in pointed:
            return
        wanted = {version for version, requests in self._wanted.items() if requests}
        others = {version for version in {version for _, version in self._proven} | wanted if self._takes_slot(version)}
        room = max(1, self._settings.adapter_slots - _POINTERS)
        if len(others - pointed - {critic.version}) >= room:
            raise TooBusy(
                f"the engines already serve {room} critics that are neither live, previous nor candidate: the limit",
                retry_after_s=_ROOM_S,
            )

    def _takes_slot(self, version: int) -> bool:
        critic = self._pointers.known(version)
        return critic is None or critic.adapter_path is not None

    def require_adapters(self) -> None:
        """Check that no engine is known to serve the base model only, before a critic is promoted or trained.

        Raises:
            Conflict: names the engines that do, and why.
        """
        if problem := without_adapters(self._engines):
            raise Conflict(f"{problem}; `gadfly doctor` prints the command that starts an engine with all it needs")

    async def restore(self, engine: Engine, name: str) -> None:
        """Load and prove an adapter on an engine where a request found it missing or unproven. Raises as `ready`."""
        version = version_of(name)
        if version is None:
            raise EngineUnavailable(f"no engine serves {name}")
        critic = await self._pointers.resolve(version)
        self.raise_recent_refusal(critic, engine)
        self.forget(engine, version)
        await self.prove_on(engine, critic, await self.check(critic))

    def raise_recent_refusal(self, critic: CriticVersion, engine: Engine | None = None) -> None:
        """Raise the error of a recent attempt to prove a critic again, so that not every request repeats the attempt.

        Considers the given engine's attempts, or, without one, those of all engines unless an engine has proven the
        critic.
        """
        if engine is not None:
            urls = [_FILES, engine.url]
        elif self.is_proven(critic.version):
            return
        else:
            urls = [_FILES, *(each.url for each in self._engines)]
        for url in urls:
            refusal = self._refused.get((url, critic.version))
            if refusal is not None and time.monotonic() - refusal.at < _REFUSAL_VALID_S:
                raise refusal.error.again()

    async def prove(self, critic: CriticVersion, *, share: float) -> list[Proof]:
        """Load a critic into every engine and prove it there: on this share of them, and on at least one.

        Once enough of them have, the other engines get two more seconds; no request goes to an engine that has not
        proven the critic. Version 0, the base model, needs no proof.

        One engine's error is raised if too few have proven the critic.

        Raises:
            BadAdapter: the critic's files or its answers to the probes are not those published.
            AdapterRefused: an engine cannot load the adapter.
            EngineError: an engine failed or cannot be reached.
        """
        if critic.is_base:
            return []
        servable = await self.check(critic)
        engines = tuple(self._engines)
        if not engines:
            raise EngineUnavailable("no engine is known: the names in GADFLY_ENGINE_URLS lead to no address")
        enough = max(1, math.ceil(share * len(engines)))
        proving = [
            asyncio.ensure_future(self.prove_on(engine, critic, servable, may_share=share == 0)) for engine in engines
        ]
        try:
            await _wait_for(proving, enough=enough)
        finally:
            for each in proving:
                each.cancel()  # upkeep tries an engine that hangs again, like one that restarted
            outcomes = await asyncio.gather(*proving, return_exceptions=True)
        proofs = [outcome for outcome in outcomes if isinstance(outcome, Proof)]
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if len(proofs) < enough:
            raise errors[0]
        return proofs

    async def check(self, critic: CriticVersion) -> Servable:
        """Check a critic's files or examples by their hashes; concurrent callers share one check.

        Raises:
            BadAdapter: they are damaged, another version's or incomplete, or do not fit this deployment's settings.
            StoreUnavailable: the examples cannot be read.
        """
        return await self._checks.run(critic.version, lambda: self._check(critic))

    async def _check(self, critic: CriticVersion) -> Servable:
        try:
            if critic.task not in self._tasks.names:
                raise BadAdapter(
                    f"version {critic.version} was trained on the task {critic.task}, which this service does not "
                    "serve: name it in GADFLY_TASKS"
                )
            servable = await (self._read_examples(critic) if critic.examples else self._read_folder(critic))
            if servable.probe.prompt_set != servable.prompts.name:
                raise BadAdapter(
                    f"version {critic.version} was trained under the prompts {servable.probe.prompt_set}, but the "
                    f"service is set to {servable.prompts.name}"
                )
        except BadAdapter as error:
            self._refused[_FILES, critic.version] = _Refusal(time.monotonic(), error)
            raise
        self._refused.pop((_FILES, critic.version), None)
        return servable

    async def _read_examples(self, critic: CriticVersion) -> Servable:
        async with self._database.session() as session:
            examples, record = await store.critic_examples.read_examples(session, critic.version)
        if record is None or store.critic_examples.sha256_of(examples) != critic.examples_sha256:
            raise BadAdapter(_lost_example(critic))
        return Servable(None, self._task_prompts(critic).with_examples(examples), record)

    async def _read_folder(self, critic: CriticVersion) -> Servable:
        assert critic.adapter_path is not None
        path = self._settings.adapters_folder / critic.adapter_path
        folder = await asyncio.to_thread(
            AdapterFolder.read, path, base_model=self._settings.model, max_rank=self._settings.adapter_rank
        )
        if folder.marker.sha256 != critic.adapter_sha256:
            raise BadAdapter(f"{path} does not hold the adapter of version {critic.version}: the hashes differ")
        return Servable(folder.path, self._task_prompts(critic), folder.probe)

    def _task_prompts(self, critic: CriticVersion) -> PromptSet:
        return self._tasks.get(critic.task).prompts

    async def prove_on(
        self, engine: Engine, critic: CriticVersion, servable: Servable, *, may_share: bool = True
    ) -> Proof:
        """Load a critic into one engine and prove it there.

        With `may_share`, what another replica has just proven about the same process of the engine is enough. After a
        failure the adapter is unloaded, unless the engine served it before or another replica uses it. Raises as
        `prove`.
        """
        return await self._work.run(
            (engine.url, critic.version, may_share),
            lambda: self._prove_on(engine, critic, servable, may_share=may_share),
        )

    async def _prove_on(self, engine: Engine, critic: CriticVersion, servable: Servable, *, may_share: bool) -> Proof:
        where = without_password(engine.url)
        problem = "" if critic.adapter_path is None else without_adapters([engine])
        if problem:  # known: the engine is not asked again for each request
            raise AdapterRefused(problem)
        attempt = _Attempt()
        try:
            with tracing.span("prove", {"gadfly.engine": where, "gadfly.critic_version": critic.version}):
                async with asyncio.timeout(_PATIENCE_S + _upload_s(servable.adapter)):
                    attempt.drops = engine.drops
                    attempt.process = await _process_of(engine)
                    await self._withdraw_again()
                    proof = await self._shared_proof(engine, critic, attempt.process) if may_share else None
                    if proof is None:
                        proof = await _load_and_probe(engine, critic, servable, attempt)
                        await self._share(engine, critic, proof, attempt)
        except (BadAdapter, AdapterRefused) as error:
            self._metrics.loads.labels("refused").inc()
            refused = error.again(f"{where}: {error}")
            self._refused[engine.url, critic.version] = _Refusal(time.monotonic(), refused)
            log.warning("critic_not_proven", critic=critic.engine_name, engine=where, reason=str(error))
            await asyncio.shield(self._withdraw(attempt.process, critic))
            await asyncio.shield(self._undo_load(engine, critic, attempt))
            raise refused from error
        except (EngineError, TimeoutError) as error:
            self._metrics.loads.labels("failed").inc()
            await asyncio.shield(self._undo_load(engine, critic, attempt))
            if isinstance(error, TimeoutError):
                raise EngineTimeout(f"{where}: {critic.engine_name} was not proven in {_PATIENCE_S:g} s") from error
            raise error.again(f"{where}: {error}") from error
        if all(each is not engine for each in self._engines):
            raise EngineUnavailable(f"{where} was removed while it proved {critic.engine_name}")
        self._metrics.loads.labels("proven").inc()
        if servable.adapter is None:
            self._with_examples[critic.version] = servable.prompts
        self._proven[engine.url, critic.version] = attempt.drops
        self._refused.pop((engine.url, critic.version), None)
        log.info("critic_proven", critic=critic.engine_name, engine=where, from_trainer=proof.deltas.from_trainer)
        return proof

    async def _shared_proof(self, engine: Engine, critic: CriticVersion, process: str | None) -> Proof | None:
        """What another replica has just proven about this process, if the process still has the adapter."""
        if process is None or (process, critic.version) in self._withdrawn:
            return None
        try:
            if critic.adapter_path is not None and critic.engine_name not in await engine.models():
                return None
            async with self._database.session() as session:
                found = await store.proofs.find_proof(session, process, critic.version)
        except (EngineError, StoreUnavailable):
            return None  # the probes show what the engine can do
        if found is None:
            return None
        replica_id, known = found
        deltas = Deltas(**known["deltas"])
        own = {"engine": without_password(engine.url), "load_s": 0.0, "probe_s": 0.0, "proved_by": str(replica_id)}
        return Proof(**(known | own | {"deltas": deltas}))

    async def _share(self, engine: Engine, critic: CriticVersion, proof: Proof, attempt: _Attempt) -> None:
        """Let other replicas rely on a proof, unless the engine may have been restarted while it was made."""
        process = attempt.process
        if process is None or engine.drops != attempt.drops or await _process_of(engine) != process:
            return
        try:
            async with self._database.session() as session:
                await store.proofs.keep_proof(
                    session, process, critic.version, asdict(proof), replica_id=self._replicas.id
                )
        except StoreUnavailable as error:
            log.info("proof_not_shared", critic=critic.engine_name, reason=str(error))

    async def _withdraw(self, process: str | None, critic: CriticVersion) -> None:
        """Have no replica rely on an earlier proof of this process: it failed one, or its adapter is to be unloaded."""
        if process is not None:
            self._withdrawn.add((process, critic.version))
            await self._withdraw_again()

    async def _withdraw_again(self) -> None:
        """Withdraw what could not be withdrawn so far, because Postgres was unavailable."""
        for process, version in tuple(self._withdrawn):
            try:
                async with self._database.session() as session:
                    await store.proofs.withdraw_proof(session, process, version)
            except StoreUnavailable as error:
                log.warning("proof_not_withdrawn", critic=version, reason=str(error))
                return
            self._withdrawn.discard((process, version))

    async def _undo_load(self, engine: Engine, critic: CriticVersion, attempt: _Attempt) -> None:
        if attempt.has_loaded and critic.version not in self._replicas.others_use():
            await self.unload(engine, critic)
        else:
            self.forget(engine, critic.version)

    async def probe_again(self, critic: CriticVersion) -> tuple[int, int]:
        """Send a critic's probes to the engines again, amid their traffic and at the priority of requests.

        Returns (probes sent, probes not answered as recorded).
        """
        if critic.is_base:
            return 0, 0
        servable = await self.check(critic)
        probes = mismatches = 0
        for engine in self._engines:
            if critic.version not in self.proven_on(engine):
                continue
            replies = await _replies(engine, critic, servable, 0)
            for probe, reply in zip(servable.probe.probes, replies, strict=True):
                probes += 1
                try:
                    compare([probe], [reply], tolerance=servable.probe.tolerance)
                except BadAdapter as error:
                    log.error("critic_probe_mismatch", critic=critic.engine_name, reason=str(error))
                    mismatches += 1
                    await self._withdraw(await _process_of(engine), critic)
        return probes, mismatches

    async def unload(self, engine: Engine, critic: CriticVersion) -> None:
        """Unload a critic from an engine; its requests in flight finish."""
        self.forget(engine, critic.version)
        self._served[engine.url] = self._served.get(engine.url, frozenset()) - {critic.version}
        if critic.adapter_path is not None:
            await self._withdraw(await _process_of(engine), critic)
            try:
                await engine.unload_adapter(critic.engine_name)
            except EngineError as error:
                log.warning("critic_not_unloaded", critic=critic.engine_name, reason=str(error))

    async def unload_everywhere(self, critic: CriticVersion) -> None:
        """Unload a critic from every engine."""
        await gather(*(self.unload(engine, critic) for engine in self._engines))

    def forget(self, engine: Engine, version: int) -> None:
        """Drop the proof of a version on an engine that no longer serves it."""
        self._proven.pop((engine.url, version), None)

    def forget_all(self, engine: Engine) -> None:
        """Drop all proofs of an engine."""
        for url, version in list(self._proven):
            if url == engine.url:
                self.forget(engine, version)


async def _wait_for(proving: Sequence[asyncio.Future[Proof]], *, enough: int) -> None:
    waiting = set(proving)
    while waiting and sum(map(_has_proven, proving)) < enough:
        _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if waiting:
        await asyncio.wait(waiting, timeout=_LATE_S)


def _has_proven(proving: asyncio.Future[Proof]) -> bool:
    return proving.done() and not proving.cancelled() and proving.exception() is None


def _upload_s(adapter: Path | None) -> float:
    """Seconds in which the adapter reaches an engine that has to be sent its files."""
    return 0.0 if adapter is None else sum(file.stat().st_size for file in adapter.iterdir()) / _UPLOAD_BYTES_PER_S


async def _process_of(engine: Engine) -> str | None:
    try:
        return await engine.process()
    except EngineError:
        return None  # the probes show whether it can be reached


async def _load_and_probe(engine: Engine, critic: CriticVersion, servable: Servable, attempt: _Attempt) -> Proof:
    for number in range(1, _ATTEMPTS + 1):
        try:
            started = time.perf_counter()
            attempt.drops = engine.drops
            if servable.adapter is not None:
                attempt.has_loaded |= await engine.load_adapter(critic.engine_name, servable.adapter)
            loaded = time.perf_counter()
            deltas = await _probe(engine, critic, servable)
            return Proof(
                engine=without_password(engine.url),
                vllm=await engine.version(),
                probes=len(servable.probe.probes),
                deltas=deltas,
                load_s=round(loaded - started, 4),
                probe_s=round(time.perf_counter() - loaded, 4),
            )
        except EngineUnavailable:
            if number == _ATTEMPTS:
                raise
            await asyncio.sleep(_RETRY_S)
    raise AssertionError("the last attempt returns or raises")


async def _probe(engine: Engine, critic: CriticVersion, servable: Servable) -> Deltas:
    try:
        replies = await _replies(engine, critic, servable, _PROBE_PRIORITY)
    except (BadInput, BadSettings) as error:
        raise BadAdapter(f"the engine cannot run a probe: {error}") from error
    deltas = compare(servable.probe.probes, replies, tolerance=servable.probe.tolerance)
    if servable.adapter is not None:
        require_adapter(deltas, tolerance=servable.probe.tolerance)
    return deltas


async def _replies(engine: Engine, critic: CriticVersion, servable: Servable, priority: int) -> Sequence[Reply]:
    replies = await gather(
        *(
            engine.chat(
                servable.prompts.critique(question=probe.question, response=probe.response),
                model=critic.engine_name,
                sampling=Sampling(max_tokens=len(probe.tokens), priority=priority, with_tokens=True),
            )
            for probe in servable.probe.probes
        )
    )
    return [reply for [reply] in replies]


def _lost_example(critic: CriticVersion) -> str:
    return (
        f"an example in the prompt of version {critic.version} was deleted with its interaction, so the version cannot "
        "be served any more"
    )


def without_adapters(engines: Iterable[Engine]) -> str:
    """Which of the engines serve the base model only, and why; empty if none is known to."""
    return "; ".join(
        f"the engine at {without_password(engine.url)} {support.problem}, so it serves version 0 only"
        for engine in engines
        if (support := engine.known_adapters) not in (None, Adapters.LOADED)
    )


def version_of(name: str) -> int | None:
    """The critic version that a model name denotes; None for other names, such as those of rollouts."""
    number = name.removeprefix(_PREFIX).partition("-")[0]
    return int(number) if name.startswith(_PREFIX) and number.isdecimal() else None
