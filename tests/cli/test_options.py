"""Settings as flags: precedence, display and secrecy."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gadfly.cli.main import app
from gadfly.cli.options import ValueSource, describe, flag_of, shown, variable_of
from gadfly.settings import Settings


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("GADFLY_"):
            monkeypatch.delenv(name)


def gadfly(*arguments: str, variables: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the command in a child process."""
    return subprocess.run(
        [sys.executable, "-m", "gadfly.cli.main", *arguments],
        env={**os.environ, **(variables or {})},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def settings_of(*arguments: str, variables: Mapping[str, str] | None = None) -> dict[str, dict[str, str | None]]:
    result = CliRunner().invoke(app, [*arguments, "--json"], env=dict(variables or {}))
    assert result.exit_code == 0, result.output
    return {row["name"]: row for row in json.loads(result.output)}


def test_every_setting_is_a_flag_with_its_description_and_variable() -> None:
    listed = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "240"}).output
    for name, field in Settings.model_fields.items():
        assert flag_of(name) in listed
        assert variable_of(name) in listed
        assert field.description is not None
        assert field.description.split(".")[0] in listed


def test_flags_win_over_the_environment_which_wins_over_defaults() -> None:
    variables = {"GADFLY_PORT": "9001", "GADFLY_LOG_LEVEL": "debug", "GADFLY_MAX_SAMPLES": ""}
    rows = settings_of("settings", "--port", "9000", variables=variables)
    assert (rows["port"]["value"], rows["port"]["source"], rows["port"]["given_as"]) == ("9000", "flag", "--port")
    assert (rows["log_level"]["value"], rows["log_level"]["given_as"]) == ("debug", "GADFLY_LOG_LEVEL")
    assert (rows["host"]["value"], rows["host"]["source"]) == ("127.0.0.1", "default")
    assert rows["max_samples"]["source"] == "default", "an empty variable counts as unset"


def test_flags_work_before_and_after_the_command_and_the_last_one_wins() -> None:
    assert settings_of("--port", "9000", "settings")["port"]["value"] == "9000"
    assert settings_of("--port", "9000", "settings", "--port", "9002")["port"]["value"] == "9002"


def test_variable_names_ignore_case() -> None:
    settings = Settings.load()
    row = next(row for row in describe(settings, flags={}, environment={"gadfly_port": "1"}) if row.name == "port")
    assert (row.source, row.given_as) == (ValueSource.ENVIRONMENT, "gadfly_port")


def test_no_secret_is_printed() -> None:
    variables = {
        "GADFLY_KEY": "gf_very-secret",
        "GADFLY_DATABASE_URL": "postgresql://me:very-secret@db/x",
        "GADFLY_ENGINE_URLS": "http://me:very-secret@a:1,http://b:2",
        "GADFLY_URL": "https://me:very-secret@proxy",
    }
    for extra in ((), ("--json",)):
        result = CliRunner().invoke(app, ["settings", *extra], env=variables)
        assert result.exit_code == 0
        assert "very-secret" not in result.output
        assert "proxy" in result.output
    assert shown("engine_urls", Settings.load().engine_urls) == ""


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        (("settings", "--port", "http"), {}, "error: GADFLY_PORT: Input should be a valid integer"),
        (("settings",), {"GADFLY_PORT": "70000"}, "error: GADFLY_PORT: Input should be less than or equal to 65535"),
        (
            ("up", "--database-url", "mysql://x"),
            {},
            "error: GADFLY_DATABASE_URL: must start with postgres",
        ),
        (
            ("doctor", "--engine-device", "tpu"),
            {},
            "error: GADFLY_ENGINE_DEVICE: Input should be 'auto', 'cpu' or 'gpu'",
        ),
    ],
)
def test_an_invalid_value_is_one_sentence(arguments: tuple[str, ...], variables: dict[str, str], sentence: str) -> None:
    result = gadfly(*arguments, variables=variables)
    assert result.returncode == 2
    assert result.stderr.startswith(sentence)
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_the_command_line_starts_without_heavy_imports() -> None:
    code = (
        "import sys, gadfly.cli.main, typer.main; typer.main.get_command(gadfly.cli.main.app)\n"
        "heavy = {'vllm', 'torch', 'sqlalchemy', 'pyarrow', 'httpx', 'psycopg', 'sympy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"
