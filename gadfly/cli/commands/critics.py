"""`gadfly critics`, `promote` and `rollback`: list the critics, and change which one is live."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gadfly.cli.commands.arguments import Json
from gadfly.cli.options import takes_settings
from gadfly.settings import Settings

if TYPE_CHECKING:
    from gadfly.client import Client

app = typer.Typer()

Reason = Annotated[str | None, typer.Option("--reason", help="Why; stored with the swap.")]


@app.command("critics")
@takes_settings()
def list_critics(
    settings: Settings,
    version: Annotated[
        int | None, typer.Argument(help="Show this version alone, with its swaps and their receipts.")
    ] = None,
    json: Json = False,
) -> None:
    """List the critics and show which one is live."""
    from gadfly.cli.connection import connect
    from gadfly.cli.critic_view import show_critic, show_critics
    from gadfly.cli.terminal import print_json

    with connect(settings) as client:
        if version is None:
            (print_json if json else show_critics)(client.get("/critics"))
        else:
            (print_json if json else show_critic)(client.get(f"/critics/{version}"))


@app.command()
@takes_settings()
def promote(
    settings: Settings,
    version: Annotated[int, typer.Argument(help="The critic to make live.")],
    reason: Reason = None,
    json: Json = False,
) -> None:
    """Make a critic live after every engine has proven that it serves it. A refused swap changes nothing."""
    from gadfly.cli.connection import connect
    from gadfly.cli.critic_view import show_swap
    from gadfly.cli.terminal import print_json

    with connect(settings) as client:
        (print_json if json else show_swap)(request_promotion(client, version, reason))


@app.command()
@takes_settings()
def rollback(settings: Settings, reason: Reason = None, json: Json = False) -> None:
    """Make the previous critic live again."""
    from gadfly.cli.connection import connect
    from gadfly.cli.critic_view import show_swap
    from gadfly.cli.terminal import print_json

    with connect(settings) as client:
        (print_json if json else show_swap)(request_rollback(client, reason))


def request_promotion(client: "Client", version: int, reason: str | None) -> dict[str, Any]:
    """Request that a version goes live; the swap."""
    return client.post("/admin/promote", _without_none(version=version, reason=reason))


def request_rollback(client: "Client", reason: str | None) -> dict[str, Any]:
    """Request the previous version; the swap. Idempotent: the request names the version to leave."""
    live = [critic["version"] for critic in client.get("/critics") if "live" in critic["pointers"]]
    return client.post("/admin/rollback", _without_none(from_version=live[0] if live else None, reason=reason))


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
