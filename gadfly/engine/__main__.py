"""`python -m gadfly.engine`: checks settings and machine, then replaces itself with vLLM's own server."""

import argparse
import ctypes
import errno
import json
import math
import os
import shutil
import socket
import stat
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

import psutil

from gadfly.adapters import read_safetensors_header
from gadfly.engine import models
from gadfly.engine.command import (
    PLUGIN,
    UNIX_PATH_MAX,
    Command,
    Listen,
    Tcp,
    UnixSocket,
    check_installed,
    installed_vllm,
    server_command,
)
from gadfly.errors import BadSettings, EngineError, GadflyError
from gadfly.settings import Device, Settings

_OVERHEAD_BYTES = 3 * 2**29  # both processes' libraries, adapters and activations: 1.5 GiB
_DTYPE_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
_STORED_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def main(arguments: Sequence[str] | None = None) -> int:
    """Replaces this process with the server, so that signals and the process id are the server's own.

    Returns only when the server cannot be started, with one sentence on stderr: 2 for wrong settings, where a restart
    fails the same way, and 1 for problems that may pass, such as too little memory.
    """
    listen = _parse(arguments)
    try:
        command = prepare(listen, Settings.load())
    except GadflyError as error:
        models.say(f"error: {error}")
        return 2 if isinstance(error, BadSettings) else 1
    return os.execvpe(command.argv[0], command.argv, dict(command.env))


def prepare(listen: Listen, settings: Settings) -> Command:
    """The server's command, after all checks that are possible before the start.

    Raises:
        GadflyError: the reason why the server cannot run.
    """
    installed = check_installed(settings.engine_device, installed_vllm())
    check_listen(listen)
    model = models.resolve(settings.model, default=settings.default_model, revision=settings.model_revision)
    check_context(model.config, settings)
    if installed.device is Device.CPU:
        check_plugin()
        check_libraries()
        check_kv_cache(model.config, settings)
        if model.folder is not None:
            check_memory(model.folder, settings, available=available_memory())
    return server_command(settings, model=model.name, listen=listen, installed=installed, offline=model.is_local)


def _parse(arguments: Sequence[str] | None) -> Listen:
    parser = argparse.ArgumentParser(
        prog="python -m gadfly.engine", description="vLLM's server with the flags and plugins of Gadfly."
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--uds", type=Path, metavar="PATH", help="listen on this Unix socket")
    where.add_argument("--port", type=int, help="listen on this TCP port")
    parser.add_argument("--host", default="127.0.0.1", help="address for --port; the engine requires no keys")
    options = parser.parse_args(arguments)
    return UnixSocket(options.uds.absolute()) if options.uds else Tcp(options.host, options.port)


def check_listen(listen: Listen) -> None:
    """Refuses an address in use; removes the socket of a dead server and creates the socket's folder.

    Raises:
        EngineError: names the problem with the address.
    """
    if isinstance(listen, Tcp):
        _check_port(listen)
    else:
        _check_socket(listen.path)


def _check_port(listen: Tcp) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        raise EngineError(f"The engine cannot listen on {listen.host}:{listen.port}: {error}.") from error


def _check_socket(path: Path) -> None:
    length = len(os.fsencode(path))
    if length > UNIX_PATH_MAX:
        raise EngineError(f"The socket path {path} has {length} bytes, and {UNIX_PATH_MAX} are allowed.")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the engine trusts every caller on its socket
        if not path.exists():
            return
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise EngineError(f"{path} exists and is not a socket.")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
    except OSError as error:
        if error.errno != errno.ECONNREFUSED:
            raise EngineError(f"The engine cannot listen on {path}: {error.strerror}.") from error
        path.unlink()  # its server has ended
        return
    raise EngineError(f"An engine is already listening on {path}.")


def check_plugin() -> None:
    """Refuses to start a CPU engine without the plugin that fixes vLLM's adapters on CPU.

    Raises:
        EngineError: the entry point is not installed.
    """
    if not entry_points(group="vllm.general_plugins", name=PLUGIN):
        raise EngineError(
            "Without Gadfly's vLLM plugin, a CPU engine answers base requests with an adapter's weights: install "
            "Gadfly with pip instead of adding it to PYTHONPATH."
        )


def check_libraries() -> None:
    """Refuses to start a CPU engine without libnuma and the command lscpu, which no wheel contains.

    Raises:
        EngineError: names the package to install.
    """
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        raise EngineError("vLLM needs the library libnuma.so.1: apt-get install libnuma1.") from None
    if shutil.which("lscpu") is None:
        raise EngineError("vLLM counts the processor's cores with the command lscpu: apt-get install util-linux.")


def check_context(config: Path, settings: Settings) -> None:
    """Refuses a context longer than the model's. Scaled positions are left to vLLM's own check.

    Raises:
        BadSettings: names both lengths.
        ModelUnavailable: the model's configuration cannot be read.
    """
    try:
        values = json.loads(config.read_text())
        longest = None if values.get("rope_scaling") else values.get("max_position_embeddings")
    except (OSError, ValueError, AttributeError) as error:
        raise models.ModelUnavailable(f"{config} cannot be read: {error}.") from error
    if isinstance(longest, int) and settings.engine_max_model_len > longest:
        raise BadSettings(
            f"GADFLY_ENGINE_MAX_MODEL_LEN is {settings.engine_max_model_len}, but the model supports {longest} tokens."
        )


def check_kv_cache(config: Path, settings: Settings) -> None:
    """Refuses a KV cache that cannot hold one request. Skips models with unusual attention.

    Raises:
        BadSettings: names both sizes.
    """
    values = json.loads(config.read_text())
    heads = values.get("num_key_value_heads") or values.get("num_attention_heads")
    width = values.get("head_dim") or (values.get("hidden_size") or 0) // (values.get("num_attention_heads") or 1)
    layers = values.get("num_hidden_layers")
    if not (heads and width and layers) or values.get("sliding_window") or values.get("kv_lora_rank"):
        return
    dtype = "float32" if settings.engine_dtype == "auto" else settings.engine_dtype
    needed = 2 * layers * heads * width * _DTYPE_BYTES.get(dtype, 2) * settings.engine_max_model_len
    if settings.engine_kv_cache_bytes < needed:
        raise BadSettings(
            f"GADFLY_ENGINE_KV_CACHE_BYTES is {settings.engine_kv_cache_bytes}, but one request of "
            f"GADFLY_ENGINE_MAX_MODEL_LEN ({settings.engine_max_model_len}) tokens needs {needed}."
        )


def check_memory(folder: Path, settings: Settings, *, available: int) -> None:
    """Refuses a model that does not fit into memory: the kernel would kill the engine minutes later without a message.

    Raises:
        EngineError: names the needed and the available memory.
    """
    weights = weight_bytes(folder, settings.engine_dtype)
    needed = weights + settings.engine_kv_cache_bytes + _OVERHEAD_BYTES
    if needed > available:
        raise EngineError(
            f"The engine needs about {_gib(needed)} GiB of memory (weights {_gib(weights)}, KV cache "
            f"{_gib(settings.engine_kv_cache_bytes)}, libraries {_gib(_OVERHEAD_BYTES)}) and {_gib(available)} GiB are "
            "available."
        )


def weight_bytes(folder: Path, dtype: str) -> int:
    """Bytes that the safetensors of this folder take in memory in the engine's type (`auto` is float32 here).

    Raises:
        ModelUnavailable: a file is truncated, or is a Git LFS pointer.
    """
    width = _DTYPE_BYTES.get("float32" if dtype == "auto" else dtype)
    total = 0
    for path in folder.glob("*.safetensors"):
        try:
            tensors, _ = read_safetensors_header(path)
        except (OSError, ValueError) as error:
            raise models.ModelUnavailable(
                f"{path} holds no weights: it is truncated, or an unresolved Git LFS pointer."
            ) from error
        for tensor in tensors.values():
            start, end = tensor["data_offsets"]
            # Quantised types keep their size; the other types are cast.
            stored = _STORED_BYTES.get(tensor["dtype"])
            total += math.prod(tensor["shape"]) * width if stored and width else end - start
    return total


def available_memory() -> int:
    """Bytes available to this process and its children, within the machine's memory and the container's limit."""
    available = int(psutil.virtual_memory().available)
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        lines = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # no cgroup v2, or the limit is "max"
        return available
    cached = sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
    return min(available, limit - used + cached)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"


if __name__ == "__main__":
    sys.exit(main())
