"""`gadfly retrain`, `runs`, `cancel` and `reproduce`: training runs, for people."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from gadfly.cli.terminal import out, plain, seconds
from gadfly.client import Client, Event, ServiceUnavailable
from gadfly.errors import BadInput
from gadfly.training import EventKind, RunStatus, TrainConfig

_AGAIN_S = 1.0
_PATIENCE_S = 600.0  # for a service that is being restarted
_PAGE = 200
_SMOOTHING = 0.7  # of the time a step takes, against the newest
_COLOURS = {
    "queued": "cyan",
    "running": "cyan",
    "succeeded": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "promote": "bold green",
    "reject": "red",
    "not_enough_evidence": "yellow",
}
_KEY_METRICS = ("reward_mean", "discrimination_balanced", "balanced", "coverage", "kl", "entropy")
_LONGEST = 200  # characters of a value in a line


def read_changes(file: Path | None, pairs: Sequence[str]) -> dict[str, Any]:
    """Training options from a JSON file and from `name=value` pairs, which win; `alarms.kl=1` means one in a group.

    Raises:
        BadInput: the file holds no JSON object, or a pair is none.
    """
    changes: dict[str, Any] = {}
    if file is not None:
        try:
            changes = json.loads(file.expanduser().read_bytes())
        except OSError as error:
            raise BadInput(f"{file} cannot be read: {error.strerror}.") from None
        except ValueError as error:
            raise BadInput(f"{file} is not JSON: {error}.") from None
        if not isinstance(changes, dict):
            raise BadInput(f"{file} must hold one JSON object of training options.")
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not all(name.split(".")):
            raise BadInput(f"--set {pair}: say name=value, as in --set steps_stage_1=50 or --set alarms.kl=1.5.")
        *groups, last = name.split(".")
        place = changes
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise BadInput(f"--set {pair}: {group} is no group of options.")
        place[last] = _value(value)
    return changes


def find_run(client: Client, name: str) -> str:
    """The id of the run that `name` is, or begins.

    Raises:
        BadInput: none begins so, or several do.
        ServiceError: the service does not run, or refuses.
    """
    wanted = name.strip().casefold()
    if not wanted.strip("-"):
        raise BadInput("Which run? `gadfly runs` shows them.")
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = client.get("/admin/runs", {"limit": _PAGE, **({} if cursor is None else {"cursor": cursor})})
        found += [run["id"] for run in page["items"] if run["id"].startswith(wanted)]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    if not found:
        raise BadInput(f"No training run begins with {name}: `gadfly runs` shows them.")
    if len(found) > 1:
        raise BadInput(f"{len(found)} training runs begin with {name}: {', '.join(found[:5])}. Give more of its id.")
    return found[0]


# ----------------------------------------------------------------------------------------------------------- showing


def show_runs(runs: Sequence[Mapping[str, Any]]) -> None:
    """Print runs, one a line."""
    if not runs:
        out.print("no training runs: `gadfly retrain` asks for one")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("run", "asked for", "by", "status", "step", "took", "gate", "critic"):
        table.add_column(name, overflow="fold", no_wrap=name == "run")  # an id that is cut is none
    for run in runs:
        progress = run["progress"]
        table.add_row(
            run["id"],
            f"{_moment(run['created_at']):%Y-%m-%d %H:%M}",
            run["trigger"],
            _coloured(run["status"]),
            f"{progress['step']}/{progress['steps']}",
            _took(run),
            _coloured(run["outcome"]) if run["outcome"] else "",
            "" if run["version"] is None else f"critic@{run['version']}",
        )
    out.print(table)


def show_run(run: Mapping[str, Any]) -> None:
    """Print everything about one run."""
    progress = run["progress"]
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("run", run["id"])
    attempts = f", begun {run['attempt']} times" if run["attempt"] > 1 else ""
    table.add_row("status", Text.assemble(_coloured(run["status"]), attempts))
    if run["cancel_requested_at"] and run["status"] == RunStatus.RUNNING:
        table.add_row("", "its end was asked for")
    if run["error"]:
        table.add_row("error", Text(plain(run["error"]), style="red"))
    reproduces = f" of {run['reproduces']}" if run["reproduces"] else ""
    request_id = f", request id {plain(run['request_id'])}" if run["request_id"] else ""
    asked = f"{_moment(run['created_at']):%Y-%m-%d %H:%M:%S} UTC by {run['trigger']}{reproduces}{request_id}"
    table.add_row("asked for", Text(asked))
    if run["started_at"]:
        table.add_row("took", _took(run))
    eta = f", {seconds(progress['eta_s'])} left" if progress["eta_s"] is not None else ""
    stage = f"{progress['stage'] or 'not begun'}, " if run["status"] in ("queued", "running") else ""
    table.add_row("progress", f"{stage}step {progress['step']} of {progress['steps']}{eta}")
    changes = _flat(_changes(run["config"], TrainConfig().model_dump(mode="json")))
    table.add_row("options", Text(", ".join(f"{name} {value}" for name, value in changes) or "the defaults"))
    if run["outcome"]:
        table.add_row("gate", _coloured(run["outcome"]))
    for sentence in (run["gate"] or {}).get("reasons", []):
        table.add_row("", Text(plain(sentence)))
    if run["version"] is not None:
        table.add_row("published", f"critic@{run['version']}")
    out.print(table)


def show_plan(plan: Mapping[str, Any]) -> None:
    """Print what a run would do."""
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    sources = list(plan["stage_1"]["by_source"])
    for name in ("", "answers", "questions", "right", "wrong", *(f"by {source}" for source in sources)):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    names = {
        "stage_1": "stage I learns from",
        "stage_2": "stage II learns from",
        "validation": "validation",
        "heldout": "the gate measures on",
        "heldout_with_reference": "of these with a reference",
    }
    for name, said in names.items():
        portion = plan[name]
        counts = [portion[field] for field in ("answers", "questions", "right", "wrong")]
        table.add_row(said, *map(str, counts + [portion["by_source"][source] for source in sources]))
    out.print(table)
    if plan["pool_answers"]:
        out.print(f"the actor adds up to {plan['pool_answers']} answers of its own")
    took = "" if plan["seconds"] is None else f", about {seconds(plan['seconds'])}"
    out.print(f"{plan['steps']} steps{took}")
    for warning in plan["warnings"]:
        out.print(Text(plain(warning), style="yellow"))
    for note in plan["notes"]:
        out.print(Text(plain(note), style="dim"))


# --------------------------------------------------------------------------------------------------------- following


def follow(client: Client, run_id: str, *, console: Console = out) -> int:
    """Show a run while it works, until it is over; the exit status: 0 when it succeeded, else 1.

    Raises:
        ServiceError: the service does not run, refuses, or stayed away for ten minutes.
    """
    run = client.get(f"/admin/runs/{run_id}")
    with RunDisplay(console, run) as watch:
        for event in events_of(client, run_id, on_away=watch.away):
            watch.show(event)
    run = client.get(f"/admin/runs/{run_id}")
    after = f" after {_took(run)}" if run["started_at"] else ""
    reason = f": {plain(run['error'])}" if run["error"] else ""
    console.print(Text.assemble(f"run {run_id} ", _coloured(run["status"]), after + reason))
    return 0 if run["status"] == RunStatus.SUCCEEDED else 1


def follow_json(client: Client, run_id: str) -> int:
    """Print a run's events as JSON, one a line, until it is over; the exit status as of `follow`."""
    for event in events_of(client, run_id, on_away=lambda error: None):
        line = {"id": event.id, "event": event.name, **event.data}
        print(json.dumps(line), flush=True)
    return 0 if client.get(f"/admin/runs/{run_id}")["status"] == RunStatus.SUCCEEDED else 1


def events_of(client: Client, run_id: str, *, on_away: Any) -> Iterator[Event]:
    """Every event of a run until it is over, each once, however often the connection breaks.

    Raises:
        ServiceUnavailable: the service cannot be reached at first, or stayed away for ten minutes.
        ServiceError: it refuses.
    """
    seen = 0
    away_since: float | None = None
    while True:
        before = seen
        try:
            for event in client.follow(f"/admin/runs/{run_id}/events", after=seen):
                seen, away_since = event.id, None
                yield event
                if event.name == EventKind.STATUS and RunStatus(event.data["status"]).is_over:
                    return
            if seen == before and RunStatus(client.get(f"/admin/runs/{run_id}")["status"]).is_over:
                return
        except ServiceUnavailable as error:
            if seen == 0:
                raise
            if away_since is None:
                away_since = time.monotonic()
                on_away(error)
            if time.monotonic() - away_since > _PATIENCE_S:
                raise
        time.sleep(_AGAIN_S)


class RunDisplay:
    """What is seen of a run: a bar in a terminal, a line a step elsewhere, and a line for whatever matters."""

    def __init__(self, console: Console, run: Mapping[str, Any]) -> None:
        self._console = console
        self._steps = run["progress"]["steps"]
        self._step = 0
        self._step_s: float | None = None
        self._stage = run["progress"]["stage"] or run["status"]
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[left]}", style="dim"),
            TextColumn("{task.fields[metrics]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task(self._stage, total=self._steps, left="", metrics="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def away(self, error: ServiceUnavailable) -> None:
        """The service cannot be reached now."""
        self._say("waiting", f"{error} The run goes on, and this follows it as soon as it can.", "yellow")

    def show(self, event: Event) -> None:
        """Show what happened."""
        data = event.data
        match event.name:
            case EventKind.STATUS:
                attempt = f", attempt {data['attempt']}" if data.get("attempt", 1) > 1 else ""
                self._stage = data["status"]
                if not RunStatus(data["status"]).is_over:  # how it ended is said at the end
                    self._say("status", f"{data['status']}{attempt}", _COLOURS.get(data["status"], ""))
            case EventKind.STAGE:
                self._stage, self._step = data["stage"], data.get("step", self._step)
                self._say("stage", _sentence(data, ("stage", "step")))
            case EventKind.STEP:
                self._take_step(data)
            case EventKind.VALIDATION:
                self._say("validation", f"before step {data['step'] + 1}: {_numbers(data['metrics'])}")
            case EventKind.ALARM:
                self._say("alarm", _sentence(data, ("message",)), "bold red")
            case EventKind.GATE:
                self._say_gate(data)
            case EventKind.PUBLISHED:
                self._say("published", f"critic@{data['version']} ({data['adapter_sha256'][:12]})", "green")
            case _:
                self._say(event.name, _sentence(data, ("message",)))
        self._update()

    def _take_step(self, data: Mapping[str, Any]) -> None:
        self._step = data["step"]
        took = data.get("seconds")
        if took is not None:
            known = took if self._step_s is None else self._step_s
            self._step_s = _SMOOTHING * known + (1 - _SMOOTHING) * took
        metrics = _numbers(data.get("metrics", {}))
        self._progress.update(self._task, metrics=metrics)
        if not self._console.is_terminal:
            parts = (f"{self._stage} step {self._step}/{self._steps}", metrics, self._left())
            self._say("step", ", ".join(part for part in parts if part))

    def _say_gate(self, report: Mapping[str, Any]) -> None:
        outcome = str(report.get("outcome", "decided"))
        self._say("gate", outcome.replace("_", " "), _COLOURS.get(outcome, ""))
        for sentence in report.get("reasons", []):
            self._say("", sentence)

    def _left(self) -> str:
        if self._step_s is None or self._step >= self._steps:
            return ""
        return f"{seconds(self._step_s * (self._steps - self._step))} left"

    def _update(self) -> None:
        self._progress.update(self._task, description=self._stage, completed=self._step, left=self._left())

    def _say(self, kind: str, text: str, style: str = "") -> None:
        self._progress.console.print(Text.assemble((f"{kind:<11} ", "dim"), (plain(text), style)))


# ------------------------------------------------------------------------------------------------------------- parts


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _took(run: Mapping[str, Any]) -> str:
    if run["started_at"] is None:
        return ""
    end = datetime.now(UTC) if run["finished_at"] is None else _moment(run["finished_at"])
    return seconds(max(0.0, (end - _moment(run["started_at"])).total_seconds()))


def _coloured(word: str) -> Text:
    return Text(word.replace("_", " "), style=_COLOURS.get(word, ""))


def _changes(config: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name, value in config.items():
        usual = default.get(name)
        if isinstance(value, dict) and isinstance(usual, dict):
            if inner := _changes(value, usual):
                changes[name] = inner
        elif name not in default or value != usual:
            changes[name] = value
    return changes


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each value of a nested document under its dotted name; numbers as people read them."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield plain(f"{prefix}{name}"), plain(_said(value))


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _sentence(data: Mapping[str, Any], first: Sequence[str]) -> str:
    """What an event says: the fields named in `first` as they are, the others by name."""
    said = [str(data[name]) if name != "step" else f"step {data[name]}" for name in first if name in data]
    rest = {name: value for name, value in data.items() if name not in (*first, "at")}
    return ", ".join(said + [f"{name} {value}" for name, value in _flat(rest)])


def _numbers(metrics: Mapping[str, Any]) -> str:
    """The numbers of a step or a validation that say most."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    shown = [name for name in _KEY_METRICS if name in numbers] or list(numbers)[: len(_KEY_METRICS)]
    return "  ".join(f"{plain(name)} {numbers[name]:.3g}" for name in shown)
