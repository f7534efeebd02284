"""CPU time of the engine client compared with the `openai` library: `python -m bench.client`.

Both send the same critique to a transport that answers immediately, so the figures are the CPU time of client and HTTP
library alone: milliseconds per request, the best of several rounds. See docs/decisions/engine-client.md.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import httpx2
import orjson
from openai import AsyncOpenAI

from gadfly import prompts
from gadfly.engine_client import ACTOR, Engine, Sampling
from gadfly.settings import Settings

TOKENS = 160
ROUNDS = 5
CALLS = 100

PROMPT = prompts.load(Settings().prompts).critique(question="How many? " * 30, response="As many. " * 30)
MESSAGES = [{"role": message.role, "content": message.content} for message in PROMPT.messages]
USAGE = {"prompt_tokens": 300, "completion_tokens": TOKENS, "total_tokens": 300 + TOKENS}


def _answer(request: bytes) -> dict[str, Any]:
    head = {"id": "chatcmpl-1", "created": 1, "model": ACTOR}
    if not orjson.loads(request).get("stream"):
        message = {"role": "assistant", "content": "word " * TOKENS}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return {"json": {**head, "object": "chat.completion", "choices": choices, "usage": USAGE}}
    pieces: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]} for _ in range(TOKENS)
    ]
    pieces += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": USAGE}]
    lines = [b"data: " + orjson.dumps({**head, "object": "chat.completion.chunk", **piece}) for piece in pieces]
    content = b"\n\n".join([*lines, b"data: [DONE]", b""])
    return {"content": content, "headers": {"content-type": "text/event-stream"}}


async def _cpu_ms(call: Callable[[], Awaitable[object]]) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(CALLS):
            await call()
        best = min(best, (time.process_time() - started) / CALLS * 1000)
    return best


async def measure() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, **_answer(request.content)))
    openai_transport = httpx2.MockTransport(lambda request: httpx2.Response(200, **_answer(request.content)))
    engine = Engine("http://engine", timeout_s=5, transport=transport)
    client = AsyncOpenAI(
        api_key="none",
        base_url="http://engine/v1",
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=openai_transport),
    )
    body: dict[str, Any] = {"model": ACTOR, "messages": MESSAGES, "n": 1, "temperature": 0, "max_tokens": TOKENS}
    body["extra_body"] = {"priority": 0, "continue_final_message": True, "add_generation_prompt": False}
    sampling = Sampling(max_tokens=TOKENS)

    async def ignore_text(_: int, text: str) -> None:
        pass

    async def openai_stream() -> None:
        async for chunk in await client.chat.completions.create(
            **body, stream=True, stream_options={"include_usage": True}
        ):
            for choice in chunk.choices:
                await ignore_text(0, choice.delta.content or "")

    rows = {
        "one critique": (
            lambda: engine.chat(PROMPT, model=ACTOR, sampling=sampling),
            lambda: client.chat.completions.create(**body),
        ),
        f"a stream of {TOKENS} tokens": (
            lambda: engine.chat(PROMPT, model=ACTOR, sampling=sampling, on_text=ignore_text),
            openai_stream,
        ),
    }
    for name, (engine_call, openai_call) in rows.items():
        engine_ms, openai_ms = await _cpu_ms(engine_call), await _cpu_ms(openai_call)
        print(f"{name}: httpx {engine_ms:.2f} ms, openai {openai_ms:.2f} ms, ratio {openai_ms / engine_ms:.1f}")


if __name__ == "__main__":
    asyncio.run(measure())
