"""`gadfly retrain`, `runs`, `cancel` and `reproduce`: training runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from gadfly.cli.commands.arguments import Json, RequestId, Task
from gadfly.cli.options import takes_settings
from gadfly.errors import BadInput
from gadfly.settings import Settings

if TYPE_CHECKING:
    from gadfly.client import Client

app = typer.Typer()

Run = Annotated[str, typer.Argument(help="The run's id, or its first characters.")]
Follow = Annotated[bool, typer.Option("--follow", help="Show the run's progress. Ctrl-C does not end the run.")]


@app.command()
@takes_settings(without=("task",))
def retrain(
    settings: Settings,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan of the run without starting it.")] = False,
    options: Annotated[
        bool, typer.Option("--options", help="List the training options with their defaults, and do nothing else.")
    ] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A training option; may be repeated.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="JSON file of training options.")] = None,
    task: Task = None,
    request_id: RequestId = None,
    follow: Follow = False,
    json: Json = False,
) -> None:
    """Request a training run of a task: the critic learns from labelled answers, and a gate measures the result."""
    from gadfly.cli.connection import connect
    from gadfly.cli.request_input import read_train_options
    from gadfly.cli.run_view import show_options, show_plan
    from gadfly.cli.terminal import print_json
    from gadfly.client import calls
    from gadfly.training import options_of

    if options:
        (print_json if json else show_options)(options_of())
        return
    wanted = read_train_options(config, set_ or [])
    with connect(settings) as client:
        if dry_run:
            (print_json if json else show_plan)(client.document(calls.plan(wanted, task=task)))
        else:
            requested = client.document(calls.retrain(wanted, task=task, request_id=request_id))
            _show_requested(client, requested, follow=follow, json=json)


@app.command("runs")
@takes_settings(without=("task",))
def list_runs(
    settings: Settings,
    run: Annotated[str | None, typer.Argument(help="A run's id, or its first characters. Unset: all runs.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=200, help="How many runs to list.")] = 20,
    task: Annotated[str | None, typer.Option("--task", help="Only runs of this task.")] = None,
    follow: Follow = False,
    json: Json = False,
) -> None:
    """List training runs, show one, or follow its progress."""
    from gadfly.cli.connection import connect
    from gadfly.cli.run_follow import find_run
    from gadfly.cli.run_view import show_run, show_runs
    from gadfly.cli.terminal import print_json
    from gadfly.client import calls

    if run is None and follow:
        raise BadInput("--follow needs the id of a run: `gadfly runs` lists them.")
    with connect(settings) as client:
        if run is None:
            (print_json if json else show_runs)(client.document(calls.runs(limit=limit, task=task))["items"])
            return
        run_id = find_run(client, run)
        if follow:
            _follow(client, run_id, json=json)
        (print_json if json else show_run)(client.document(calls.run(run_id)))


@app.command()
@takes_settings()
def cancel(settings: Settings, run: Run, json: Json = False) -> None:
    """Cancel a training run. It publishes nothing."""
    from gadfly.cli.connection import connect
    from gadfly.cli.run_follow import find_run
    from gadfly.cli.terminal import out, print_json
    from gadfly.client import calls

    with connect(settings) as client:
        cancelled = client.document(calls.cancel(find_run(client, run)))
    if json:
        print_json(cancelled)
    else:
        is_over = cancelled["status"] == "cancelled"
        out.print(f"run {cancelled['id']} {'is cancelled' if is_over else 'is being cancelled, which takes seconds'}")


@app.command()
@takes_settings()
def reproduce(settings: Settings, run: Run, follow: Follow = False, json: Json = False) -> None:
    """Repeat a training run with the same config, rows and seeds."""
    from gadfly.cli.connection import connect
    from gadfly.cli.run_follow import find_run
    from gadfly.client import calls

    with connect(settings) as client:
        requested = client.document(calls.reproduce(find_run(client, run)))
        _show_requested(client, requested, follow=follow, json=json)


def _show_requested(client: "Client", run: Mapping[str, Any], *, follow: bool, json: bool) -> None:
    from gadfly.cli.terminal import err, out, print_json

    if follow:
        if not json:
            err.print(f"run {run['id']}")
        _follow(client, run["id"], json=json)
    elif json:
        print_json(run)
    else:
        out.print(f"run {run['id']} is {run['status']}: `gadfly runs {run['id']} --follow` shows its progress")


def _follow(client: "Client", run_id: str, *, json: bool) -> NoReturn:
    from gadfly.cli.run_follow import follow, follow_json
    from gadfly.cli.terminal import err

    try:
        code = follow_json(client, run_id) if json else follow(client, run_id)
    except KeyboardInterrupt:
        err.print(f"the run continues: `gadfly runs {run_id} --follow` shows it, `gadfly cancel {run_id}` cancels it")
        raise typer.Exit(130) from None
    raise typer.Exit(code)
