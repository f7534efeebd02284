"""`gadfly migrate`, `model`, `import` and `export`: the database's schema and rows, and the default model."""

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from gadfly.cli.options import takes_settings
from gadfly.records import Kind, Split
from gadfly.settings import Settings

app = typer.Typer()


@app.command()
@takes_settings()
def migrate(
    settings: Settings,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail if something would change.")] = False,
) -> None:
    """Bring the database's schema up to date."""
    from gadfly.cli.storage import database_url
    from gadfly.cli.terminal import fail, out
    from gadfly.store.database import migrate, schema_state

    with database_url(settings) as url:
        if not check:
            migrate(url)
        state = schema_state(url)
        if not state.is_current:
            fail(f"the schema is at {state.current or 'nothing'} and not at {state.head}: run `gadfly migrate`")
        if state.drift:
            fail(f"the tables differ from those of this release: {'; '.join(state.drift)}")
        out.print(f"the schema is at {state.current}, as this release needs it")


@app.command()
@takes_settings()
def model(settings: Settings) -> None:
    """Make the default model and print its folder. `gadfly up` does the same where the model is missing."""
    environment = os.environ | settings.to_environment()
    command = (sys.executable, "-P", "-m", "gadfly.engine.models")
    raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)


@app.command("import")
@takes_settings()
def import_rows(
    settings: Settings, file: Annotated[Path, typer.Argument(help="JSON Lines: question, response, reference, ...")]
) -> None:
    """Import logged answers from a file. Idempotent: a repeated import adds only the missing rows."""
    from gadfly.cli import storage, terminal
    from gadfly.store.database import migrate

    size = file.stat().st_size if file.is_file() else None
    with storage.database_url(settings) as url:
        migrate(url)
        report = asyncio.run(storage.import_file(settings, url, file, size=size, console=terminal.err))
    terminal.out.print(f"{report.added} rows added, {report.known} already stored, {report.skipped} skipped")
    if report.skipped and not report.added and not report.known:
        terminal.fail(f"no line of {file} could be read")


@app.command()
@takes_settings()
def export(
    settings: Settings,
    out: Annotated[
        Path, typer.Argument(help="OUT.parquet or OUT.jsonl. The file appears when it is complete, in one step.")
    ],
    split: Annotated[Split | None, typer.Option("--split", help="Only this side of the training wall.")] = None,
    kind: Annotated[Kind | None, typer.Option("--kind", help="Only interactions of this kind.")] = None,
    since: Annotated[datetime | None, typer.Option("--since", help="Only from this time (UTC) on.")] = None,
    until: Annotated[datetime | None, typer.Option("--until", help="Only before this time (UTC).")] = None,
    rewrites: Annotated[
        bool, typer.Option("--rewrites", help="Only edited responses, as preference data to train an actor with.")
    ] = False,
) -> None:
    """Write interactions with their critiques, refinements and feedback to a file."""
    from gadfly.cli import storage, terminal
    from gadfly.store.interactions import Filters

    filters = Filters(split=split, kind=kind, created_from=_utc(since), created_before=_utc(until))
    with storage.database_url(settings) as url:
        rows = asyncio.run(storage.export_file(settings, url, out, filters, rewrites=rewrites, console=terminal.err))
    terminal.out.print(f"{rows} {'edited responses' if rewrites else 'interactions'} written to {out}", markup=False)


def _utc(time: datetime | None) -> datetime | None:
    return None if time is None else time.replace(tzinfo=UTC)
