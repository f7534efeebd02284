"""What the engine's client costs by itself, beside the `openai` library: `python -m bench.client`.

Both send the same critique to a transport that answers at once, so what is counted is the processor time of client and
HTTP library alone, per request: milliseconds, the best of several rounds. See docs/decisions/engine-client.md.
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


def _answer(asked: bytes) -> dict[str, Any]:
    head = {"id": "chatcmpl-1", "created": 1, "model": ACTOR}
    if not orjson.loads(asked).get("stream"):
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
    their_transport = httpx2.MockTransport(lambda request: httpx2.Response(200, **_answer(request.content)))
    ours = Engine("http://engine", timeout_s=5, transport=transport)
    theirs = AsyncOpenAI(
        api_key="none",
        base_url="http://engine/v1",
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=their_transport),
    )
    asked: dict[str, Any] = {"model": ACTOR, "messages": MESSAGES, "n": 1, "temperature": 0, "max_tokens": TOKENS}
    asked["extra_body"] = {"priority": 0, "continue_final_message": True, "add_generation_prompt": False}
    sampling = Sampling(max_tokens=TOKENS)

    async def heard(_: int, text: str) -> None:
        pass

    async def their_stream() -> None:
        async for chunk in await theirs.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        ):
            for choice in chunk.choices:
                await heard(0, choice.delta.content or "")

    rows = {
        "a critique at once": (
            lambda: ours.chat(PROMPT, model=ACTOR, sampling=sampling),
            lambda: theirs.chat.completions.create(**asked),
        ),
        f"a stream of {TOKENS} tokens": (
            lambda: ours.chat(PROMPT, model=ACTOR, sampling=sampling, on_text=heard),
            their_stream,
        ),
    }
    for name, (our_call, their_call) in rows.items():
        ours_ms, theirs_ms = await _cpu_ms(our_call), await _cpu_ms(their_call)
        print(f"{name}: httpx {ours_ms:.2f} ms, openai {theirs_ms:.2f} ms, {theirs_ms / ours_ms:.1f} times as much")


if __name__ == "__main__":
    asyncio.run(measure())
