"""The command line of vLLM's server and the checks before it, for tables of settings; no server is started."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gadfly.engine.__main__ import check_context, check_kv_cache, check_listen, check_memory, main, weight_bytes
from gadfly.engine.command import (
    Command,
    Installed,
    Listen,
    Tcp,
    UnixSocket,
    check_installed,
    lora_rank,
    server_command,
)
from gadfly.engine.models import ModelUnavailable
from gadfly.errors import BadSettings, EngineError
from gadfly.settings import Device, Settings

CPU = Installed(Device.CPU, "0.32.0")
GPU = Installed(Device.GPU, "0.32.0")
TRACED = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}
SOCKET = UnixSocket(Path("/run/engine.sock"))


def _command(
    installed: Installed = CPU,
    *,
    listen: Listen = SOCKET,
    environ: dict[str, str] | None = None,
    offline: bool = True,
    **settings: Any,
) -> Command:
    return server_command(
        Settings.load(settings), model="/m", listen=listen, installed=installed, offline=offline, environ=environ or {}
    )


FLAGS = [  # installed, settings, consecutive flags, why this row exists
    (CPU, {}, "--model /m --served-model-name base", "one name for the actor"),
    (CPU, {}, "--dtype float32", "bfloat16 is several times slower on most CPUs"),
    (CPU, {"engine_dtype": "bfloat16"}, "--dtype bfloat16", "an explicit type is kept"),
    (GPU, {}, "--dtype auto", "vLLM knows best on a GPU"),
    (CPU, {"engine_kv_cache_bytes": 2**28}, "--kv-cache-memory-bytes 268435456", "in bytes, not whole GiB"),
    (CPU, {}, "--block-size 32", "the shared part of the prompts is cached"),
    (CPU, {"adapter_slots": 3}, "--enable-lora --max-loras 3 --max-cpu-loras 6", "room to load the next ones"),
    (GPU, {"adapter_slots": 3}, "--enable-lora --max-loras 3 --max-cpu-loras 6", "both devices serve critics"),
    (CPU, {"adapter_rank": 20}, "--max-lora-rank 32", "vLLM supports certain ranks only"),
    (CPU, {}, "--lora-target-modules q_proj k_proj", "lm_head stays unwrapped"),
    (GPU, {}, "--scheduling-policy priority", "live traffic before rollouts"),
    (CPU, {}, "--scheduler-cls gadfly.engine.scheduler.foreground_first", "a release it was tested with"),
    (GPU, {}, "--scheduler-cls gadfly.engine.scheduler.foreground_first", "also on a GPU"),
    (CPU, {"engine_max_queued": 7}, "--max-num-queued-reqs 7", "overload is refused, not queued"),
    (CPU, {"engine_max_model_len": 999}, "--max-model-len 999", "context"),
    (GPU, {"engine_max_num_seqs": 9}, "--max-num-seqs 9", "batch"),
    (CPU, {"engine_max_num_seqs": 300}, "--max-num-batched-tokens 300", "vLLM needs a token for each sequence"),
    (
        GPU,
        {"model_revision": "0a" * 20},
        f"--revision {'0a' * 20} --tokenizer-revision {'0a' * 20}",
        "a pinned commit",
    ),
    (CPU, {"engine_args": "--seed 3 --x 'a b'"}, "--seed 3 --x a b", "the deployment's own flags"),
]


@pytest.mark.parametrize(("installed", "settings", "expected", "why"), FLAGS)
def test_flags(installed: Installed, settings: dict[str, Any], expected: str, why: str) -> None:
    assert f" {expected} " in f" {' '.join(_command(installed, **settings).argv)} ", why


def test_the_pin_of_a_folder_is_no_flag_of_vllm() -> None:
    assert "--revision" not in _command(model_revision=f"sha256:{'ab' * 32}").argv


def test_flags_of_the_deployment_come_last_and_win() -> None:
    assert _command(engine_args="--max-num-seqs 2 'a b'").argv[-3:] == ("--max-num-seqs", "2", "a b")


@pytest.mark.parametrize(
    ("listen", "expected"),
    [(SOCKET, "--uds /run/engine.sock"), (Tcp("127.0.0.1", 8000), "--host 127.0.0.1 --port 8000")],
)
def test_address(listen: Listen, expected: str) -> None:
    assert expected in " ".join(_command(listen=listen).argv)


def test_untested_releases_get_vllms_own_scheduler() -> None:
    line = " ".join(_command(Installed(Device.GPU, "0.33.0")).argv)
    assert "--scheduler-cls" not in line
    assert "--scheduling-policy priority" in line


def test_a_gpu_gets_no_cpu_flags() -> None:
    line = _command(GPU).argv
    assert not {"--enforce-eager", "--kv-cache-memory-bytes", "--max-num-batched-tokens", "--block-size"} & set(line)


ENVIRONMENT = [  # installed, environment of the caller, variable, value, why this row exists
    (CPU, {}, "VLLM_ENABLE_V1_MULTIPROCESSING", "0", "one process less"),
    (GPU, {}, "VLLM_ENABLE_V1_MULTIPROCESSING", None, "vLLM's default"),
    (CPU, {}, "VLLM_WORKER_MULTIPROC_METHOD", "fork", "the engine's process needs no imports of its own"),
    (CPU, {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}, "VLLM_WORKER_MULTIPROC_METHOD", "spawn", "the user's value wins"),
    (GPU, {}, "VLLM_WORKER_MULTIPROC_METHOD", None, "vLLM's default"),
    (CPU, {"VLLM_CPU_KVCACHE_SPACE": "4"}, "VLLM_CPU_KVCACHE_SPACE", None, "it would override the flag"),
    (GPU, {}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1", "critics are loaded at runtime"),
    (CPU, {}, "VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "120", "the client closes first"),
    (CPU, {}, "VLLM_NO_USAGE_STATS", "1", "no usage reports"),
    (CPU, {}, "HF_HUB_OFFLINE", "1", "a local model needs no hub"),
    (CPU, {"VLLM_PLUGINS": "other"}, "VLLM_PLUGINS", "other,gadfly", "a list must not exclude Gadfly's plugin"),
    (CPU, {}, "VLLM_PLUGINS", None, "without a list all are loaded"),
    (CPU, {"VLLM_LOGGING_LEVEL": "DEBUG"}, "VLLM_LOGGING_LEVEL", "DEBUG", "the user's value wins"),
    (CPU, {"HOME": "/h"}, "HOME", "/h", "the rest of the environment is kept"),
    (CPU, {}, "OTEL_SERVICE_NAME", None, "no traces"),
    (CPU, TRACED, "OTEL_SERVICE_NAME", "gadfly-engine", "the engine is one of several processes in a trace"),
    (CPU, TRACED | {"OTEL_SERVICE_NAME": "x"}, "OTEL_SERVICE_NAME", "x", "the user's value wins"),
    (CPU, TRACED, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf", "vLLM's default is another one"),
]


@pytest.mark.parametrize(("installed", "given", "name", "value", "why"), ENVIRONMENT)
def test_environment(installed: Installed, given: dict[str, str], name: str, value: str | None, why: str) -> None:
    assert _command(installed, environ=given).env.get(name) == value, why


TRACES = [  # environment of the caller, address for vLLM, why this row exists
    ({}, None, "off by default"),
    (TRACED, "http://c:4318/v1/traces", "vLLM adds no path"),
    (TRACED | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http://c:4318", "gRPC has no paths"),
    (TRACED | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, None, "vLLM would not start with it"),
]


@pytest.mark.parametrize(("given", "address", "why"), TRACES)
def test_traces(given: dict[str, str], address: str | None, why: str) -> None:
    argv = _command(environ=given).argv
    found = argv[argv.index("--otlp-traces-endpoint") + 1] if "--otlp-traces-endpoint" in argv else None
    assert found == address, why


def test_a_hub_model_may_reach_the_hub() -> None:
    assert "HF_HUB_OFFLINE" not in _command(offline=False).env


def test_vllm_finds_this_package_where_it_is_not_installed() -> None:
    repository = str(Path(__file__).resolve().parents[2])
    assert _command(environ={"PYTHONPATH": "/else"}).env["PYTHONPATH"] == f"{repository}:/else"


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (2, 8), (8, 8), (9, 16), (65, 128), (257, 320), (512, 512)])
def test_rank(rank: int, allowed: int) -> None:
    assert lora_rank(rank) == allowed


def test_building_a_command_imports_neither_vllm_nor_torch() -> None:
    code = "import sys, gadfly.engine.__main__; sys.exit(bool({'vllm', 'torch', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])


@pytest.mark.parametrize(
    ("wanted", "installed", "sentence"),
    [
        (Device.AUTO, None, "not installed"),
        (Device.GPU, CPU, r"install gadfly\[gpu\]"),
        (Device.CPU, GPU, r"install gadfly\[cpu\]"),
    ],
)
def test_the_wrong_vllm_is_refused(wanted: Device, installed: Installed | None, sentence: str) -> None:
    with pytest.raises(BadSettings, match=sentence):
        check_installed(wanted, installed)


def test_a_long_socket_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="107 are allowed"):
        check_listen(UnixSocket(tmp_path / ("x" * 107)))


def test_a_live_socket_is_refused_and_a_dead_one_removed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "engine.sock"
    check_listen(UnixSocket(path))
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(EngineError, match="already listening"):
            check_listen(UnixSocket(path))
    assert path.exists()
    check_listen(UnixSocket(path))
    assert not path.exists()


def test_a_regular_file_is_not_replaced_by_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    path.write_text("mine")
    with pytest.raises(EngineError, match="not a socket"):
        check_listen(UnixSocket(path))
    assert path.read_text() == "mine"


def test_a_busy_port_is_refused() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with pytest.raises(EngineError, match="Address already in use"):
            check_listen(Tcp("127.0.0.1", server.getsockname()[1]))


def _write_weights(folder: Path, **shapes: tuple[str, list[int], int]) -> None:
    offset, header = 0, {"__metadata__": {"format": "pt"}}
    for name, (dtype, shape, size) in shapes.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}  # type: ignore[dict-item]
        offset += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("auto", 40 + 7), ("float32", 40 + 7), ("bfloat16", 20 + 7)],
)
def test_weights_are_counted_in_the_engines_type_unless_quantised(tmp_path: Path, dtype: str, size: int) -> None:
    _write_weights(tmp_path, a=("BF16", [2, 5], 20), b=("U8", [7], 7))
    assert weight_bytes(tmp_path, dtype) == size


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"\x10\0\0\0\0\0\0\0{", b""]
)
def test_unreadable_weights_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelUnavailable, match="holds no weights"):
        weight_bytes(tmp_path, "auto")


def test_a_kv_cache_too_small_for_one_request_is_refused_with_both_sizes(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    needed = 2 * 2 * 2 * 8 * 4 * 2**20  # keys and values, layers, heads, width, bytes, tokens: 256 MiB
    given = {"engine_max_model_len": 2**20, "engine_kv_cache_bytes": needed}
    check_kv_cache(tmp_path / "config.json", Settings.load(given))
    with pytest.raises(BadSettings, match=f"is {needed - 1}, but .* needs {needed}"):
        check_kv_cache(tmp_path / "config.json", Settings.load(given | {"engine_kv_cache_bytes": needed - 1}))
    (tmp_path / "config.json").write_text(json.dumps(config | {"kv_lora_rank": 8}))  # unusual attention is not checked
    check_kv_cache(tmp_path / "config.json", Settings.load(given | {"engine_kv_cache_bytes": 2**20}))


def test_too_little_memory_is_refused_with_both_sizes(tmp_path: Path) -> None:
    _write_weights(tmp_path, a=("F32", [2**28], 2**30))
    settings = Settings.load({"engine_kv_cache_bytes": 2**29})
    with pytest.raises(EngineError, match=r"needs about 3\.0 GiB .* and 2\.0 GiB are available"):
        check_memory(tmp_path, settings, available=2 * 2**30)
    check_memory(tmp_path, settings, available=3 * 2**30)


def test_a_context_longer_than_the_models_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 512}')
    with pytest.raises(BadSettings, match="supports 512 tokens"):
        check_context(tmp_path / "config.json", Settings.load({"engine_max_model_len": 1024}))


def test_scaled_positions_are_not_checked(tmp_path: Path) -> None:
    config = {"max_position_embeddings": 512, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_context(tmp_path / "config.json", Settings.load({"engine_max_model_len": 1024}))


def test_a_broken_config_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        check_context(tmp_path / "config.json", Settings.load())


def test_an_engine_that_cannot_start_prints_one_sentence_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GADFLY_MODEL", str(tmp_path / "missing"))
    assert main(["--uds", str(tmp_path / "engine.sock")]) == 1
    assert capsys.readouterr().err == f"error: There is no model folder {tmp_path / 'missing'}.\n"
    monkeypatch.setenv("GADFLY_PORT", "none")
    assert main(["--uds", str(tmp_path / "engine.sock")]) == 2  # wrong settings: a restart fails the same way
