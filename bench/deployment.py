"""A deployment for benchmarks: one engine, one service and an embedded Postgres in a temporary folder."""

import asyncio
import itertools
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import MappingProxyType

import httpx

from gadfly.settings import Settings
from gadfly.store.database import migrate
from gadfly.store.embedded import EmbeddedPostgres

RESPONSE = "She buys 5 * 12 = 60 pens. She has 60 - 17 = 43 pens left. The answer is 43."
REFERENCE = "43"

_numbers = itertools.count(random.SystemRandom().randrange(10**9))


def question() -> str:
    """A new question in every call, so that the prefix cache holds none of it."""
    return f"{next(_numbers)}: A box holds 12 pens. Ann buys 5 boxes and gives 17 pens away. How many pens are left?"


@contextmanager
def deployment(model: str, *, models_home: Path | None) -> Iterator[Settings]:
    """Settings of a deployment with a running database. `models_home` is a GADFLY_HOME with the default model."""
    with tempfile.TemporaryDirectory(prefix="gadfly-bench-") as folder:
        home = Path(folder)
        if models_home:
            (home / "models").symlink_to((models_home / "models").absolute())
        with EmbeddedPostgres(home) as postgres:
            migrate(postgres.url)
            yield Settings.load(
                {
                    "home": home,
                    "database_url": postgres.url,
                    "engine_urls": f"unix://{home}/engine.sock",
                    "model": model,
                    "port": free_port(),
                    "log_level": "warning",
                }
            )


@asynccontextmanager
async def running(
    settings: Settings, *, environ: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[httpx.AsyncClient]:
    """Start engine and service and wait until they are ready; a client of the service. `environ` is added to both."""
    logs = settings.home
    uds = Path(settings.engine_urls[0].removeprefix("unix://"))
    environment = settings.to_environment() | dict(environ)
    transport = httpx.AsyncHTTPTransport(uds=str(uds))
    with process(["gadfly.engine", "--uds", str(uds)], environment, logs / "engine.log") as engine:
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            await until_up(client, "/health", engine, logs / "engine.log")
        with process(["gadfly.service"], environment, logs / "service.log") as service:
            async with httpx.AsyncClient(
                base_url=settings.service_url, timeout=600, limits=httpx.Limits(max_connections=None)
            ) as client:
                await until_up(client, "/readyz", service, logs / "service.log")
                yield client


@contextmanager
def process(arguments: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", *arguments], env=os.environ | environment, stdout=output, stderr=output
        )
        try:
            yield child
        finally:
            child.terminate()
            child.wait(60)


async def until_up(client: httpx.AsyncClient, path: str, child: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        if child.poll() is not None:
            raise SystemExit(f"a process did not start:\n{log.read_text()[-4000:]}")  # noqa: ASYNC240  # the program ends here
        try:
            if (await client.get(path)).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
