"""Prints the answers of POST /critique and /refine."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gadfly.cli.terminal import out, plain
from gadfly.client import Client, ServiceError, calls, problem_text

_COLOURS = {"correct": "green", "incorrect": "red", "unparsed": "yellow"}
_REASONS = {
    "rounds": "the requested number",
    "judged_correct": "the critic judges the answer correct",
}
_SIGNS = {"correct": "✓", "incorrect": "✗", "unparsed": "?"}


def stream_answer(client: Client, path: calls.AnswerPath, body: Mapping[str, Any]) -> dict[str, Any]:
    """Send the request, print the generated text as it arrives, and return the result.

    Raises:
        ServiceError: the service refused the request or failed, or the stream ended without a result.
    """
    current: tuple[str, int] | None = None  # role and round of the text being printed
    for event in client.events(calls.streamed(calls.answer(path, body))):
        name, data = event.name, event.data
        if name == "text" and data["sample"] == 0:  # the texts of several samples would mix; the result has all of them
            if current != (data["role"], data["round"]):
                if current is not None:
                    out.print("\n")
                current = (data["role"], data["round"])
                out.print(
                    f"[dim]{data['role']}, round {data['round'] + 1}[/]" if path == "/refine" else "[dim]critique[/]"
                )
            out.print(plain(data["text"]), end="", markup=False)
        elif name == "result":
            out.print("\n" if current is not None else "")
            return data
        elif name == "error":
            out.print()
            raise ServiceError(problem_text(data))
    raise ServiceError("The stream ended without a result.")


def show_critique(result: Mapping[str, Any]) -> None:
    """Print an answer of POST /critique."""
    out.print(Group(_steps(result["steps"]), _verdict_line(result, result)))
    if len(result["critiques"]) > 1:
        verdicts = [critique["verdict"] for critique in result["critiques"]]
        votes = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts)))
        out.print(f"votes       {votes}")
    _show_grade("response", result["grade"])
    if result.get("grade_problem"):
        out.print(f"no grade    {result['grade_problem']}", markup=False)
    _show_ids(result, "critique")


def show_refinement(result: Mapping[str, Any]) -> None:
    """Print an answer of POST /refine."""
    out.print("[bold]refined response[/]")
    out.print(Padding(Text(plain(result["refined_response"])), (0, 0, 1, 2), expand=False))
    last = result["rounds"][-1]["critique"]
    out.print(_verdict_line(result, last))
    rounds = f"{len(result['rounds'])} round{'s' if len(result['rounds']) > 1 else ''}"
    samples = len(result["samples"])
    votes = f"; {result['votes']} of {samples} samples agree" if samples > 1 else ""
    reason = _REASONS.get(result["stop_reason"], result["stop_reason"])
    out.print(f"stopped     after {rounds}: {reason}{votes}")
    _show_grade("response", result["grade"])
    if result.get("grade_problem"):
        out.print(f"no grade    {result['grade_problem']}", markup=False)
    _show_grade("refined", result["refined_grade"])
    _show_ids(result, "refinement")


def _verdict_line(result: Mapping[str, Any], judged: Mapping[str, Any]) -> str:
    verdict = result["verdict"]
    confidence, calibrated = judged["confidence"], judged["calibrated_confidence"]
    certainty = "" if confidence is None else f"  confidence {confidence:.0%}"
    certainty += "" if calibrated is None else f", calibrated {calibrated:.0%}"
    critic = result["critic"]
    made = "with examples in its prompt" if critic.get("status") == "examples" else "untrained"
    sha = f" ({critic['adapter_sha256'][:12]})" if critic["adapter_sha256"] else f" (the base model, {made})"
    return (
        f"verdict     [bold {_COLOURS.get(verdict, 'yellow')}]{verdict}[/]{certainty}\n"
        f"critic      critic@{critic['version']}{sha}"
    )


def _steps(steps: list[dict[str, Any]]) -> Table | str:
    if not steps:
        return "[dim]this critique has no recognisable steps[/]"
    table = Table("", "step", "explanation", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for step in steps:
        colour = _COLOURS.get(step["verdict"], "yellow")
        table.add_row(
            f"[{colour}]{_SIGNS.get(step['verdict'], '?')}[/]",
            Text(plain(step["text"])),
            Text(plain(step["explanation"]), style="dim"),
        )
    return table


def _show_grade(name: str, grade: str | None) -> None:
    if grade is not None:
        out.print(f"{name:<11} {grade.replace('_', ' ')}, compared with the reference")


def _show_ids(result: Mapping[str, Any], kind: str) -> None:
    usage = result["usage"]
    out.print(
        f"interaction {result['id']}\n"
        f"episode     {result['episode_id']}\n"
        f"[dim]{usage['prompt_tokens']} + {usage['completion_tokens']} tokens in {result['latency_ms'] / 1000:.1f} s. "
        f"Was the {'response' if kind == 'critique' else 'first response'} right? "
        f"gadfly feedback {result['id']} --correct (or --incorrect, --reference ANSWER)[/]"
    )
