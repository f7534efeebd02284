"""Finds a training run and follows its events until it is over."""

import json
import time
from collections.abc import Callable, Iterator

from rich.console import Console

from gadfly.cli.run_view import RunDisplay, ending
from gadfly.cli.terminal import out
from gadfly.client import Client, Event, ServiceUnavailable
from gadfly.errors import BadInput
from gadfly.training import EventKind, RunStatus

_RETRY_S = 1.0
_PATIENCE_S = 600.0  # enough for a restart of the service
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
        page = client.get("/admin/runs", {"limit": _PAGE, **({} if cursor is None else {"cursor": cursor})})
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
    with RunDisplay(console, client.get(f"/admin/runs/{run_id}")) as display:
        for event in events_of(client, run_id, on_unavailable=display.show_unavailable):
            display.show(event)
    run = client.get(f"/admin/runs/{run_id}")
    console.print(ending(run))
    return 0 if run["status"] == RunStatus.SUCCEEDED else 1


def follow_json(client: Client, run_id: str) -> int:
    """Print a run's events as JSON, one per line, until it is over; the exit status and errors of `follow`."""
    for event in events_of(client, run_id, on_unavailable=lambda error: None):
        line = {"id": event.id, "event": event.name, **event.data}
        print(json.dumps(line), flush=True)
    return 0 if client.get(f"/admin/runs/{run_id}")["status"] == RunStatus.SUCCEEDED else 1


def events_of(client: Client, run_id: str, *, on_unavailable: Callable[[ServiceUnavailable], None]) -> Iterator[Event]:
    """Every event of a run until it is over, each once, also when the connection is lost in between.

    Args:
        client: client of the service.
        run_id: the run.
        on_unavailable: called once per outage.

    Raises:
        ServiceUnavailable: the service could not be reached at first, or was unavailable for ten minutes.
        ServiceError: the service refused the request.
    """
    seen = 0  # id of the last event
    unavailable_since: float | None = None
    while True:
        before = seen
        try:
            for event in client.follow(f"/admin/runs/{run_id}/events", after=seen):
                seen, unavailable_since = event.id, None
                yield event
                if event.name == EventKind.STATUS and RunStatus(event.data["status"]).is_over:
                    return
            if seen == before and RunStatus(client.get(f"/admin/runs/{run_id}")["status"]).is_over:
                return
        except ServiceUnavailable as error:
            if seen == 0:
                raise
            if unavailable_since is None:
                unavailable_since = time.monotonic()
                on_unavailable(error)
            if time.monotonic() - unavailable_since > _PATIENCE_S:
                raise
        time.sleep(_RETRY_S)
