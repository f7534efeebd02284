"""The least that a service of this kind can cost: `python -m bench.floor --uds ENGINE --port N --database URL`.

One FastAPI route that makes the two requests of a critique with aiohttp and commits one row, in a group with others.
It checks nothing, keeps no index, and knows neither critics nor keys.
"""

import argparse
import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import psycopg
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response
from psycopg.types.json import Jsonb, set_json_dumps

from gadfly import prompts

_GROUP = 128


class Commits:
    """Stores rows of JSON in groups; a caller waits until its row is committed."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._pending: list[tuple[dict[str, Any], asyncio.Future[None]]] = []
        self._has_pending = asyncio.Event()

    async def store(self, row: dict[str, Any]) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((row, done))
        self._has_pending.set()
        await done

    async def run(self) -> None:
        while True:
            await self._has_pending.wait()
            self._has_pending.clear()
            while self._pending:
                group, self._pending = self._pending[:_GROUP], self._pending[_GROUP:]
                await self._connection.execute(
                    "INSERT INTO bench_floor SELECT * FROM unnest(%s::uuid[], %s::jsonb[])",
                    ([uuid.uuid4() for _ in group], [Jsonb(row) for row, _ in group]),
                    prepare=True,
                )
                await self._connection.commit()
                for _, done in group:
                    done.set_result(None)


def make_app(*, uds: str, database: str) -> FastAPI:
    prompt_set = prompts.load("stepwise@1")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        set_json_dumps(orjson.dumps)
        connector = aiohttp.UnixConnector(uds, limit=0)
        async with (
            aiohttp.ClientSession("http://engine", connector=connector) as app.state.engine,
            await psycopg.AsyncConnection.connect(database) as connection,
        ):
            await connection.execute("CREATE TABLE IF NOT EXISTS bench_floor (id uuid PRIMARY KEY, data jsonb)")
            await connection.commit()
            app.state.commits = Commits(connection)
            task = asyncio.create_task(app.state.commits.run())
            yield
            task.cancel()

    app = FastAPI(lifespan=lifespan)

    async def ask(messages: list[dict[str, str]], **options: Any) -> Any:
        body = orjson.dumps({"model": "base", "messages": messages, "temperature": 0, **options})
        headers = {"content-type": "application/json"}
        async with app.state.engine.post("/v1/chat/completions", data=body, headers=headers) as answer:
            return orjson.loads(await answer.read())

    @app.get("/readyz")
    async def ready() -> Response:
        return Response("{}")

    @app.post("/critique")
    async def critique(request: Request) -> Response:
        body = orjson.loads(await request.body())
        prompt = prompt_set.critique(question=body["question"], response=body["response"])
        messages = [{"role": item.role, "content": item.content} for item in prompt.messages]
        text = (await ask(messages, max_tokens=512))["choices"][0]["message"]["content"]
        read = await ask(
            [*messages, {"role": "assistant", "content": text}], max_tokens=1, logprobs=True, logprob_token_ids=[1, 2]
        )
        result = {**body, "critique": text, "read": read["choices"][0]["logprobs"]["content"][0]["logprob"]}
        await app.state.commits.store(result)
        return Response(orjson.dumps(result), media_type="application/json")

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uds", required=True, help="the engine's socket")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--database", required=True, help="a URL of libpq")
    options = parser.parse_args()
    app = make_app(uds=options.uds, database=options.database)
    uvicorn.run(app, port=options.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
