"""Adapters sent to a real engine that cannot read the folder of the deployment."""

import asyncio
import hashlib
import os
import time
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

from gadfly.adapters import CONFIG
from gadfly.engine.uploads import DIGEST, PATH, Uploads
from gadfly.engine_client import Engine
from gadfly.errors import AdapterRefused
from tests.support.engines import RunningEngine
from tests.support.tiny_models import Adapted

HERE = Path("/proc/self/cwd")
"""A path that leads each process to its own current folder, as if the engine ran on another host."""

PROMPT = {"token_ids": list(range(3, 23)), "sampling_params": {"max_tokens": 20, "min_tokens": 20, "temperature": 0.0}}


def digest(content: bytes) -> dict[str, str]:
    return {DIGEST: f"sha-256=:{b64encode(hashlib.sha256(content).digest()).decode()}:"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def answer(engine: RunningEngine, model: str) -> list[int]:
    async with engine.async_client() as client:
        reply = await client.post("/inference/v1/generate", json={"model": model, **PROMPT})
    reply.raise_for_status()
    tokens: list[int] = reply.json()["choices"][0]["token_ids"]
    return tokens


async def test_an_engine_without_the_folder_is_sent_the_files(
    tiny_engine: RunningEngine, tiny: Adapted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.adapters["one"])
    engine = Engine(tiny_engine.url, timeout_s=60)
    try:
        assert await engine.load_adapter("run@7/step 1", HERE)
        assert await engine.load_adapter("run@7/step 1", HERE) is False, "it is served already"
        assert await answer(tiny_engine, "run@7/step 1") == await answer(tiny_engine, "one")
        assert await answer(tiny_engine, "run@7/step 1") != await answer(tiny_engine, "base")
        (Path.cwd() / "empty").mkdir()
        with pytest.raises(AdapterRefused, match=r"adapter_model\.safetensors cannot be read: No such file"):
            await engine.load_adapter("run@7/step 2", HERE / "empty")
    finally:
        await engine.unload_adapter("run@7/step 1")
        await engine.aclose()


# ------------------------------------------------------------------------------------------------- the route by itself


class OneEngine:
    """The route in an application without vLLM, which serves the adapters in `served`."""

    def __init__(self, *, keys: Sequence[str] = ()) -> None:
        self.served: dict[str, object] = {}
        app = Starlette()
        app.state.openai_serving_models = SimpleNamespace(lora_requests=self.served)
        if keys:  # in this order, as in vllm/entrypoints/serve/middleware/register.py
            app.add_middleware(AuthenticationMiddleware, tokens=list(keys))
        app.add_middleware(Uploads)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://engine")

    async def put(
        self, name: str | None, content: bytes = b"{}", *, file: str = CONFIG, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        headers = digest(content) if headers is None else headers
        query = {} if name is None else {"name": name}
        return await self.client.put(f"{PATH}/{file}", params=query, content=content, headers=headers)

    async def folder_of(self, name: str, content: bytes = b"{}") -> Path:
        return Path((await self.put(name, content)).json()["folder"])


@pytest.mark.parametrize(
    ("file", "name", "headers", "status", "message", "why"),
    [
        ("evil.py", "a", None, 400, "is no file of an adapter", "an engine loads only the two files of an adapter"),
        ("..%2Fevil", "a", None, 404, None, "a path outside of the folder"),
        (CONFIG, None, None, 400, "the adapter needs a name", "its folder is named by it"),
        (CONFIG, "a", {}, 400, "the header content-digest must hold", "a file that was cut would be loaded"),
        (CONFIG, "a", {DIGEST: "sha-256=:!:"}, 400, "the header content-digest must hold", "not base64"),
        (CONFIG, "a", digest(b"other"), 400, "arrived with another hash", "a file that changed on the way"),
    ],
)
async def test_what_is_refused(
    file: str, name: str | None, headers: dict[str, str] | None, status: int, message: str | None, why: str
) -> None:
    response = await OneEngine().put(name, file=file, headers=headers)
    assert response.status_code == status, why
    if message is not None:
        assert message in response.json()["error"]["message"], why


async def test_a_name_stays_inside_the_folder() -> None:
    engine = OneEngine()
    names = ("plain", "../../etc", "run@1/final", "run@1/start", "a" * 5000, "\x00")
    folders = {await engine.folder_of(name) for name in names}
    assert len(folders) == len(names)
    assert len({folder.parent for folder in folders}) == 1
    assert all(folder.parent.name.startswith("gadfly-adapters-") for folder in folders)


async def test_the_key_of_the_engine_guards_its_disk() -> None:
    engine = OneEngine(keys=["secret"])
    for key, status in (({}, 401), ({"authorization": "Bearer wrong"}, 401), ({"authorization": "Bearer secret"}, 200)):
        assert (await engine.put("a", headers=digest(b"{}") | key)).status_code == status


async def test_a_refused_file_leaves_nothing_and_a_later_one_replaces(tmp_path: Path) -> None:
    engine = OneEngine()
    folder = await engine.folder_of("a", b"first")
    await engine.put("a", b"cut", headers=digest(b"whole"))
    assert names(folder) == {CONFIG}
    assert (folder / CONFIG).read_bytes() == b"first"
    answers = await asyncio.gather(*(engine.put("a", b"x" * 100_000) for _ in range(8)))
    assert {each.status_code for each in answers} == {200}
    assert (folder / CONFIG).read_bytes() == b"x" * 100_000
    assert names(folder) == {CONFIG}


async def test_adapters_that_the_engine_does_not_serve_are_deleted() -> None:
    engine = OneEngine()
    engine.served["live"] = object()
    folders = {name: await engine.folder_of(name) for name in ("live", "old", "new")}
    hour_ago = time.time() - 3600
    for name in ("live", "old"):
        os.utime(folders[name], (hour_ago, hour_ago))
    await engine.put("next")
    assert {name for name, folder in folders.items() if folder.exists()} == {"live", "new"}


async def test_folders_of_killed_engines_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "gadfly-adapters-killed" / "adapter").mkdir(parents=True)
    running = OneEngine()
    folder = await running.folder_of("a")
    assert names(tmp_path) == {folder.parent.name}
    await OneEngine().put("a")
    assert folder.exists(), "its engine runs"
    assert len(names(tmp_path)) == 2


async def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gadfly.engine.uploads._FREE_BYTES", 2**62)
    response = await OneEngine().put("a")
    assert response.status_code == 507
    assert "has too little space" in response.json()["error"]["message"]
