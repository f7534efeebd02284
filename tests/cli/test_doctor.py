"""Findings of `gadfly doctor` on deployments with one fault each."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from gadfly.cli import engine_needs
from gadfly.cli.doctor import CHECKS, CheckResult, Finding, examine, spooled
from gadfly.cli.engine_needs import NeedState
from gadfly.cli.main import app
from gadfly.settings import Settings
from tests.cli.conftest import FakeServer
from tests.support.postgres import PostgresServer
from tests.support.sampling import FakeEngine, served

ENGINE = {
    "/health": (200, {}),
    "/v1/models": (200, {"data": [{"id": "base"}]}),
    "/v1/load_lora_adapter": (400, {"error": "lora_name is missing"}),
}


async def findings(home: Path, **settings: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in await examine(Settings(home=home, **settings))}


def make_model(folder: Path, *files: str) -> Path:
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).touch()
    return folder


async def test_a_new_machine_has_no_failures(tmp_path: Path, free_port: int) -> None:
    results = await findings(tmp_path, port=free_port)
    assert len(results) == len(CHECKS)
    assert not [finding for finding in results.values() if finding.outcome is CheckResult.FAIL]
    assert "is free" in results["service"].says
    assert "`gadfly up` starts it" in results["database"].says


async def test_every_failure_recommends_an_action(tmp_path: Path, another_program: FakeServer, free_port: int) -> None:
    results = await findings(
        tmp_path / "home",
        port=another_program.port,
        host="127.0.0.1",
        database_url=f"postgresql://127.0.0.1:{free_port}/x",
        engine_urls=(f"http://127.0.0.1:{free_port}",),
    )
    failed = {name for name, finding in results.items() if finding.outcome is CheckResult.FAIL}
    assert failed == {"service", "database", "engine", "keys"}
    assert all(results[name].do for name in failed)
    assert "Another program uses" in results["service"].says
    assert "cannot be reached" in results["database"].says
    assert "No engine answers at" in results["engine"].says


async def test_a_service_that_is_not_ready_gives_the_reason(tmp_path: Path) -> None:
    readiness = {
        "ready": False,
        "engine": {"ok": False, "detail": "no engine answers at http://e", "seconds": 0.1},
        "database": {"ok": True, "detail": "answers", "seconds": 0.1},
    }
    with FakeServer({"/healthz": (200, {}), "/readyz": (503, readiness)}) as service:
        results = await findings(tmp_path, url=service.url)
    assert results["service"].outcome is CheckResult.FAIL
    assert "engine: no engine answers at http://e" in results["service"].says


async def test_a_configured_service_that_does_not_answer(tmp_path: Path, free_port: int) -> None:
    results = await findings(tmp_path, url=f"http://127.0.0.1:{free_port}")
    assert results["service"].outcome is CheckResult.FAIL
    assert "No service answers" in results["service"].says


MODELS = [  # files in the folder, outcome, words, why this row exists
    (("config.json", "tokenizer.json", "model.safetensors"), CheckResult.OK, "is complete", "complete"),
    (("config.json", "vocab.json", "pytorch_model.bin"), CheckResult.OK, "is complete", "older names"),
    (("config.json", "tokenizer.json"), CheckResult.FAIL, "no weights", "an interrupted copy"),
    ((), CheckResult.FAIL, "no config.json, no tokenizer, no weights", "an empty folder"),
]


@pytest.mark.parametrize(("files", "outcome", "words", "why"), MODELS)
async def test_model_folders(
    tmp_path: Path, files: tuple[str, ...], outcome: CheckResult, words: str, why: str
) -> None:
    model = make_model(tmp_path / "model", *files)
    finding = (await findings(tmp_path, model=str(model)))["model"]
    assert finding.outcome is outcome, why
    assert words in finding.says


async def test_a_missing_model_folder(tmp_path: Path) -> None:
    assert (await findings(tmp_path, model="/no/such/model"))["model"].outcome is CheckResult.FAIL
    assert (await findings(tmp_path, model="owner/some-model"))["model"].outcome is CheckResult.OK, "a hub id"


async def test_an_incomplete_default_model_is_reported(tmp_path: Path) -> None:
    make_model(tmp_path / "models" / "smollm2-135m-instruct", "config.json")
    assert (await findings(tmp_path))["model"].outcome is CheckResult.FAIL


ENGINES = [  # answers of the engine, words, why this row exists
    (ENGINE, None, "no fault"),
    ({}, "does not serve this", "another program"),
    ({**ENGINE, "/v1/models": (200, {"data": [{"id": "llama"}]})}, None, "another vLLM, with a name of its own"),
    (
        {**ENGINE, "/v1/models": (200, {"data": [{"id": "llama"}, {"id": "qwen"}]})},
        "serves llama, qwen: set GADFLY_ENGINE_MODEL to the name of the base model",
        "a gateway",
    ),
    ({**ENGINE, "/v1/models": (401, {"error": "Unauthorized"})}, "needs a key: set GADFLY_ENGINE_KEY", "--api-key"),
    ({**ENGINE, "/v1/models": (200, [])}, "does not answer like vLLM", "another program on all paths"),
]


@pytest.mark.parametrize(("answers", "words", "why"), ENGINES)
async def test_engines(tmp_path: Path, answers: Any, words: str | None, why: str) -> None:
    with FakeServer(answers) as engine:
        finding = (await findings(tmp_path, engine_urls=(engine.url,)))["engine"]
    assert finding.outcome is (CheckResult.OK if words is None else CheckResult.FAIL), why
    assert (words or "with adapters") in finding.says


async def test_engines_that_are_found_by_name(tmp_path: Path) -> None:
    with FakeServer(ENGINE) as engine:
        name = engine.url.replace("http://", "dns+http://")
        assert (await findings(tmp_path, engine_urls=(name,)))["engine"].outcome is CheckResult.OK
    results = await findings(tmp_path, engine_urls=("dns+http://no-such-host.invalid:8000",))
    assert results["engine"].outcome is CheckResult.FAIL
    assert "dns+http://no-such-host.invalid:8000 leads to no address" in results["engine"].says
    assert {results["hot swap"].outcome, results["sampling"].outcome} == {CheckResult.WARN}


async def test_sampling(tmp_path: Path) -> None:
    assert "does not run" in (await findings(tmp_path))["sampling"].says
    with served(FakeEngine()) as url:
        finding = (await findings(tmp_path, engine_urls=(url,)))["sampling"]
    assert finding.outcome is CheckResult.OK
    assert finding.says.startswith("256 draws follow the distribution that is reported, in ")
    with served(FakeEngine(sharpen=2.0)) as url:
        finding = (await findings(tmp_path, engine_urls=(url,)))["sampling"]
    assert finding.outcome is CheckResult.FAIL
    assert "does not sample the distribution that it reports" in finding.says
    with served(FakeEngine(failures=10)) as url:
        finding = (await findings(tmp_path, engine_urls=(url,)))["sampling"]
    assert (finding.outcome, "cannot be checked" in finding.says) == (CheckResult.WARN, True)


async def test_a_current_database_is_ok(tmp_path: Path, database_url: str) -> None:
    finding = (await findings(tmp_path, database_url=database_url))["database"]
    assert finding.outcome is CheckResult.OK
    assert finding.says.startswith("Postgres 1")


async def test_a_database_without_schema(tmp_path: Path, postgres: PostgresServer) -> None:
    finding = (await findings(tmp_path, database_url=postgres.url_of("postgres")))["database"]
    assert finding.outcome is CheckResult.FAIL
    assert "`gadfly migrate`" in finding.do


async def test_tables_with_manual_changes(tmp_path: Path, database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE interactions DROP COLUMN latency_ms"))
    engine.dispose()
    finding = (await findings(tmp_path, database_url=database_url))["database"]
    assert finding.outcome is CheckResult.WARN
    assert "latency_ms" in finding.says


async def test_an_open_address_needs_keys(tmp_path: Path, database_url: str) -> None:
    finding = (await findings(tmp_path, host="0.0.0.0", database_url=database_url))["keys"]
    assert finding.outcome is CheckResult.FAIL
    assert "gadfly keys create" in finding.do
    assert (await findings(tmp_path, host="0.0.0.0"))["keys"].outcome is CheckResult.FAIL
    assert (await findings(tmp_path, database_url=database_url))["keys"].outcome is CheckResult.OK


async def test_the_spool_is_checked(tmp_path: Path) -> None:
    folder = tmp_path / "spool" / "a-replica"
    folder.mkdir(parents=True)
    (folder / "1.log").write_bytes(b"x" * 10)
    (folder / "lock").touch()
    assert spooled(tmp_path) == (10, 0)
    assert (await findings(tmp_path))["spool"].outcome is CheckResult.WARN
    (tmp_path / "spool" / "rejected.jsonl").write_text("{}\n{}\n")
    assert "2 records were refused" in (await findings(tmp_path))["spool"].says


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
async def test_a_read_only_folder() -> None:
    assert (await findings(Path("/proc/home")))["disk"].outcome is CheckResult.FAIL


def test_the_exit_code_reports_failures_and_json_has_all_findings(tmp_path: Path, free_port: int) -> None:
    arguments = ["doctor", "--home", str(tmp_path), "--port", str(free_port)]
    good = CliRunner().invoke(app, arguments)
    assert good.exit_code == 0, good.output
    bad = CliRunner().invoke(app, [*arguments, "--model", "/no/such/model", "--json"])
    assert bad.exit_code == 1
    rows = json.loads(bad.output)
    assert {
        "name": "model",
        "outcome": "fail",
        "says": "There is no model folder /no/such/model.",
        "do": "Check GADFLY_MODEL.",
    } in rows


async def test_a_missing_lscpu_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    results = await findings(tmp_path)
    assert results["vllm"].outcome is CheckResult.FAIL
    assert results["vllm"].do == "apt-get install util-linux"


@pytest.mark.parametrize(
    ("pinned", "facts", "state", "why"),
    [
        ("0a" * 20, {"revision": "0a" * 20}, NeedState.THERE, "the pinned commit"),
        ("0a" * 20, {"revision": "0b" * 20}, NeedState.MISSING, "another commit"),
        ("0a" * 20, {"revision": ""}, NeedState.NOT_VISIBLE, "the engine has a folder: nothing says which commit"),
        ("0a" * 20, {}, NeedState.NOT_VISIBLE, "an engine of an earlier release"),
        ("0a" * 20, None, NeedState.NOT_VISIBLE, "an engine without the middleware"),
        ("", {"revision": "0b" * 20}, None, "not pinned"),
        (f"sha256:{'ab' * 32}", {"revision": ""}, None, "a folder: the engine compares it at its start"),
    ],
)
def test_the_commit_that_an_engine_serves(
    pinned: str, facts: dict[str, str] | None, state: NeedState | None, why: str
) -> None:
    need = engine_needs.revision_need(pinned, facts)
    assert (None if need is None else need.state) is state, why


async def test_findings_are_reported_when_their_checks_end(tmp_path: Path) -> None:
    reported: list[Finding] = []
    waits: list[str] = []
    found = await examine(
        Settings(home=tmp_path, engine_urls=("http://127.0.0.1:9",)), on_finding=reported.append, on_wait=waits.append
    )
    assert sorted(finding.name for finding in reported) == sorted(finding.name for finding in found)
    assert reported != found, "some checks end before others that are listed earlier"
    assert [line.partition(":")[0] for line in waits] == ["sampling"]
    assert [finding.name for finding in await examine(Settings(home=tmp_path), on_wait=waits.append)] == [
        finding.name for finding in found
    ]
    assert len(waits) == 1, "without an engine nothing is drawn"
