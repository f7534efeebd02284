"""How an engine says it was started, and the printed command that has all that the hot swap needs."""

import re
import shlex
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from gadfly.engine.command import FACTS, SCHEDULER, WARM_UP, serve_line
from gadfly.engine.facts import Facts
from gadfly.settings import Device, Settings


def config(**changes: Any) -> SimpleNamespace:
    given = {
        "lora": SimpleNamespace(max_loras=4, max_lora_rank=16),
        "policy": "priority",
        "generation": "vllm",
        **changes,
    }
    return SimpleNamespace(
        device_config=SimpleNamespace(device_type="cpu"),
        lora_config=given["lora"],
        scheduler_config=SimpleNamespace(policy=given["policy"]),
        cache_config=SimpleNamespace(enable_prefix_caching=True),
        model_config=SimpleNamespace(generation_config=given["generation"], revision=given.get("revision")),
    )


async def ask(vllm_config: SimpleNamespace, path: str = "/gadfly/engine") -> dict[str, Any] | None:
    """The answer of the middleware; None where it passes the request on."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent.append(None)

    async def receive() -> Any:
        raise AssertionError("the middleware reads no body")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "app": SimpleNamespace(state=SimpleNamespace(vllm_config=vllm_config))}
    await Facts(app)(scope, receive, send)
    if sent == [None]:
        return None
    assert sent[0]["status"] == 200
    answer: dict[str, Any] = orjson.loads(sent[1]["body"])
    return answer


async def test_what_the_hot_swap_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    facts = await ask(config())
    assert facts is not None
    assert re.fullmatch("[0-9a-f]{32}", facts.pop("process"))
    assert facts == {
        "device": "cpu", "adapters": True, "runtime_loading": True, "slots": 4, "rank": 16, "plugin": True,
        "priorities": True, "prefix_cache": True, "generation_config": "vllm", "revision": "",
    }  # fmt: skip


async def test_an_engine_without_all_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", raising=False)
    monkeypatch.setenv("VLLM_PLUGINS", "others")
    facts = await ask(config(lora=None, policy="fcfs", generation="auto"))
    assert facts is not None
    lacking = {name for name, value in facts.items() if not value} - {"revision"}
    assert lacking == {"adapters", "runtime_loading", "slots", "rank", "plugin", "priorities"}
    assert facts["generation_config"] == "auto"


async def test_the_commit_of_a_hub_model() -> None:
    facts = await ask(config(revision="0a" * 20))
    assert facts is not None
    assert facts["revision"] == "0a" * 20


async def test_other_requests_pass() -> None:
    assert await ask(config(), "/v1/models") is None


LINES = [  # device, version, settings, words in this order, why this row exists
    (Device.GPU, "0.32.0", {}, "vllm serve org/m --served-model-name my/name", "as on vLLM's own pages"),
    (Device.GPU, "0.32.0", {}, "--enable-lora --max-loras 4", "adapters and their slots"),
    (Device.GPU, "0.32.0", {"adapter_rank": 20}, "--max-lora-rank 32", "the rank that vLLM has"),
    (Device.GPU, "0.32.0", {}, "--scheduling-policy priority", "priorities"),
    (Device.GPU, "0.32.0", {}, "--generation-config vllm", "no sampling defaults"),
    (Device.GPU, "0.32.0", {}, f"--middleware {FACTS}", "so that doctor sees the flags"),
    (Device.GPU, "0.32.0", {}, f"--scheduler-cls {SCHEDULER}", "a release it was tested with"),
    (
        Device.CPU,
        "0.32.0",
        {},
        "VLLM_ENABLE_V1_MULTIPROCESSING=0 python -m vllm.entrypoints.launchers.api_server.entry",
        "no `vllm serve` there",
    ),
    (Device.CPU, "0.32.0", {}, "--dtype float32 --enforce-eager", "as a started engine"),
    (Device.GPU, "0.32.0", {"engine_args": "--seed '3 4'"}, "--seed '3 4'", "the deployment's own flags, quoted"),
    (
        Device.GPU,
        "0.32.0",
        {"model_revision": "0a" * 20},
        f"--revision {'0a' * 20} --tokenizer-revision {'0a' * 20}",
        "the pinned commit",
    ),
    (Device.GPU, "0.32.0", {"engine_key": "secret"}, '--api-key "$GADFLY_ENGINE_KEY"', "the key stays a variable"),
]


@pytest.mark.parametrize(("device", "version", "settings", "expected", "why"), LINES)
def test_the_printed_command(device: Device, version: str, settings: dict[str, Any], expected: str, why: str) -> None:
    line = serve_line(Settings.load(settings), model="org/m", name="my/name", device=device, version=version, port=8000)
    assert f" {expected} " in f" {line} ", why
    assert line.startswith("VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 ")
    assert "--port 8000" in line
    assert "secret" not in line
    assert WARM_UP not in shlex.split(line), "it needs the deployment's prompts, and no key"


def test_other_releases_get_vllms_own_scheduler() -> None:
    line = serve_line(Settings(), model="m", name="n", device=Device.GPU, version="0.33.0")
    assert "--scheduler-cls" not in line
    assert "--port" not in line
