"""`gadfly up`, `demo`, `settings`, `status` and `doctor`: run a deployment and inspect it."""

import asyncio
import os
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from gadfly.cli.commands.arguments import Json
from gadfly.cli.options import takes_settings
from gadfly.errors import BadInput
from gadfly.settings import Settings

app = typer.Typer()


@app.command()
@takes_settings(show=True)
def up(settings: Settings) -> None:
    """Run database, engine, service and trainer on this machine until Ctrl-C."""
    from gadfly.cli.up import up

    raise typer.Exit(up(settings))


@app.command()
@takes_settings()
def demo(
    flags: dict[str, str],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write the report to.")] = Path("gadfly-demo.html"),
    picture: Annotated[
        Path | None, typer.Option("--picture", help="SVG file for a picture of one answer before both critics.")
    ] = None,
) -> None:
    """Watch a critic learn: all processes with a small model, simulated callers, a training run, the gate, the swap.

    Settings are taken as flags (`--port 9000`, `--train-threads 1`). Those of the environment do not count here.
    """
    if find_spec("gadfly.lab") is None:
        raise BadInput("the demo needs the folder lab/ with its model, which is part of a checkout of the project")
    # A child process, because the demo imports torch. Ctrl-C reaches parent and child.
    command = [sys.executable, "-P", "-m", "gadfly.lab.demo", "--out", str(out.absolute())]
    if picture is not None:
        command += ["--picture", str(picture.absolute())]
    Settings.load(flags)  # refuses a value before anything starts
    for name, value in flags.items():
        command += ["--setting", f"{name}={value}"]
    process = subprocess.Popen(command)
    while True:
        try:
            raise typer.Exit(process.wait())
        except KeyboardInterrupt:
            continue  # the child stops its own processes and then exits


@app.command("settings")
@takes_settings()
def show_settings(settings: Settings, flags: dict[str, str], json: Json = False) -> None:
    """Show every setting, its value and its source."""
    from gadfly.cli.options import describe
    from gadfly.cli.terminal import out, print_json

    rows = describe(settings, flags=flags, environment=os.environ)
    if json:
        print_json([asdict(row) for row in rows])
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", no_wrap=True)
    for row in rows:
        source = "" if row.given_as is None else f" {row.given_as}"
        value = Text("unset", style="dim") if row.value in (None, "") else Text(row.value or "")
        table.add_row(row.name, value, Text(row.source + source, style="" if row.given_as else "dim"))
    out.print(table)


@app.command()
@takes_settings()
def status(settings: Settings, json: Json = False) -> None:
    """Show the running processes, the requests in flight and the number of stored rows."""
    from gadfly.cli.status import collect, show
    from gadfly.cli.terminal import print_json

    state = asyncio.run(collect(settings))
    if json:
        print_json(state)
    else:
        show(state)
    raise typer.Exit(0 if state["service"]["ready"] else 1)


@app.command()
@takes_settings()
def doctor(settings: Settings, json: Json = False) -> None:
    """Check everything a deployment needs, and recommend a fix for each problem."""
    from gadfly.cli.doctor import CheckResult, examine, show, show_commands
    from gadfly.cli.terminal import err, print_json

    if json:
        findings = asyncio.run(examine(settings))
        print_json([asdict(finding) for finding in findings])
    else:
        findings = asyncio.run(examine(settings, on_finding=show, on_wait=err.print))
        show_commands(findings)
    raise typer.Exit(any(finding.outcome is CheckResult.FAIL for finding in findings))
