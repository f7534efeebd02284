"""Keys, import, export and migrations, on a real database."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet
import pytest
from typer.testing import CliRunner, Result

from gadfly import store
from gadfly.cli.main import app
from gadfly.cli.storage import expiry, write_secret
from gadfly.errors import BadInput
from gadfly.records import AdminAct
from gadfly.store.database import Database
from tests.support.postgres import PostgresServer

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def run(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--database-url", url])


def done(url: str, *arguments: str) -> str:
    result = run(url, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


EXPIRIES = [("90m", datetime(2030, 1, 1, 13, 30, tzinfo=UTC)), ("12h", datetime(2030, 1, 2, tzinfo=UTC))]
EXPIRIES += [("30d", datetime(2030, 1, 31, 12, tzinfo=UTC)), ("2w", datetime(2030, 1, 15, 12, tzinfo=UTC))]


@pytest.mark.parametrize(("text", "moment"), EXPIRIES)
def test_durations(text: str, moment: datetime) -> None:
    assert expiry(text, at=NOON) == moment


@pytest.mark.parametrize("text", ["", "30", "d", "0d", "-3d", "1y", "1.5h", "999999d"])
def test_malformed_durations_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="use a duration such as 90m, 12h, 30d or 2w"):
        expiry(text, at=NOON)


def test_a_key_is_shown_once_listed_by_its_hint_and_revoked_by_name(database_url: str) -> None:
    secret = done(database_url, "keys", "create", "--tier", "admin", "--name", "me", "--expires", "30d").strip()
    assert secret.startswith("gf_")
    listed = done(database_url, "keys", "list")
    assert secret not in listed
    assert secret[:6] in listed
    assert "active until" in listed
    (key,) = json.loads(done(database_url, "keys", "list", "--json"))
    assert (key["name"], key["tier"], key["active"]) == ("me", "admin", True)
    assert "revoked admin key me" in done(database_url, "keys", "revoke", "me")
    assert "revoked" in done(database_url, "keys", "list")
    with pytest.raises(BadInput, match="no active key me"):
        raise run(database_url, "keys", "revoke", "me").exception or AssertionError


def test_keys_have_scopes_and_limits(database_url: str) -> None:
    options = ("--scope", "read", "--scope", "label", "--requests-per-minute", "60", "--requests-in-flight", "4")
    done(database_url, "keys", "create", "--name", "board", *options)
    (key,) = json.loads(done(database_url, "keys", "list", "--json"))
    assert (key["tier"], key["scopes"], key["requests_per_minute"]) == ("caller", ["label", "read"], 60)
    changed = done(database_url, "keys", "limit", "board", "--requests-per-minute", "0", "--tokens-per-day", "5000")
    assert changed.endswith("5,000 tokens/day, 4 in flight\n")
    (key,) = json.loads(done(database_url, "keys", "list", "--json"))
    assert (key["requests_per_minute"], key["tokens_per_day"], key["max_in_flight"]) == (None, 5000, 4)
    with pytest.raises(BadInput, match="give a limit to change"):
        raise run(database_url, "keys", "limit", "board").exception or AssertionError
    with pytest.raises(BadInput, match="only a key of the tier caller has tasks or scopes"):
        raise run(database_url, "keys", "create", "--tier", "admin", "--scope", "read").exception or AssertionError


def test_a_name_of_two_keys_is_ambiguous(database_url: str) -> None:
    for _ in range(2):
        done(database_url, "keys", "create", "--name", "twin")
    with pytest.raises(BadInput, match="2 active keys are named twin"):
        raise run(database_url, "keys", "revoke", "twin").exception or AssertionError
    first = json.loads(done(database_url, "keys", "list", "--json"))[0]["id"]
    done(database_url, "keys", "revoke", first)
    done(database_url, "keys", "revoke", "twin")


def test_if_none_creates_one_key_per_tier_in_repeated_calls(database_url: str, tmp_path: Path) -> None:
    for _ in range(3):
        done(database_url, "keys", "create", "--tier", "admin", "--if-none", "--out", str(tmp_path / "key"))
    done(database_url, "keys", "create", "--tier", "caller", "--if-none")
    keys = json.loads(done(database_url, "keys", "list", "--json"))
    assert [key["tier"] for key in keys] == ["admin", "caller"]
    secret = (tmp_path / "key").read_text().strip()
    assert secret.startswith(keys[0]["hint"])


def test_a_secret_that_is_kept_elsewhere_makes_one_key(database_url: str, tmp_path: Path) -> None:
    path, secret = tmp_path / "key", "gf_" + "a1" * 32
    path.write_text(f"{secret}\n")
    command = ("keys", "create", "--tier", "admin", "--from", str(path))
    for _ in range(2):
        assert secret not in run(database_url, *command, "--out", str(tmp_path / "out"), "--overwrite").output
    (key,) = json.loads(done(database_url, "keys", "list", "--json"))
    assert (key["tier"], key["hint"]) == ("admin", "gf_a1a1a")
    with pytest.raises(BadInput, match="of another tier"):
        raise run(database_url, "keys", "create", "--from", str(path)).exception or AssertionError
    done(database_url, "keys", "revoke", "admin")
    with pytest.raises(BadInput, match="revoked"):
        raise run(database_url, *command).exception or AssertionError
    for fault in ("hunter2", "gf_short", secret + "!", ""):
        path.write_text(fault)
        with pytest.raises(BadInput, match="openssl rand"):
            raise run(database_url, *command).exception or AssertionError
    with pytest.raises(BadInput, match="cannot be read"):
        raise run(database_url, *command[:-1], str(tmp_path / "none")).exception or AssertionError


def test_a_secret_file_has_mode_600_and_the_secret_is_not_printed(database_url: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("older")
    path.chmod(0o644)
    refused = run(database_url, "keys", "create", "--out", str(path))
    assert isinstance(refused.exception, BadInput)
    assert path.read_text() == "older"
    result = run(database_url, "keys", "create", "--out", str(path), "--overwrite", "--json")
    assert result.exit_code == 0
    assert "from now on every request needs a key" in result.stderr
    secret = path.read_text().strip()
    assert secret.startswith("gf_")
    assert secret not in result.output
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


def test_a_key_whose_file_cannot_be_written_is_not_created(database_url: str, tmp_path: Path) -> None:
    assert isinstance(run(database_url, "keys", "create", "--out", str(tmp_path / "no" / "key")).exception, BadInput)
    assert json.loads(done(database_url, "keys", "list", "--json")) == []
    with pytest.raises(BadInput, match="cannot be written"):
        write_secret(tmp_path / "no" / "key", "gf_x", overwrite=False)


def test_a_distrusted_key_is_marked_and_every_act_on_keys_is_recorded(database_url: str) -> None:
    key = json.loads(done(database_url, "keys", "create", "--name", "eve", "--json"))
    told = done(database_url, "keys", "distrust", "eve", "--reason", "calls everything wrong")
    assert f"the labels of eve ({key['id']}) count no more" in told
    assert "no critic learned from them" in told
    assert "labels distrusted" in done(database_url, "keys", "list")
    done(database_url, "keys", "revoke", "eve")
    trusted = json.loads(done(database_url, "keys", "trust", "eve", "--json"))  # also a revoked one, by its name
    assert (trusted["key"]["distrusted_at"], trusted["critics"]) == (None, [])
    assert isinstance(run(database_url, "keys", "distrust", "bob").exception, BadInput)

    async def acts() -> list[AdminAct]:
        async with Database(database_url) as database, database.session() as session:
            return await store.acts.list_acts(session, limit=10)

    found = asyncio.run(acts())
    assert [act.action.value for act in found] == ["trust_key", "revoke_key", "distrust_key", "create_key"]
    assert {act.subject for act in found} == {key["id"]}
    assert [act.reason for act in found] == [None, None, "calls everything wrong", None]
    assert found[2].details == {"name": "eve", "critics": []}


def test_import_skips_bad_lines_with_number_and_reason(database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    good = {"question": "1 + 1?", "response": "The answer is 2", "reference": "2"}
    file.write_text(
        "\n".join([json.dumps(good), "{", json.dumps({"question": "q"}), json.dumps({**good, "response": "3"})])
    )
    result = run(database_url, "import", str(file))
    assert result.exit_code == 1, "scripts must see that rows are missing"
    assert "2 rows added, 0 already stored, 2 skipped" in result.stdout
    assert "line 2: not JSON" in result.stderr
    assert "line 3: there is neither a response nor a reference" in result.stderr
    assert "0 rows added, 2 already stored, 2 skipped" in done(database_url, "import", "--skip-bad", str(file))
    file.write_text("not JSON\n")
    nothing = run(database_url, "import", str(file))
    assert nothing.exit_code == 1, "scripts must see a failure"
    assert "no line of" in nothing.stderr


def test_of_many_bad_rows_five_are_shown_and_all_are_counted(database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("question,answer\n" + "".join(f"q{number},{number}\n" for number in range(7)))
    result = run(database_url, "import", str(file))
    assert result.exit_code == 1
    assert result.stderr.count("neither a response nor a reference") == 6
    assert "line 6: " in result.stderr
    assert "line 7: " not in result.stderr
    assert "7 x there is neither" in result.stderr
    mapped = done(database_url, "import", str(file), "--map", "answer=reference", "--split", "heldout")
    assert "7 rows added (7 of them questions without a response), 0 already stored, 0 skipped" in mapped
    with pytest.raises(BadInput, match="neither side is a field: did you mean reference"):
        raise run(database_url, "import", str(file), "--map", "answer=refrence").exception or AssertionError


def test_export_writes_the_format_of_the_file_extension(database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"question": "1 + 1?", "response": "The answer is 2", "reference": "2"}))
    done(database_url, "import", str(file))
    assert "1 interactions written" in done(database_url, "export", str(tmp_path / "out.parquet"))
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").column("label").to_pylist() == [True]
    done(database_url, "export", str(tmp_path / "out.jsonl"), "--kind", "import", "--since", "2020-01-01")
    assert json.loads((tmp_path / "out.jsonl").read_text())["response"] == "The answer is 2"
    assert "0 interactions" in done(database_url, "export", str(tmp_path / "none.jsonl"), "--until", "2020-01-01")
    with pytest.raises(BadInput, match=r"out\.csv must end in \.jsonl or \.parquet"):
        raise run(database_url, "export", str(tmp_path / "out.csv")).exception or AssertionError


def test_migrate_creates_the_schema_and_check_changes_nothing(postgres: PostgresServer) -> None:
    postgres.execute("DROP DATABASE IF EXISTS test_cli_migrate WITH (FORCE)")
    postgres.execute("CREATE DATABASE test_cli_migrate")
    url = postgres.url_of("test_cli_migrate")
    refused = run(url, "migrate", "--check")
    assert refused.exit_code == 1
    assert "run `gadfly migrate`" in refused.stderr
    assert run(url, "migrate", "--check").exit_code == 1
    done(url, "migrate")
    assert "as this release needs it" in done(url, "migrate", "--check")
    postgres.execute("ALTER TABLE interactions DROP COLUMN latency_ms", database="test_cli_migrate")
    drifted = run(url, "migrate", "--check")
    assert drifted.exit_code == 1
    assert "latency_ms" in drifted.stderr


@pytest.mark.database
def test_without_an_address_the_embedded_database_is_started_and_stopped(tmp_path: Path) -> None:
    for _ in range(2):
        result = CliRunner().invoke(app, ["keys", "create", "--if-none", "--home", str(tmp_path)])
        assert result.exit_code == 0, result.output
    assert not (tmp_path / "postgres" / "data" / "postmaster.pid").exists()
