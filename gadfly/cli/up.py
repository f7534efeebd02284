"""`gadfly up`: starts database, engine, service and trainer on this machine, keeps them running, and stops them."""

import asyncio
import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from gadfly.cli.probes import accepts_connections, engine_endpoint, get, why_not_ready
from gadfly.cli.processes import IsReady, Program, ProgramFailed, Supervisor
from gadfly.cli.terminal import ProgressStep, err, out, step
from gadfly.cli.up_state import UpState, clean_leftovers, exclusive
from gadfly.errors import BadSettings, StoreUnavailable
from gadfly.settings import ENV_PREFIX, Settings, without_password
from gadfly.tasks import load_tasks

T = TypeVar("T")

DATABASE, ENGINE, SERVICE, TRAINER = "database", "engine", "service", "trainer"

_LEAST_FREE_BYTES = 300 * 2**20  # an empty Postgres with its write-ahead log, and some records
_UNIX_PATH_MAX = 107
_READY_WITHIN_S = 120.0
_LONGEST_WAIT_S = 5.0  # before a restart of the database or the service: they start in seconds
_TRAINER_SERVES_AFTER_S = 60.0  # it counts as ready at once, and some of its faults need a minute to show
_SETTLE_S = 1.0  # the end of a killed Postgres may take that long to be noticed
_DATABASE_LIMIT_S = 60.0  # for the database to return while `up` starts
_NOT_FOR_THE_ENGINE = tuple(f"{ENV_PREFIX}{name}" for name in ("DATABASE_URL", "KEY", "ENGINE_KEY", "ACTOR_KEY"))
_EXAMPLE = {
    "question": "Tom has 3 boxes with 4 apples each. He eats 2 apples. How many are left?",
    "response": "3 + 4 = 7 apples. 7 - 2 = 5. The answer is 5.",
}


def up(settings: Settings) -> int:
    """Run until Ctrl-C, SIGTERM or a permanent failure; the exit code.

    Raises:
        GadflyError: the reason why the deployment cannot run.
    """
    with exclusive(settings.home):
        left = clean_leftovers(settings.home)
        if left:
            err.print(f"ended processes that an earlier `gadfly up` left: {', '.join(left)}")
        check_disk(settings.home)
        check_port(settings)
        check_keys_possible(settings)
        load_tasks(settings)  # a faulty task is reported here, once, and not by each process
        return asyncio.run(_Up(settings).run())


class _Up:
    """One `gadfly up`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine_urls = settings.engine_urls
        # GADFLY_URL may name a proxy in front of this service; `up` probes its own service directly.
        self._url = settings.model_copy(update={"url": ""}).service_url
        self._state = UpState(service_url=self._url)
        self._supervisor = Supervisor(settings.home, self._state, report=_report)
        self._is_ready = False
        self._signal: signal.Signals | None = None

    async def run(self) -> int:
        work = asyncio.create_task(self._work())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # started with nohup
            loop.add_signal_handler(number, self._on_signal, number, work)
        try:
            await work
        except asyncio.CancelledError:
            return 0 if self._is_ready or self._signal is None else 128 + self._signal
        except ProgramFailed as error:
            for line in error.tail:
                err.print(f"  {line}", style="dim", markup=False)
            raise
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise StoreUnavailable(f"The disk under {self._settings.home} is full.") from error
            raise
        finally:
            await self._supervisor.stop()
            await asyncio.to_thread(self._sweep)
        return 0

    def _sweep(self) -> None:
        # A killed process may have left children, such as a Postgres whose recovery took too long.
        clean_leftovers(self._settings.home)
        if self._settings.database_url is None:
            from gadfly.store.embedded import EmbeddedPostgres

            EmbeddedPostgres(self._settings.home).stop_ownerless()

    def _on_signal(self, number: signal.Signals, work: "asyncio.Task[None]") -> None:
        if self._signal is not None:
            self._supervisor.hurry()
        self._signal = number
        work.cancel()

    async def _work(self) -> None:
        url = await self._start_database()
        await self._check_keys(url)
        if not self._engine_urls:
            await self._start_engine()
        self._state.engine_urls = self._engine_urls
        await self._start_service(url)
        await self._start_trainer(url)
        await self._announce()
        self._is_ready = True
        await self._supervisor.failed()

    async def _start_database(self) -> str:
        from gadfly.cli.storage import key_stored_questions
        from gadfly.store.database import migrate
        from gadfly.store.embedded import EmbeddedPostgres

        configured = self._settings.database_url
        if configured is not None:
            url = configured.get_secret_value()
        else:
            server = EmbeddedPostgres(self._settings.home)
            url = server.url
            with step(DATABASE, "starting Postgres") as progress:
                _link(server.log, self._settings.home / "logs" / "postgres.log")
                await self._supervisor.start(
                    Program(
                        role=DATABASE,
                        argv=(sys.executable, "-P", "-m", "gadfly.cli.postgres"),
                        environment=self._environment(),
                        log=self._log(DATABASE),
                        is_ready=_accepts(url),
                        longest_wait_s=_LONGEST_WAIT_S,
                        hurried_limit_s=10.0,  # time for Postgres itself to stop
                    ),
                    note=progress.note,
                )
                progress.result("Postgres is ready")
        with step("schema", "migrating") as progress:
            await self._with_database(url, lambda: asyncio.to_thread(migrate, url))
            await self._with_database(url, lambda: key_stored_questions(self._settings, url))
            progress.result("current")
        return url

    async def _with_database(self, url: str, work: Callable[[], Awaitable[T]]) -> T:
        """`work`, again if the embedded Postgres ended meanwhile and is started again."""
        deadline = time.monotonic() + _DATABASE_LIMIT_S
        while True:
            starts = self._supervisor.starts(DATABASE)
            try:
                return await work()
            except StoreUnavailable:
                if self._settings.database_url is not None or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_SETTLE_S)
                if self._supervisor.starts(DATABASE) == starts and await accepts_connections(url):
                    raise

    async def _check_keys(self, url: str) -> None:
        if self._settings.is_loopback:
            return
        from gadfly.cli.storage import active_keys

        if not await self._with_database(url, lambda: active_keys(self._settings, url)):
            raise BadSettings(_needs_keys(self._settings))

    async def _start_engine(self) -> None:
        path = engine_socket(self._settings.home)
        environment = {name: value for name, value in self._environment().items() if name not in _NOT_FOR_THE_ENGINE}
        with step(ENGINE, "starting vLLM") as progress:
            await self._supervisor.start(
                Program(
                    role=ENGINE,
                    argv=(sys.executable, "-P", "-m", "gadfly.engine", "--uds", str(path)),
                    environment=environment,
                    log=self._log(ENGINE),
                    is_ready=_answers(engine_endpoint(f"unix://{path}", "/health")),
                    is_alive=_reacts(engine_endpoint(f"unix://{path}", "/health")),
                    stop_limit_s=35.0,  # vLLM drains its requests for 30
                ),
                note=progress.note,
            )
            progress.result("vLLM is ready")
        self._engine_urls = (f"unix://{path}",)

    async def _start_service(self, url: str) -> None:
        environment = self._environment() | self._addresses(url)
        with step(SERVICE, "starting") as progress:
            await self._supervisor.start(
                Program(
                    role=SERVICE,
                    argv=(sys.executable, "-P", "-m", "gadfly.service"),
                    environment=environment,
                    log=self._log(SERVICE),
                    is_ready=_serves(self._url, progress),
                    is_alive=_reacts(f"{self._url}/healthz"),
                    longest_wait_s=_LONGEST_WAIT_S,
                    stop_limit_s=45.0,  # the service drains its requests for 30
                )
            )

    async def _start_trainer(self, url: str) -> None:
        if not self._settings.train:
            return
        with step(TRAINER, "starting") as progress:
            if importlib.util.find_spec("peft") is None:
                progress.result("skipped: install gadfly[trainer] to train here")
                return
            await self._supervisor.start(
                Program(
                    role=TRAINER,
                    argv=(sys.executable, "-P", "-m", "gadfly.trainer"),
                    environment=self._environment() | self._addresses(url),
                    log=self._log(TRAINER),
                    is_ready=_immediately,
                    served_after_s=_TRAINER_SERVES_AFTER_S,
                    stop_limit_s=15.0,
                )
            )
            progress.result("waits for training runs")

    async def _announce(self) -> None:
        settings = self._settings
        self._state.write(settings.home)
        database = "configured" if settings.database_url is not None else f"embedded, in {settings.home / 'postgres'}"
        out.print(
            f"\nGadfly answers at [bold]{self._url}[/]  (API: {self._url}/docs)\n"
            f"  engine    {', '.join(map(without_password, self._engine_urls))}\n"
            f"  database  {database}\n"
            f"  critic    {await _critic(self._url)}\n"
            f"  logs      {settings.home / 'logs'}\n\n"
            "Try it:\n"
        )
        out.print(example(self._url, with_key=await _wants_key(self._url)), markup=False, style="bold")
        out.print("\nCtrl-C stops it.")

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith(ENV_PREFIX)}
        return inherited | self._settings.to_environment()

    def _addresses(self, url: str) -> dict[str, str]:
        """Database and engines as variables. The engine that `up` starts has Gadfly's name of the model, and no key."""
        addresses = {f"{ENV_PREFIX}DATABASE_URL": url, f"{ENV_PREFIX}ENGINE_URLS": ",".join(self._engine_urls)}
        own = {} if self._settings.engine_urls else {f"{ENV_PREFIX}ENGINE_MODEL": "", f"{ENV_PREFIX}ENGINE_KEY": ""}
        return addresses | own

    def _log(self, role: str) -> Path:
        return self._settings.home / "logs" / f"{role}.log"


def check_disk(home: Path) -> None:
    """Refuse to start on a disk without room for the database.

    Raises:
        StoreUnavailable: names the free and the needed space.
    """
    free = shutil.disk_usage(home).free
    if free < _LEAST_FREE_BYTES:
        raise StoreUnavailable(
            f"The disk under {home} has {free // 2**20} MiB free and at least {_LEAST_FREE_BYTES // 2**20} are needed: "
            "free some space, or choose another folder with --home."
        )


def check_port(settings: Settings) -> None:
    """Refuse an address that the service cannot listen on, before any process is started.

    Raises:
        BadSettings: names the problem with the address.
    """
    try:
        addresses = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = addresses[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BadSettings(
                f"Port {settings.port} is taken{_taken_by(settings.port)}: stop that program, or choose another port "
                "with --port."
            ) from None
        if error.errno == errno.EACCES:
            raise BadSettings(
                f"Port {settings.port} needs root rights: choose a port above 1023 with --port."
            ) from None
        raise BadSettings(f"The service cannot listen on {settings.host}: {error.strerror or error}.") from None


def check_keys_possible(settings: Settings) -> None:
    """Refuse an address reachable from other machines while the database, and so any key, does not exist yet.

    Raises:
        BadSettings: names the command that creates a key.
    """
    is_new = settings.database_url is None and not (settings.home / "postgres" / "data").exists()
    if not settings.is_loopback and is_new:
        raise BadSettings(_needs_keys(settings))


def engine_socket(home: Path) -> Path:
    """The engine's socket under `home`, or a path in the temporary folder where that is too long for a socket."""
    path = home / "run" / "engine.sock"
    if len(os.fsencode(path)) <= _UNIX_PATH_MAX:
        return path
    name = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"gadfly-engine-{name}" / "engine.sock"


def example(service_url: str, *, with_key: bool) -> str:
    """An example request as a shell command."""
    key = " -H 'authorization: Bearer YOUR_KEY'" if with_key else ""
    body = shlex.quote(json.dumps(_EXAMPLE))
    return f"curl -s {service_url}/critique{key} -H 'content-type: application/json' -d {body}"


def _needs_keys(settings: Settings) -> str:
    return (
        f"{settings.host} is reachable from other machines and there is no key yet: create one with "
        "`gadfly keys create --tier admin --name me`, or listen on 127.0.0.1."
    )


def _taken_by(port: int) -> str:
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        pass  # another user's process
    return ""


def _link(target: Path, link: Path) -> None:
    link.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        link.symlink_to(target)


def _report(text: str) -> None:
    err.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False)


def _answers(url: str) -> IsReady:
    async def probe() -> bool:
        return (await get(url)).is_ok

    return probe


def _reacts(url: str) -> IsReady:
    async def probe() -> bool:
        return not (await get(url)).is_late

    return probe


def _accepts(url: str) -> IsReady:
    async def probe() -> bool:
        return await accepts_connections(url)

    return probe


def _serves(service_url: str, progress: ProgressStep) -> IsReady:
    """Whether the service is ready. After `_READY_WITHIN_S` any answer is enough: external engines may start later."""
    began = time.monotonic()

    async def probe() -> bool:
        nonlocal began
        answer = await get(f"{service_url}/readyz", limit_s=30.0)
        if answer.status is None:  # the service is starting or restarting
            began = time.monotonic()
        if answer.is_ok:
            progress.result("ready")
            return True
        reason = answer.problem if answer.body is None else why_not_ready(answer.body)
        progress.note(reason)
        progress.result(f"running, but not ready: {reason}")
        return answer.status == 503 and time.monotonic() - began > _READY_WITHIN_S

    return probe


async def _immediately() -> bool:
    return True  # no other process depends on the trainer, which takes runs from a queue


async def _critic(service_url: str) -> str:
    """The live critic in a few words."""
    state = (await get(f"{service_url}/state")).body
    live = None if state is None else state.get("live_critic")
    if live is None:
        return "not known yet"
    if live:
        return f"critic@{live}"
    return (
        "critic@0, untrained: the base model as it is. Label answers (`gadfly feedback`, `gadfly import`), then "
        "`gadfly retrain`"
    )


async def _wants_key(service_url: str) -> bool:
    return (await get(f"{service_url}/interactions?limit=1")).status == 401
