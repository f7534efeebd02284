"""A real engine for tests: `python -m gadfly.engine` on a Unix socket, with a log to read when it fails."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from gadfly.engine.__main__ import prepare
from gadfly.engine.command import BASE_MODEL, WARM_UP, UnixSocket
from gadfly.settings import Settings

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_REPOSITORY = Path(__file__).resolve().parents[2]

MAX_MODEL_LEN = 4096

# One thread: tests share their machine, and two threads that wait for each other on a busy core take ten times as long.
_SMALL = {
    "OMP_NUM_THREADS": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # adds /reset_prefix_cache
    "GADFLY_ENGINE_KV_CACHE_BYTES": str(64 * 2**20),
    "GADFLY_ENGINE_MAX_MODEL_LEN": str(MAX_MODEL_LEN),
}


class EngineDidNotStart(Exception):
    """The message ends with the tail of the engine's log."""


@dataclass(frozen=True)
class RunningEngine:
    """An engine that answers. `url` is what `Settings.engine_urls` takes."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def client(self, *, timeout_s: float = 120.0) -> httpx.Client:
        """For requests as `client.get("/health")`."""
        return httpx.Client(
            transport=httpx.HTTPTransport(uds=self.url.removeprefix("unix://")),
            base_url="http://engine",
            timeout=timeout_s,
        )

    def async_client(self, *, timeout_s: float = 120.0) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=self.url.removeprefix("unix://")),
            base_url="http://engine",
            timeout=timeout_s,
        )

    def load_adapter(self, name: str, folder: Path) -> None:
        with self.client() as client:
            client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)}).raise_for_status()

    def unload_adapter(self, name: str) -> None:
        with self.client() as client:
            client.post("/v1/unload_lora_adapter", json={"lora_name": name}).raise_for_status()

    def forget(self) -> None:
        """Unload all adapters and empty the prefix cache, in which another adapter of the same name would read."""
        with self.client() as client:
            names = {item["id"] for item in client.get("/v1/models").json()["data"]} - {BASE_MODEL}
            for name in names:
                self.unload_adapter(name)
            client.post("/reset_prefix_cache").raise_for_status()

    def metric(self, name: str) -> float:
        """The sum of a Prometheus series over its labels, as `metric("vllm:num_requests_running")`."""
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def log_tail(self, lines: int = 40) -> str:
        return _tail(self.log, lines)

    def stop(self, *, timeout_s: float = 60.0) -> int:
        """Ask it to end, as a supervisor does, and return its exit status. In-flight requests may finish first."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            _kill_group(self.process)

    def kill(self) -> None:
        """End it at once with all its processes, as a crash does. The socket's file stays behind."""
        _kill_group(self.process)
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class SpareEngine:
    """An engine that may be killed and restarted at the same address. It starts at its first use."""

    def __init__(self, model: Path, *, home: Path) -> None:
        self._model, self._home = model, home
        self._engine: RunningEngine | None = None

    @property
    def running(self) -> RunningEngine:
        """The engine as it was started last, or a new one if that has ended."""
        if self._engine is None or self._engine.process.poll() is not None:
            self._engine = start_engine(self._model, home=self._home)
        return self._engine

    def forget(self) -> None:
        """Unload all adapters, if it runs."""
        if self._engine is not None and self._engine.process.poll() is None:
            self._engine.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._engine is not None:
            self._engine.kill()


def made_default_model() -> Path:
    """The folder of the default model in the usual home, where `make up` finds it too."""
    done = subprocess.run(
        [sys.executable, "-m", "gadfly.engine.models"], cwd=_REPOSITORY, stdout=subprocess.PIPE, check=True
    )
    return Path(done.stdout.decode().strip())


def start_engine(
    model: Path | str,
    *,
    home: Path,
    uds: Path | None = None,
    extra_args: str = "",
    environ: Mapping[str, str] | None = None,
    without_plugins: bool = False,
    timeout_s: float = 180.0,
) -> RunningEngine:
    """Start an engine and wait until it answers. For the arguments, see `launch_engine`."""
    engine = launch_engine(
        model, home=home, uds=uds, extra_args=extra_args, environ=environ, without_plugins=without_plugins
    )
    wait_until_ready(engine, timeout_s=timeout_s)
    return engine


def launch_engine(
    model: Path | str,
    *,
    home: Path,
    uds: Path | None = None,
    extra_args: str = "",
    environ: Mapping[str, str] | None = None,
    without_plugins: bool = False,
) -> RunningEngine:
    """Start an engine that `wait_until_ready` waits for. Two that start side by side are ready earlier than in turn.

    `extra_args` is appended to vLLM's command line; `environ` adds variables, `GADFLY_*` settings among them. Without
    plugins it is vLLM as it comes. It ends with the thread that started it at the latest, so start it from the main
    thread. A test that calls this itself, and not in a fixture that `tests/conftest.py` lists, has the marker `engine`.
    """
    uds = uds or home / "engine.sock"
    home.mkdir(parents=True, exist_ok=True)
    log = home / f"{uds.stem}.log"
    env = {name: value for name, value in os.environ.items() if not name.startswith("GADFLY_")}
    env |= _SMALL | {"GADFLY_HOME": str(home), "GADFLY_MODEL": str(model), "GADFLY_ENGINE_ARGS": extra_args}
    env |= environ or {}
    argv = [sys.executable, "-m", "gadfly.engine", "--uds", str(uds)]
    if without_plugins:
        # `python -m gadfly.engine` refuses to, so this takes its command and changes the one variable.
        settings = Settings.load(
            {name.removeprefix("GADFLY_").lower(): value for name, value in env.items() if name.startswith("GADFLY_")}
        )
        command = prepare(UnixSocket(uds), settings)
        # vLLM as it comes needs a C++ compiler for its first label read; these tests run where there is none.
        place = command.argv.index(WARM_UP)
        argv = [*command.argv[: place - 1], *command.argv[place + 1 :]]
        env = {**command.env, **env, "VLLM_PLUGINS": "", "TORCHDYNAMO_DISABLE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, cwd=_REPOSITORY, env=env, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509  # one call into libc, nothing that could take a lock
        )  # fmt: skip
    return RunningEngine(url=f"unix://{uds}", process=process, log=log)


def wait_until_ready(*engines: RunningEngine, timeout_s: float = 180.0) -> None:
    """Wait until all of them answer. If one does not, all are killed.

    Raises:
        EngineDidNotStart: one of them has ended, or does not answer after `timeout_s` seconds.
    """
    try:
        for engine in engines:
            _wait_until_healthy(engine, timeout_s)
    except BaseException:
        for engine in engines:
            engine.kill()
        raise


@dataclass(frozen=True)
class ForeignEngine:
    """An attached vLLM server, at `http://127.0.0.1:PORT`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> None:
        _kill_group(self.process)
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def launch_foreign(line: str, *, port: int, home: Path, key: str = "") -> ForeignEngine:
    """Run a shell command that starts vLLM on a port. `key` is in $GADFLY_ENGINE_KEY there.

    `python` in the command is this interpreter.
    """
    home.mkdir(parents=True, exist_ok=True)
    log = home / f"foreign-{port}.log"
    env = {name: value for name, value in os.environ.items() if not name.startswith("GADFLY_")}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(_REPOSITORY), "GADFLY_ENGINE_KEY": key, "HF_HUB_OFFLINE": "1"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"exec env {line}"], cwd=home, env=env, stdout=output, stderr=output,
            stdin=subprocess.DEVNULL, start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509  # one call into libc, nothing that could take a lock
        )  # fmt: skip
    return ForeignEngine(f"http://127.0.0.1:{port}", process, log)


def wait_for_foreign(engine: ForeignEngine, *, timeout_s: float = 180.0) -> None:
    """Wait until it answers.

    Raises:
        EngineDidNotStart: it has ended, or does not answer after `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if httpx.get(f"{engine.url}/health", timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        if engine.process.poll() is not None or time.monotonic() > deadline:
            raise EngineDidNotStart(f"The engine did not start:\n{_tail(engine.log, 40)}")
        time.sleep(0.3)


def _wait_until_healthy(engine: RunningEngine, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not _is_healthy(engine):
        status = engine.process.poll()
        if status is not None:
            raise EngineDidNotStart(f"The engine ended with status {status}:\n{engine.log_tail()}")
        if time.monotonic() > deadline:
            raise EngineDidNotStart(f"The engine was not ready after {timeout_s:.0f} s:\n{engine.log_tail()}")
        time.sleep(0.2)


def _is_healthy(engine: RunningEngine) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:  # httpx leaks its socket when no process listens
        try:
            probe.connect(engine.url.removeprefix("unix://"))
        except OSError:
            return False
    with engine.client(timeout_s=5.0) as client:
        try:
            return client.get("/health").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


def _end_with_parent() -> None:
    # SIGTERM and not SIGKILL: the server then takes its own child, which holds the weights, with it.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)  # it leads its own session
    except ProcessLookupError:
        pass


def _tail(path: Path, lines: int) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
