"""/health before the engine can answer. Every test with a real engine covers /health afterwards."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from gadfly.engine.warm_up import WarmUp


class Server:
    """vLLM's routes; chat completions fail with `status`."""

    def __init__(self) -> None:
        self.attempts = 0
        self.status = 500
        self.app = FastAPI()
        self.app.add_middleware(WarmUp)
        self.app.add_api_route("/health", lambda: None)
        self.app.add_api_route("/v1/chat/completions", self._chat, methods=["POST"])
        self.app.add_api_route("/v1/completions", self._complete, methods=["POST"])
        self.app.add_api_route("/tokenize", self._tokenize, methods=["POST"])
        self.app.add_api_route("/detokenize", self._detokenize, methods=["POST"])

    async def _tokenize(self, request: Request) -> dict[str, list[int]]:
        return {"tokens": [ord(letter) for letter in (await request.json())["prompt"]]}

    async def _detokenize(self, request: Request) -> dict[str, str]:
        return {"prompt": "".join(map(chr, (await request.json())["tokens"]))}

    async def _complete(self) -> dict[str, str]:
        return {}

    async def _chat(self) -> Response:
        self.attempts += 1
        if self.status == 400:
            return Response('{"error": {"message": "too long", "param": "input_tokens"}}', status_code=400)
        return Response('{"error": {"message": "no memory"}}', status_code=self.status)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=server.app), base_url="http://engine") as client:
        yield client


async def _settled(client: httpx.AsyncClient) -> httpx.Response:
    """The answer of /health after the warm-up that it starts has ended."""
    await client.get("/health")
    await asyncio.sleep(0.2)
    return await client.get("/health")


async def test_a_failed_warm_up_is_not_ready_and_is_retried(server: Server, client: httpx.AsyncClient) -> None:
    first = await client.get("/health")
    assert (first.status_code, first.json()) == (503, {"detail": "the engine is warming up"})
    failed = await _settled(client)
    assert failed.status_code == 503
    assert "no memory" in failed.json()["detail"]
    await asyncio.sleep(0.2)
    assert server.attempts >= 2


async def test_a_context_too_short_for_a_critique_is_still_ready(server: Server, client: httpx.AsyncClient) -> None:
    server.status = 400
    assert (await _settled(client)).status_code == 200


async def test_other_requests_pass_through(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/completions")).status_code == 200
