"""Prints training runs: lists, one run, a plan, and the progress of a run that is being followed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from gadfly.cli.terminal import out, plain, seconds
from gadfly.client import Event, ServiceUnavailable
from gadfly.training import EventKind, OptionSource, RunStatus, TrainConfig

_SMOOTHING = 0.7  # weight of the previous steps' time against the newest step's
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
_MAX_VALUE_CHARS = 200  # characters of one value in a line


def show_runs(runs: Sequence[Mapping[str, Any]]) -> None:
    """Print one line per run."""
    if not runs:
        out.print("no training runs: `gadfly retrain` requests one")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("run", "task", "requested", "by", "status", "step", "duration", "gate", "critic"):
        table.add_column(name, overflow="fold", no_wrap=name == "run")  # a truncated id is useless
    for run in runs:
        progress = run["progress"]
        table.add_row(
            run["id"],
            run["task"],
            f"{_time(run['created_at']):%Y-%m-%d %H:%M}",
            run["trigger"],
            _coloured(run["status"]),
            f"{progress['step']}/{progress['steps']}",
            _duration(run),
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
    attempts = f", attempt {run['attempt']}" if run["attempt"] > 1 else ""
    table.add_row("status", Text.assemble(_coloured(run["status"]), attempts))
    if run["cancel_requested_at"] and run["status"] == RunStatus.RUNNING:
        table.add_row("", "cancellation requested")
    if run["error"]:
        table.add_row("error", Text(plain(run["error"]), style="red"))
    reproduces = f" of {run['reproduces']}" if run["reproduces"] else ""
    request_id = f", request id {plain(run['request_id'])}" if run["request_id"] else ""
    requested = f"{_time(run['created_at']):%Y-%m-%d %H:%M:%S} UTC by {run['trigger']}{reproduces}{request_id}"
    table.add_row("requested", Text(requested))
    if run["started_at"]:
        table.add_row("duration", _duration(run))
    eta = f", {seconds(progress['eta_s'])} left" if progress["eta_s"] is not None else ""
    stage = f"{progress['stage'] or 'not started'}, " if run["status"] in ("queued", "running") else ""
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


def show_options(options: Sequence[Mapping[str, Any]]) -> None:
    """Print one line per training option."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("option", no_wrap=True)
    table.add_column("default", no_wrap=True)
    table.add_column("", overflow="fold")
    for option in options:
        table.add_row(option["name"], json.dumps(option["default"]), Text(option["description"] or ""))
    out.print(table)


_SOURCES = {
    OptionSource.DEFAULT: "default",
    OptionSource.SERVED: "as the service answers",
    OptionSource.FILE: "file of GADFLY_TRAIN_CONFIG",
    OptionSource.TASK: "task.toml",
    OptionSource.REQUEST: "request",
}


def show_plan(plan: Mapping[str, Any]) -> None:
    """Print the plan of a run: its rows, its steps and its estimated duration."""
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
    for name, label in names.items():
        portion = plan[name]
        counts = [portion[field] for field in ("answers", "questions", "right", "wrong")]
        table.add_row(label, *map(str, counts + [portion["by_source"][source] for source in sources]))
    out.print(table)
    if plan["pool_answers"]:
        out.print(f"the actor samples up to {plan['pool_answers']} more answers")
    duration = "" if plan["seconds"] is None else f", about {seconds(plan['seconds'])}"
    out.print(f"{plan['steps']} steps{duration}")
    if plan.get("options"):  # an older service names none
        out.print("options that are not left at their defaults:")
        chosen = Table(box=None, padding=(0, 3, 0, 2), show_header=False)
        for option in plan["options"]:
            chosen.add_row(option["name"], json.dumps(option["value"]), _SOURCES[OptionSource(option["source"])])
        out.print(chosen)
    for warning in plan["warnings"]:
        out.print(Text(plain(warning), style="yellow"))
    for note in plan["notes"]:
        out.print(Text(plain(note), style="dim"))
    out.print(Text(plain(plan["next_step"]), style="bold"))


def ending(run: Mapping[str, Any]) -> Text:
    """One line about a run that is over: its status, its duration and its error."""
    after = f" after {_duration(run)}" if run["started_at"] else ""
    reason = f": {plain(run['error'])}" if run["error"] else ""
    return Text.assemble(f"run {run['id']} ", _coloured(run["status"]), after + reason)


class RunDisplay:
    """The progress of one run: a bar in a terminal, one line per step elsewhere, and one line per other event."""

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

    def show_unavailable(self, error: ServiceUnavailable) -> None:
        """Print that the service is unavailable and the run continues."""
        self._print("waiting", f"{error} The run continues; its events follow when the service is back.", "yellow")

    def show(self, event: Event) -> None:
        """Print one event."""
        data = event.data
        match event.name:
            case EventKind.STATUS:
                attempt = f", attempt {data['attempt']}" if data.get("attempt", 1) > 1 else ""
                self._stage = data["status"]
                if not RunStatus(data["status"]).is_over:  # `ending` prints the final status
                    self._print("status", f"{data['status']}{attempt}", _COLOURS.get(data["status"], ""))
            case EventKind.STAGE:
                self._stage, self._step = data["stage"], data.get("step", self._step)
                self._print("stage", _sentence(data, ("stage", "step")))
            case EventKind.STEP:
                self._take_step(data)
            case EventKind.VALIDATION:
                self._print("validation", f"before step {data['step'] + 1}: {_numbers(data['metrics'])}")
            case EventKind.ALARM:
                self._print("alarm", _sentence(data, ("message",)), "bold red")
            case EventKind.GATE:
                self._print_gate(data)
            case EventKind.PUBLISHED:
                self._print("published", f"critic@{data['version']} ({_made(data)})", "green")
            case _:
                self._print(event.name, _sentence(data, ("message",)))
        self._update()

    def _take_step(self, data: Mapping[str, Any]) -> None:
        self._step = data["step"]
        step_s = data.get("seconds")
        if step_s is not None:
            mean_s = step_s if self._step_s is None else self._step_s
            self._step_s = _SMOOTHING * mean_s + (1 - _SMOOTHING) * step_s
        metrics = _numbers(data.get("metrics", {}))
        self._progress.update(self._task, metrics=metrics)
        if not self._console.is_terminal:
            parts = (f"{self._stage} step {self._step}/{self._steps}", metrics, self._left())
            self._print("step", ", ".join(part for part in parts if part))

    def _print_gate(self, report: Mapping[str, Any]) -> None:
        outcome = str(report.get("outcome", "decided"))
        self._print("gate", outcome.replace("_", " "), _COLOURS.get(outcome, ""))
        for sentence in report.get("reasons", []):
            self._print("", sentence)

    def _left(self) -> str:
        if self._step_s is None or self._step >= self._steps:
            return ""
        return f"{seconds(self._step_s * (self._steps - self._step))} left"

    def _update(self) -> None:
        self._progress.update(self._task, description=self._stage, completed=self._step, left=self._left())

    def _print(self, kind: str, text: str, style: str = "") -> None:
        self._progress.console.print(Text.assemble((f"{kind:<11} ", "dim"), (plain(text), style)))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _duration(run: Mapping[str, Any]) -> str:
    if run["started_at"] is None:
        return ""
    end = datetime.now(UTC) if run["finished_at"] is None else _time(run["finished_at"])
    return seconds(max(0.0, (end - _time(run["started_at"])).total_seconds()))


def _coloured(word: str) -> Text:
    return Text(word.replace("_", " "), style=_COLOURS.get(word, ""))


def _changes(config: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from the defaults."""
    changes: dict[str, Any] = {}
    for name, value in config.items():
        standard = default.get(name)
        if isinstance(value, dict) and isinstance(standard, dict):
            if inner := _changes(value, standard):
                changes[name] = inner
        elif name not in default or value != standard:
            changes[name] = value
    return changes


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and text of each value of a nested document."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield plain(f"{prefix}{name}"), plain(_text(value))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MAX_VALUE_CHARS else f"{text[:_MAX_VALUE_CHARS]}..."


def _sentence(data: Mapping[str, Any], first: Sequence[str]) -> str:
    """An event as one line: the values of the fields in `first`, then the other fields with their names."""
    values = [str(data[name]) if name != "step" else f"step {data[name]}" for name in first if name in data]
    rest = {name: value for name, value in data.items() if name not in (*first, "at")}
    return ", ".join(values + [f"{name} {value}" for name, value in _flat(rest)])


def _numbers(metrics: Mapping[str, Any]) -> str:
    """The key metrics of a step or a validation; the first ones where it has no key metric."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    shown = [name for name in _KEY_METRICS if name in numbers] or list(numbers)[: len(_KEY_METRICS)]
    return "  ".join(f"{plain(name)} {numbers[name]:.3g}" for name in shown)


def _made(published: Mapping[str, Any]) -> str:
    sha256 = published["adapter_sha256"]
    return f"{published['examples']} examples in its prompt" if sha256 is None else sha256[:12]
