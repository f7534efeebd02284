"""`gadfly status` on a database, without a service."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gadfly import store
from gadfly.cli.main import app
from gadfly.grading import Grade
from gadfly.store.database import Database
from tests.support.records import make_interaction

pytestmark = pytest.mark.database


def status(url: str, home: Path, port: int, *flags: str) -> str:
    settings = ["--database-url", url, "--home", str(home), "--port", str(port)]
    result = CliRunner().invoke(app, ["status", *settings, *flags])
    assert result.exit_code == 1, "no service answers"
    return result.stdout


def test_the_rows_and_the_scoreboard_of_the_live_critic(database_url: str, tmp_path: Path, free_port: int) -> None:
    async def judge() -> None:
        async with Database(database_url) as database, database.session() as session:
            await store.critics.ensure_version_zero(session, "tiny")
            judged = make_interaction(reference="4", grade=Grade.WRONG)
            await store.interactions.insert_records(session, [judged], heldout_share=0.5)

    empty: dict[str, Any] = json.loads(status(database_url, tmp_path, free_port, "--json"))
    assert empty["rows"]["feedback"] == 0, "the rows are counted before a service has made version 0"
    assert empty["scoreboard"] is None
    asyncio.run(judge())
    board = json.loads(status(database_url, tmp_path, free_port, "--json"))["scoreboard"]
    assert (board["answers"], board["right"], board["wrong"]["hits"]) == (1, None, 1)
    words = " ".join(status(database_url, tmp_path, free_port).split())
    assert "your labels on 1 labelled answer: wrong answers called incorrect 100% (21% to 100%)" in words
