"""LiteLLM as a client, LiteLLM's proxy with Gadfly as its guardrail, and LangChain, against a real service.

Their pins do not fit ours, so they run in environments of their own. `GADFLY_TEST_CLIENTS` names the Python programs of
these environments, separated by colons; without it these tests are skipped.
"""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.service.conftest import QUESTION, RIGHT, WRONG
from tests.support.services import free_port, until

CONFIG = Path(__file__).resolve().parents[2] / "examples" / "litellm" / "config.yaml"

pytestmark = pytest.mark.timeout(600)

_MASTER_KEY = "sk-of-this-test"
_START_S = 400.0  # a busy machine imports LiteLLM for minutes

_LITELLM = """
import asyncio, json, os, sys
import litellm
options = dict(
    model="openai/" + sys.argv[1], api_base=os.environ["URL"] + "/v1", api_key="any", temperature=0, max_tokens=24,
    messages=[{"role": "user", "content": sys.argv[2]}],
)
answer = litellm.completion(**options)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**options, stream=True))
later = asyncio.run(litellm.acompletion(**options))
prompt = litellm.text_completion(
    model="text-completion-openai/" + sys.argv[1], prompt=sys.argv[2], api_base=options["api_base"], api_key="any",
    temperature=0, max_tokens=24,
)
try:
    litellm.completion(**options | {"model": "openai/no-such-model"})
    error = None
except litellm.NotFoundError as refused:
    error = "not found"
print(json.dumps({
    "text": answer.choices[0].message.content, "streamed": streamed, "later": later.choices[0].message.content,
    "prompt": prompt.choices[0].text, "tokens": answer.usage.total_tokens, "error": error,
}))
"""

_LANGCHAIN = """
import json, os, sys
from langchain_openai import ChatOpenAI
model = ChatOpenAI(model=sys.argv[1], base_url=os.environ["URL"] + "/v1", api_key="any", temperature=0, max_tokens=24)
answer = model.invoke(sys.argv[2])
streamed = "".join(chunk.content for chunk in model.stream(sys.argv[2]))
print(json.dumps({
    "text": answer.content, "streamed": streamed, "tokens": answer.usage_metadata["total_tokens"],
    "id": answer.response_metadata["id"],
}))
"""


def _python_with(package: str) -> str:
    for python in filter(None, os.environ.get("GADFLY_TEST_CLIENTS", "").split(os.pathsep)):
        if subprocess.run([python, "-c", f"import {package}"], capture_output=True, check=False).returncode == 0:
            return python
    pytest.skip(f"GADFLY_TEST_CLIENTS names no Python program with {package}")


async def _ran(python: str, script: str, *arguments: str, url: str) -> Any:
    process = await asyncio.create_subprocess_exec(
        python, "-c", script, *arguments,
        env={"PATH": os.environ["PATH"], "URL": url, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("model", ["actor", "refined"])
async def test_litellm_as_a_client(client: httpx.AsyncClient, model: str) -> None:
    found = await _ran(_python_with("litellm"), _LITELLM, model, QUESTION, url=str(client.base_url))
    assert found["text"]
    assert found["streamed"] == found["later"] == found["prompt"] == found["text"]
    assert found["tokens"] > 0
    assert found["error"] == "not found"


async def test_langchain(client: httpx.AsyncClient) -> None:
    found = await _ran(_python_with("langchain_openai"), _LANGCHAIN, "actor", QUESTION, url=str(client.base_url))
    assert found["streamed"] == found["text"] != ""
    interaction = (await client.get(f"/interactions/{found['id'].removeprefix('chatcmpl-')}")).json()
    assert (interaction["question"], interaction["response"]) == (QUESTION, found["text"])


@asynccontextmanager
async def _proxy(python: str, url: str, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A LiteLLM proxy with the guardrails of the example, in front of models whose answers are known."""
    config = yaml.safe_load(CONFIG.read_text())
    config["model_list"] = [
        {"model_name": name, "litellm_params": {"model": "openai/stub", "api_key": "x", "mock_response": text}}
        for name, text in (("right", RIGHT["response"]), ("wrong", WRONG["response"]))
    ]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (folder / "proxy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(Path(python).parent / "litellm"), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port),
            env={
                "PATH": f"{Path(python).parent}:{os.environ['PATH']}", "HOME": str(folder), "GADFLY_URL": url,
                "GADFLY_KEY": "any", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False",
                "LITELLM_MASTER_KEY": _MASTER_KEY,
            },
            cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        headers = {"Authorization": f"Bearer {_MASTER_KEY}"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
            async with asyncio.timeout(_START_S):
                while not await _is_alive(client):
                    assert process.returncode is None, (folder / "proxy.log").read_text()
                    await asyncio.sleep(0.25)
            yield client
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _is_alive(proxy: httpx.AsyncClient) -> bool:
    try:
        return (await proxy.get("/health/liveliness")).status_code == 200
    except httpx.TransportError:
        return False


async def test_a_litellm_proxy_with_gadfly_as_its_guardrail(client: httpx.AsyncClient, tmp_path: Path) -> None:
    async with _proxy(_python_with("litellm"), str(client.base_url), tmp_path) as proxy:

        async def ask(model: str, guardrail: str, **options: Any) -> httpx.Response:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": QUESTION}],
                "guardrails": [guardrail],
                **options,
            }
            return await proxy.post("/v1/chat/completions", json=body)

        logged = await ask("wrong", "gadfly")
        assert logged.json()["choices"][0]["message"]["content"] == WRONG["response"], logged.text
        call = logged.headers["x-litellm-call-id"]
        judged = await until(
            client, "/interactions", lambda page: page["items"] and page["items"][0]["verdict"] is not None, limit_s=60
        )
        stored = (await client.get(f"/interactions/{judged['items'][0]['id']}")).json()
        assert stored["metadata"]["litellm_call_id"] == call
        assert stored["verdict"] == "incorrect"
        assert (await ask("right", "gadfly-block")).json()["choices"][0]["message"]["content"] == RIGHT["response"]
        blocked = await ask("wrong", "gadfly-block")
        assert blocked.status_code >= 400
        assert "critic@0" in blocked.text
        rewritten = await ask("wrong", "gadfly-rewrite")
        text = rewritten.json()["choices"][0]["message"]["content"]
        newest = (await client.get("/interactions")).json()["items"][0]
        assert newest["kind"] == "refine"
        refined = (await client.get(f"/interactions/{newest['id']}")).json()["result"]["refined_response"]
        assert text == refined != WRONG["response"]
