"""Terminal output: results, errors and progress."""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import orjson
from rich.console import Console
from rich.markup import escape
from rich.status import Status

_NOTE_EVERY_S = 10.0  # without a terminal every note stays visible, so notes are rare

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # tab and line feed are allowed
_WIDE = 200  # columns for pipes and logs, where a wrapped table would break ids

out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else _WIDE)
err = Console(stderr=True, soft_wrap=True, highlight=False, width=None if sys.stderr.isatty() else _WIDE)


def fail(message: str, *, code: int = 1) -> NoReturn:
    """Print one sentence on stderr and exit."""
    err.print(f"[bold red]error:[/] {escape(message)}")
    sys.exit(code)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(
        orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS, default=str).decode() + "\n"
    )
    sys.stdout.flush()


def plain(text: str) -> str:
    """External text without control characters, which could manipulate the terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def seconds(duration_s: float) -> str:
    """A duration in readable units, such as `12 s` or `3 min`."""
    if duration_s < 10:
        return f"{duration_s:.1f} s"
    if duration_s < 120:
        return f"{duration_s:.0f} s"
    if duration_s < 7200:
        return f"{duration_s / 60:.0f} min"
    return f"{duration_s / 3600:.0f} h" if duration_s < 172_800 else f"{duration_s / 86400:.0f} days"


class ProgressStep:
    """One step of a longer task, while it is in progress."""

    def __init__(self, console: Console, name: str, action: str) -> None:
        self._console = console
        self._name = name
        self._action = action
        self._began = self._noted = time.monotonic()
        self._status: Status | None = None
        self._result = "done"
        if console.is_terminal:
            self._status = Status(self._line(""), console=console)
            self._status.start()
        else:
            console.print(f"{name}: {action}", markup=False)

    def note(self, text: str) -> None:
        """Show the current state of the step. May be called at any rate."""
        if self._status is not None:
            self._status.update(self._line(text))
        elif time.monotonic() - self._noted > _NOTE_EVERY_S:
            self._noted = time.monotonic()
            elapsed = seconds(time.monotonic() - self._began)
            self._console.print(f"{self._name}: {self._action} ({elapsed}) {plain(text)}".rstrip(), markup=False)

    def result(self, text: str) -> None:
        """Set the text that is shown when the step is done."""
        self._result = text

    def _line(self, note: str) -> str:
        elapsed = seconds(time.monotonic() - self._began)
        width = max(20, self._console.width - len(self._name) - len(self._action) - len(elapsed) - 10)
        return f"{self._name:<10} {self._action} [dim]{elapsed}  {escape(plain(note)[:width])}[/]"

    def end(self, *, ok: bool) -> None:
        elapsed = seconds(time.monotonic() - self._began)
        if self._status is not None:
            self._status.stop()
            if ok:
                self._console.print(f"[green]✓[/] {self._name:<10} {escape(self._result)} [dim]{elapsed}[/]")
        elif ok:
            self._console.print(f"{self._name}: {self._result} ({elapsed})", markup=False)


@contextmanager
def step(name: str, action: str, *, console: Console = err) -> Iterator[ProgressStep]:
    """Show one step of a longer task: a spinner in a terminal, plain lines elsewhere."""
    current = ProgressStep(console, name, action)
    try:
        yield current
    except BaseException:
        current.end(ok=False)
        raise
    current.end(ok=True)
