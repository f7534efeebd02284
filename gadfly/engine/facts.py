"""How the engine was started, for `gadfly doctor`: vLLM itself reports hardly any of its flags."""

import secrets
from importlib.metadata import entry_points
from typing import Any

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from gadfly.engine.command import PLUGIN

PATH = "/gadfly/engine"

_PROCESS = secrets.token_hex(16)
"""Names this process: a proof holds for it, and not for the next one at the same address."""


class Facts:
    """ASGI middleware for `--middleware gadfly.engine.facts.Facts`; answers GET /gadfly/engine, passes all else on.

    Like /version it needs no key. It shows no texts, keys or paths.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called by the server for each request."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        body = orjson.dumps(facts(scope["app"].state.vllm_config))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def facts(config: Any) -> dict[str, Any]:
    """What the hot swap depends on in a `vllm.config.VllmConfig`. Slots and rank are 0 without adapters."""
    from vllm import envs

    lora, scheduler = config.lora_config, config.scheduler_config
    plugins = envs.VLLM_PLUGINS
    is_installed = bool(entry_points(group="vllm.general_plugins", name=PLUGIN))
    return {
        "device": config.device_config.device_type,
        "adapters": lora is not None,
        "runtime_loading": bool(envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING),
        "slots": 0 if lora is None else lora.max_loras,
        "rank": 0 if lora is None else int(lora.max_lora_rank),
        "plugin": is_installed and (plugins is None or PLUGIN in plugins),
        "priorities": str(getattr(scheduler.policy, "value", scheduler.policy)) == "priority",
        "prefix_cache": bool(config.cache_config.enable_prefix_caching),
        "generation_config": str(config.model_config.generation_config),
        "process": _PROCESS,
        "revision": str(config.model_config.revision or ""),  # of a hub model: vLLM resolves it to a commit
    }
