"""Finds a training run and follows its events until it is over."""

import json

from rich.console import Console

from gadfly.cli.run_view import RunDisplay, ending
from gadfly.cli.terminal import out
from gadfly.client import Client, calls
from gadfly.errors import BadInput
from gadfly.training import RunStatus

_PAGE = 200


def find_run(client: Client, name: str) -> str:
    """The id of the run whose id is `name` or starts with it.

    Raises:
        BadInput: no run matches, or several do.
        ServiceError: the service cannot be reached, or refused the request.
    """
    prefix = name.strip().casefold()
    if not prefix.strip("-"):
        raise BadInput("Which run? `gadfly runs` lists them.")
    matches: list[str] = []
    cursor: str | None = None
    while True:
        page = client.document(calls.runs(limit=_PAGE, cursor=cursor))
        matches += [run["id"] for run in page["items"] if run["id"].startswith(prefix)]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    if not matches:
        raise BadInput(f"No training run starts with {name}: `gadfly runs` lists them.")
    if len(matches) > 1:
        raise BadInput(
            f"{len(matches)} training runs start with {name}: {', '.join(matches[:5])}. Give more of the id."
        )
    return matches[0]


def follow(client: Client, run_id: str, *, console: Console = out) -> int:
    """Show a run's progress until it is over; the exit status: 0 when it succeeded, else 1.

    Raises:
        ServiceUnavailable: the service cannot be reached, or was unavailable for ten minutes.
        ServiceError: the service refused the request.
    """
    with RunDisplay(console, client.document(calls.run(run_id))) as display:
        for event in client.follow_events(run_id, on_unavailable=display.show_unavailable):
            display.show(event)
    run = client.document(calls.run(run_id))
    console.print(ending(run))
    return 0 if run["status"] == RunStatus.SUCCEEDED else 1


def follow_json(client: Client, run_id: str) -> int:
    """Print a run's events as JSON, one per line, until it is over; the exit status and errors of `follow`."""
    for event in client.follow_events(run_id):
        line = {"id": event.id, "event": event.name, **event.data}
        print(json.dumps(line), flush=True)
    return 0 if client.document(calls.run(run_id))["status"] == RunStatus.SUCCEEDED else 1
