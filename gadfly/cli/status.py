"""`gadfly status`: the running processes, the requests in flight and the stored rows."""

import time
from dataclasses import asdict
from typing import Any

from rich.table import Table

from gadfly.cli import probes
from gadfly.cli.connection import service_address
from gadfly.cli.critic_view import scoreboard_lines
from gadfly.cli.doctor import spooled
from gadfly.cli.terminal import out, seconds
from gadfly.cli.up_state import UpState, active_state, is_alive
from gadfly.errors import GadflyError, NotFound
from gadfly.settings import Settings
from gadfly.store.embedded import EmbeddedPostgres


async def collect(settings: Settings) -> dict[str, Any]:
    """The state of the deployment as JSON. Parts that cannot be read are None."""
    state = active_state(settings.home)
    url = service_address(settings)
    ready = await probes.get(f"{url}/readyz", limit_s=30)
    service_state = await probes.get(f"{url}/state")
    waiting, rejected = spooled(settings.home)
    stored = await _stored(settings)
    return {
        "home": str(settings.home),
        "up": state is not None,
        "processes": _processes(state),
        "service": {
            "url": url,
            "answers": ready.status is not None,
            "ready": ready.is_ok,
            "reason": None
            if ready.is_ok
            else ready.problem
            if ready.body is None
            else probes.why_not_ready(ready.body),
            "state": service_state.body if service_state.is_ok else None,
        },
        "rows": None if stored is None else stored["rows"],
        "scoreboard": None if stored is None else stored["scoreboard"],
        "spool": {"bytes": waiting, "rejected": rejected},
    }


def show(collected: dict[str, Any]) -> None:
    """Print the result of `collect`."""
    service = collected["service"]
    if service["ready"]:
        out.print(f"[green]ready[/] at {service['url']}")
    elif service["answers"]:
        out.print(f"[yellow]not ready[/] at {service['url']}: {service['reason']}")
    else:
        out.print(f"[red]not running[/]: no service answers at {service['url']}")
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0))
    for process in collected["processes"]:
        uptime = f"process {process['pid']}, up {seconds(process['uptime_s'])}" if process["alive"] else "[red]ended[/]"
        table.add_row(process["role"], uptime)
    state = service["state"] or {}
    if state.get("live_critic") is not None:
        in_flight = sum(state.get("in_flight", {}).values())
        [default] = state.get("tasks", [])[:1] or [{}]
        untrained = " and untrained" if default.get("status") == "untrained" or state["live_critic"] == 0 else ""
        table.add_row("critic", f"critic@{state['live_critic']} is live{untrained}, {in_flight} requests in flight")
    if state.get("task") is not None:
        table.add_row("task", f"{state['task']} {state['task_version']}")
    for task in state.get("tasks", [])[1:]:
        loaded = "" if task["is_loaded"] else ", loaded at its next request"
        untrained = " and untrained" if task["status"] == "untrained" else ""
        live = f"critic@{task['live_critic']} is live{untrained}{loaded}"
        table.add_row("task", f"{task['name']} {task['version']}: {live}")
        if task["watch"]:
            table.add_row("", f"[yellow]{task['watch']}[/]")
    if state.get("watch"):
        table.add_row("watch", f"[yellow]{state['watch']}[/]")
    for engine in state.get("engines", []):
        reachable = "reachable" if engine["reachable"] else "[red]unreachable[/]"
        if engine.get("health", "sound") != "sound":
            reachable = "[red]failing, the other engines get its requests[/]"
        limit = ", serves version 0 only" if engine.get("adapters") is False else ""
        table.add_row("engine", f"{engine['url']}: {reachable}, {engine['in_flight']} in flight{limit}")
    if collected["scoreboard"] is not None:
        for line in scoreboard_lines(collected["scoreboard"]):
            table.add_row("your labels", line)
    rows = collected["rows"]
    if rows is None:
        table.add_row("database", "does not answer")
    else:
        about = "about " if rows["are_estimates"] else ""
        for name, count in rows.items():
            if name == "are_estimates":
                continue
            parts = ", ".join(f"{n} {kind}" for kind, n in count.items()) if isinstance(count, dict) else str(count)
            table.add_row(name, f"{about}{parts}")
    spool = collected["spool"]
    table.add_row("spool", f"{spool['bytes']} bytes waiting, {spool['rejected']} records rejected")
    table.add_row("home", collected["home"])
    out.print(table)


def _processes(state: UpState | None) -> list[dict[str, Any]]:
    if state is None:
        return []
    now = time.time()
    up = {"role": "gadfly up", "pid": state.pid, "alive": True, "uptime_s": round(now - state.started_at, 1)}
    return [up] + [
        {
            "role": process.role,
            "pid": process.pid,
            "alive": is_alive(process),
            "uptime_s": round(now - process.started_at, 1),
        }
        for process in state.processes
    ]


async def _stored(settings: Settings) -> dict[str, Any] | None:
    """The number of rows, and the scoreboard of the live critic."""
    from gadfly import store
    from gadfly.cli.storage import opened
    from gadfly.scoreboard import scoreboard
    from gadfly.tasks import load_tasks

    server = EmbeddedPostgres(settings.home)
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
    elif server.is_running:
        url = server.url
    else:
        return None
    try:
        async with opened(settings, url) as database, database.session() as session:
            rows = asdict(await store.interactions.count_rows(session))
            try:
                live = await store.critics.resolve_critic(session, "live", load_tasks(settings).default.name)
            except NotFound:  # the service has not started on this database yet
                return {"rows": rows, "scoreboard": None}
            board = scoreboard(await store.scores.scored_answers(session, live))
            return {"rows": rows, "scoreboard": asdict(board) | {"answers": board.answers}}
    except GadflyError:
        return None
