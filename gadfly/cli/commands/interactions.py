"""`gadfly interactions list`, `show` and `delete`: stored interactions."""

from typing import Annotated

import typer

from gadfly.cli.commands.arguments import Json
from gadfly.cli.options import takes_settings
from gadfly.records import Kind
from gadfly.settings import Settings
from gadfly.verdict import Verdict

app = typer.Typer(help="List, show and delete stored interactions.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(help="The interaction's id.")]


@app.command("list")
@takes_settings()
def list_interactions(
    settings: Settings,
    limit: Annotated[int, typer.Option("--limit", min=1, max=200, help="How many to list.")] = 20,
    kind: Annotated[Kind | None, typer.Option("--kind", help="Only of this kind.")] = None,
    verdict: Annotated[Verdict | None, typer.Option("--verdict", help="Only with this verdict.")] = None,
    cursor: Annotated[str | None, typer.Option("--cursor", help="Continue after an earlier list.")] = None,
    json: Json = False,
) -> None:
    """List interactions, the newest first."""
    from gadfly.cli.connection import connect
    from gadfly.cli.interaction_view import show_interactions
    from gadfly.cli.terminal import print_json
    from gadfly.client import calls

    with connect(settings) as client:
        page = client.document(calls.interactions(limit=limit, kind=kind, verdict=verdict, cursor=cursor))
    (print_json if json else show_interactions)(page)


@app.command("show")
@takes_settings()
def show_one(settings: Settings, id: Id, json: Json = False) -> None:
    """Show an interaction with its result and its feedback."""
    from gadfly.cli.connection import connect
    from gadfly.cli.interaction_view import show_interaction
    from gadfly.cli.terminal import print_json
    from gadfly.client import calls

    with connect(settings) as client:
        (print_json if json else show_interaction)(client.document(calls.interaction(id)))


@app.command("delete")
@takes_settings()
def delete(
    settings: Settings,
    id: Id,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete an interaction permanently, with its texts, critiques, refinements and feedback."""
    from gadfly.cli.connection import connect
    from gadfly.cli.terminal import out

    if not yes:
        typer.confirm(f"Delete the interaction {id} permanently?", abort=True, err=True)
    with connect(settings) as client:
        client.delete_interaction(id)
    out.print(f"interaction {id} deleted", markup=False)
