"""The running service, for people: the client of it, and what `gadfly critique`, `refine` and `feedback` show."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gadfly.cli.terminal import out, plain
from gadfly.client import Client, ServiceError, problem_text
from gadfly.errors import BadInput

_COLOURS = {"correct": "green", "incorrect": "red", "unparsed": "yellow"}
_REASONS = {
    "rounds": "that many were asked for",
    "judged_correct": "the critic calls the answer correct",
}
_SIGNS = {"correct": "✓", "incorrect": "✗", "unparsed": "?"}


def read_text(value: str | None) -> str | None:
    """An argument as given, or the content of the file in `@path`, or of standard input for `-`.

    Raises:
        BadInput: the file cannot be read.
    """
    if value is None or (value != "-" and not value.startswith("@")):
        return value
    if value == "-":
        return sys.stdin.read()
    try:
        return Path(value[1:]).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{value[1:]} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}.") from None


def request_body(question: str | None, response: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request, from arguments, or from a JSON document on standard input when there are none.

    Raises:
        BadInput: something is missing, or the document is no JSON object.
    """
    body: dict[str, Any] = {}
    if question is None and response is None and not sys.stdin.isatty():
        try:
            body = json.loads(sys.stdin.read() or "{}")
        except ValueError as error:
            raise BadInput(f"Standard input is not JSON: {error}.") from None
        if not isinstance(body, dict):
            raise BadInput("Standard input must be one JSON object, as POST /critique takes it.")
    texts = {"question": read_text(question), "response": read_text(response)}
    body |= {name: value for name, value in {**texts, **given}.items() if value is not None}
    missing = [f"--{name}" for name in texts if name not in body]
    if missing:
        raise BadInput(f"Give {' and '.join(missing)}, or a JSON object on standard input.")
    return body


def ask(client: Client, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Ask, print the text as it comes, and return the result.

    Raises:
        ServiceError: the service refuses, fails or breaks off.
    """
    speaking: tuple[str, int] | None = None
    for name, data in client.events(path, body):
        if name == "text" and data["sample"] == 0:  # several at once would mix; the rest is in the result
            if speaking != (data["role"], data["round"]):
                if speaking is not None:
                    out.print("\n")
                speaking = (data["role"], data["round"])
                out.print(
                    f"[dim]{data['role']}, round {data['round'] + 1}[/]" if path == "/refine" else "[dim]critique[/]"
                )
            out.print(plain(data["text"]), end="", markup=False)
        elif name == "result":
            out.print("\n" if speaking is not None else "")
            return data
        elif name == "error":
            out.print()
            raise ServiceError(problem_text(data))
    raise ServiceError("The answer broke off.")


def show_critique(result: Mapping[str, Any]) -> None:
    """Print what /critique answered."""
    out.print(Group(_steps(result["steps"]), _verdict_line(result, result["confidence"])))
    if len(result["critiques"]) > 1:
        verdicts = [critique["verdict"] for critique in result["critiques"]]
        votes = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts)))
        out.print(f"votes       {votes}")
    _show_grade("response", result["grade"])
    _show_ids(result, "critique")


def show_refinement(result: Mapping[str, Any]) -> None:
    """Print what /refine answered."""
    out.print("[bold]refined response[/]")
    out.print(Padding(Text(plain(result["refined_response"])), (0, 0, 1, 2), expand=False))
    last = result["rounds"][-1]["critique"]
    out.print(_verdict_line(result, last["confidence"]))
    rounds = f"{len(result['rounds'])} round{'s' if len(result['rounds']) > 1 else ''}"
    samples = len(result["samples"])
    votes = f"; {result['votes']} of {samples} samples agree" if samples > 1 else ""
    reason = _REASONS.get(result["stop_reason"], result["stop_reason"])
    out.print(f"stopped     after {rounds}: {reason}{votes}")
    _show_grade("response", result["grade"])
    _show_grade("refined", result["refined_grade"])
    _show_ids(result, "refinement")


def _verdict_line(result: Mapping[str, Any], confidence: float | None) -> str:
    verdict = result["verdict"]
    certainty = "" if confidence is None else f"  confidence {confidence:.0%}"
    critic = result["critic"]
    sha = f" ({critic['adapter_sha256'][:12]})" if critic["adapter_sha256"] else " (the base model)"
    return (
        f"verdict     [bold {_COLOURS.get(verdict, 'yellow')}]{verdict}[/]{certainty}\n"
        f"critic      critic@{critic['version']}{sha}"
    )


def _steps(steps: list[dict[str, Any]]) -> Table | str:
    if not steps:
        return "[dim]no steps could be told apart in this critique[/]"
    table = Table("", "step", "what the critic says", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for step in steps:
        colour = _COLOURS.get(step["verdict"], "yellow")
        table.add_row(
            f"[{colour}]{_SIGNS.get(step['verdict'], '?')}[/]",
            Text(plain(step["text"])),
            Text(plain(step["explanation"]), style="dim"),
        )
    return table


def _show_grade(what: str, grade: str | None) -> None:
    if grade is not None:
        out.print(f"{what:<11} {grade.replace('_', ' ')}, compared with the reference")


def _show_ids(result: Mapping[str, Any], kind: str) -> None:
    usage = result["usage"]
    out.print(
        f"interaction {result['id']}\n"
        f"episode     {result['episode_id']}\n"
        f"[dim]{usage['prompt_tokens']} + {usage['completion_tokens']} tokens in {result['latency_ms'] / 1000:.1f} s. "
        f"Was the {'response' if kind == 'critique' else 'first response'} right? "
        f"gadfly feedback {result['id']} --correct (or --incorrect, --reference ANSWER)[/]"
    )
