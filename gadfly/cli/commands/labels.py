"""`gadfly labels` and `gadfly acts`: disputes about labels, decisions about them, and the audit of admins."""

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

import typer

from gadfly.cli.commands.arguments import Json
from gadfly.cli.options import takes_settings
from gadfly.records import Ruling
from gadfly.settings import Settings

app = typer.Typer(help="Show and decide conflicts between labels.", no_args_is_help=True)

InteractionId = Annotated[UUID, typer.Argument(help="An interaction about the answer.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=200, help="Most lines to show.")]


@app.command("conflicts")
@takes_settings()
def list_conflicts(
    settings: Settings,
    disputed: Annotated[
        bool, typer.Option("--disputed", help="Also labels that some votes, or later votes, contradict.")
    ] = False,
    limit: Limit = 50,
    json: Json = False,
) -> None:
    """List the answers that have no label because the votes about them differ."""
    from gadfly.cli import terminal
    from gadfly.cli.connection import connect
    from gadfly.client import calls

    with connect(settings) as client:
        page = client.document(calls.conflicts(disputed=disputed, limit=limit))
    if json:
        terminal.print_json(page)
        return
    for item in page["items"]:
        _show(item)
    if not page["items"]:
        terminal.out.print("no conflicts")
    elif page["next_cursor"]:
        terminal.err.print(f"There are more than these {limit}: decide some, or raise --limit.")


@app.command("show")
@takes_settings()
def show_label(settings: Settings, interaction: InteractionId, json: Json = False) -> None:
    """Show the label of an answer and the votes about it."""
    from gadfly.cli import terminal
    from gadfly.cli.connection import connect
    from gadfly.client import calls

    with connect(settings) as client:
        found = client.document(calls.label(interaction))
    (terminal.print_json if json else _show)(found)


@app.command("set")
@takes_settings()
def set_label(
    settings: Settings,
    interaction: InteractionId,
    label: Annotated[Ruling, typer.Argument(help="none: no label. votes: the votes decide again.")],
    reason: Annotated[str | None, typer.Option("--reason", help="Why; stored with the act.")] = None,
    json: Json = False,
) -> None:
    """Decide the label of an answer against or without the votes about it."""
    from gadfly.cli import terminal
    from gadfly.cli.connection import connect
    from gadfly.client import calls

    with connect(settings) as client:
        found = client.document(calls.set_label(interaction, label, reason=reason))
    (terminal.print_json if json else _show)(found)


@takes_settings()
def list_acts(settings: Settings, limit: Limit = 50, json: Json = False) -> None:
    """List what admins did to labels and keys: who, when, what and why."""
    from rich.table import Table
    from rich.text import Text

    from gadfly.cli import terminal
    from gadfly.cli.connection import connect
    from gadfly.client import calls

    with connect(settings) as client:
        acts = client.document(calls.acts(limit=limit))["items"]
    if json:
        terminal.print_json(acts)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("when", "by key", "act", "about", "details", "reason"):
        table.add_column(name, overflow="fold")
    for act in acts:
        details = ", ".join(f"{name} {value}" for name, value in act["details"].items())
        cells = (act["at"][:19], act["key_id"] or "-", act["action"], act["subject"], details, act["reason"] or "")
        table.add_row(*(Text(terminal.plain(cell)) for cell in cells))
    terminal.out.print(table if acts else "no acts")


def _show(item: Mapping[str, Any]) -> None:
    from gadfly.cli.terminal import out, plain

    label = {True: "right", False: "wrong", None: "no label"}
    state = f"{label[item['correct']]}, votes {item['standing']}, {item['split']}"
    if item["decided"]:
        state += f", decided by an admin: {item['decided']}"
    elif item["frozen_at"] and item["voted"] is not item["correct"]:
        state += f", frozen; the votes say now: {label[item['voted']]}"
    out.print(f"{item['interaction_id']}  {state}", markup=False)
    out.print(plain(f"  question: {_short(item['question'])}"), markup=False)
    out.print(plain(f"  response: {_short(item['response'])}"), markup=False)
    for vote in item["votes"]:
        key = "operator" if vote["key_id"] is None else f"{vote['key_name']} ({vote['key_id']})"
        out.print(plain(f"  {label[vote['correct']]} by {vote['source']} of {key}"), markup=False)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else f"{line[:160]}..."
