"""`gadfly webhooks`: where events are announced, and what was delivered."""

from collections.abc import Sequence
from typing import Annotated

import typer

from gadfly.cli.commands.arguments import Json
from gadfly.cli.options import takes_settings
from gadfly.settings import Settings
from gadfly.webhooks import DeliveryStatus, WebhookEvent

app = typer.Typer(help="Announce events to other systems: create, list and delete webhooks.", no_args_is_help=True)


@app.command("create")
@takes_settings()
def create_webhook(
    settings: Settings,
    url: Annotated[str, typer.Argument(help="The http or https address that takes the announcements.")],
    event: Annotated[
        list[WebhookEvent] | None, typer.Option("--event", help="Announce this event; may be repeated. Unset: all.")
    ] = None,
    json: Json = False,
) -> None:
    """Announce events to an address from now on. The secret that signs them is shown once."""
    from gadfly.cli import terminal
    from gadfly.cli.connection import connect
    from gadfly.client import calls

    with connect(settings) as client:
        made = client.document(calls.create_webhook(url, events=event))
    if json:
        terminal.print_json(made)
        return
    terminal.err.print(f"webhook {made['id']}: {', '.join(made['events'])}", markup=False)
    terminal.err.print("This is the secret that signs its announcements; it is not shown again:")
    terminal.out.print(made["secret"], markup=False)


@app.command("list")
@takes_settings()
def list_webhooks(settings: Settings, json: Json = False) -> None:
    """List the webhooks."""
    from gadfly.cli import terminal
    from gadfly.cli.connection import connect
    from gadfly.client import calls

    with connect(settings) as client:
        found = client.document(calls.webhooks())
    if json:
        terminal.print_json(found)
        return
    rows = [(each["id"], each["url"], ", ".join(each["events"]), each["created_at"][:19]) for each in found]
    _print_table(("id", "url", "events", "created"), rows, empty="no webhooks")


@app.command("delete")
@takes_settings()
def delete_webhook(settings: Settings, webhook: Annotated[str, typer.Argument(help="Its id.")]) -> None:
    """Delete a webhook with its deliveries."""
    from gadfly.cli import terminal
    from gadfly.cli.connection import connect
    from gadfly.client import calls

    with connect(settings) as client:
        client.send(calls.delete_webhook(webhook))
    terminal.out.print(f"deleted {webhook}", markup=False)


@app.command("test")
@takes_settings()
def try_webhook(
    settings: Settings, webhook: Annotated[str, typer.Argument(help="Its id.")], json: Json = False
) -> None:
    """Send the event `test` to a webhook. `gadfly webhooks deliveries` shows whether it arrived."""
    from gadfly.cli import terminal
    from gadfly.cli.connection import connect
    from gadfly.client import calls

    with connect(settings) as client:
        found = client.document(calls.try_webhook(webhook))
    if json:
        terminal.print_json(found)
    else:
        terminal.out.print(f"{found['id']} (test) is sent", markup=False)


@app.command("deliveries")
@takes_settings()
def list_deliveries(
    settings: Settings,
    status: Annotated[DeliveryStatus | None, typer.Option("--status", help="Only deliveries in this state.")] = None,
    webhook: Annotated[
        str | None, typer.Option("--webhook", help="Only deliveries to the webhook with this id.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=200, help="How many to show.")] = 50,
    json: Json = False,
) -> None:
    """List announcements with their attempts, the newest first."""
    from gadfly.cli import terminal
    from gadfly.cli.connection import connect
    from gadfly.client import calls

    with connect(settings) as client:
        found = client.document(calls.webhook_deliveries(status=status, webhook=webhook, limit=limit))["items"]
    if json:
        terminal.print_json(found)
        return
    rows = [
        (
            each["id"],
            each["event"],
            each["webhook_id"],
            each["created_at"][:19],
            each["status"],
            str(each["attempts"]),
            (each["next_at"] or "")[:19],
            each["problem"] or "",
        )
        for each in found
    ]
    _print_table(
        ("id", "event", "webhook", "created", "status", "attempts", "next", "problem"), rows, empty="no deliveries"
    )


@app.command("resend")
@takes_settings()
def resend(settings: Settings, delivery: Annotated[str, typer.Argument(help="Its id.")], json: Json = False) -> None:
    """Send a delivery again now, also one that is dead or was delivered."""
    from gadfly.cli import terminal
    from gadfly.cli.connection import connect
    from gadfly.client import calls

    with connect(settings) as client:
        found = client.document(calls.resend_delivery(delivery))
    if json:
        terminal.print_json(found)
    else:
        terminal.out.print(f"{found['id']} ({found['event']}) is sent again", markup=False)


def _print_table(names: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, empty: str) -> None:
    from rich.table import Table
    from rich.text import Text

    from gadfly.cli import terminal

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=name == "id")
    for row in rows:
        table.add_row(*(Text(terminal.plain(cell)) for cell in row))
    terminal.out.print(table if rows else empty)
