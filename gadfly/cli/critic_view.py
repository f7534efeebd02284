"""Prints critics and swaps."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from gadfly.cli.terminal import out, plain

_COLOURS = {"done": "green", "refused": "red", "pending": "yellow"}


def show_critics(critics: list[dict[str, Any]]) -> None:
    """Print one line per version."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("version", "task", "pointers", "status", "parent", "created", "adapter", ""):
        table.add_column(name)
    for critic in critics:
        table.add_row(
            str(critic["version"]),
            critic["task"],
            Text(", ".join(critic["pointers"]), style="green" if "live" in critic["pointers"] else ""),
            critic["status"],
            "" if critic["parent"] is None else str(critic["parent"]),
            critic["created_at"][:16].replace("T", " "),
            _what(critic) if critic["adapter_sha256"] is None else critic["adapter_sha256"][:12],
            ", ".join(name.replace("_", " ") for name in ("verdict_only", "archived") if critic[name]),
        )
    out.print(table)


def _what(critic: Mapping[str, Any]) -> str:
    count = critic.get("examples", 0)
    return f"the base model with {count} examples in its prompt" if count else "the base model"


def show_canaries(canaries: list[dict[str, Any]]) -> None:
    """Print a line for each canary, and why one is held."""
    for canary in canaries:
        is_running = canary["ended_at"] is None
        state = "answers" if is_running else f"{canary['outcome'].replace('_', ' ')}; answered"
        line = (
            f"{canary['task']}: version {canary['version']} {state} {canary['share']:.0%} of the requests"
            f" ({canary['answers']} answers; version {canary['from_version']}: {canary['answers_before']})"
        )
        ends = [f"{canary['for_s']} s" if canary["for_s"] else "", f"{canary['for_requests']} answers"]
        if is_running:
            ends = ends if canary["for_requests"] else ends[:1]
            line += f" since {canary['started_at'][:19].replace('T', ' ')} UTC, for {' or '.join(filter(None, ends))}"
        out.print(plain(line + (f": {canary['reason']}" if canary["reason"] else "")), markup=False)
        if canary["held"]:
            out.print(plain(f"  waits for a person: {canary['held']}"), markup=False)
    if not canaries:
        out.print("no canaries")


def show_critic(critic: Mapping[str, Any]) -> None:
    """Print one version: its parent and run, its swaps and their receipts."""
    pointers = ", ".join(critic["pointers"]) or "no pointer"
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0))
    table.add_row("version", f"{critic['version']} ({pointers}), {critic['status']}")
    table.add_row("adapter", critic["adapter_sha256"] or f"none: {_what(critic)}")
    table.add_row("task", f"{critic['task']} {critic['task_version'] or ''}".rstrip())
    if critic["run_id"] is not None:
        made = "made" if critic.get("examples") else "trained"
        gate = "" if critic["outcome"] is None else f", gate: {critic['outcome'].replace('_', ' ')}"
        table.add_row("parent", f"version {critic['parent']}, {made} by run {critic['run_id']}{gate}")
    table.add_row("calibration", _calibration_line(critic["calibration"]))
    for line in scoreboard_lines(critic["scoreboard"]):
        table.add_row("your labels", line)
    if critic["origin"] is not None:
        gate = critic["origin"]["gate"]
        decision = "" if gate is None else f", gate there: {gate['outcome'].replace('_', ' ')}"
        table.add_row("origin", f"pulled from {plain(critic['origin']['source'])}{decision}")
    if critic["verdict_only"]:
        table.add_row("verdict only", "trained without references: /refine is answered by an earlier version")
    if critic["archived"]:
        table.add_row("archived", f"based on the model {critic['base_model']}, which is not served")
    for swap in critic["swaps"]:
        table.add_row("swap", _swap_line(swap))
    for receipt in critic["receipts"]:
        table.add_row("receipt", _receipt_line(receipt["details"]))
    out.print(table)


def show_swap(swap: Mapping[str, Any]) -> None:
    """Print the state of one swap."""
    if swap["status"] == "pending":
        out.print(
            f"[yellow]in progress[/]: version {swap['version']} is still being proven; `gadfly status` shows more"
        )
    else:
        out.print(f"version [green]{swap['version']}[/] is live; the previous version is {swap['from_version']}")


def scoreboard_lines(board: Mapping[str, Any] | None) -> list[str]:
    """How a critic does on labelled answers, and the threshold that would suit them."""
    if board is None or not board["answers"]:
        return ["none of its answers has a label yet: `gadfly feedback` gives one"]
    rates = {
        "right answers called correct": _percent(board["right"]),
        "wrong answers called incorrect": _percent(board["wrong"]),
        "AUROC": _number(board["auroc"]),
        "error of the confidence (ECE)": _number(board["ece"]),
        "of the calibrated one": _number(board["calibrated_ece"]),
    }
    known = [f"{name} {text}" for name, text in rates.items() if text is not None]
    answers = f"on {board['answers']} labelled answer{'s' * (board['answers'] != 1)}"
    lines = [f"{answers}: {', '.join(known)}"]
    threshold = board["threshold"]
    if threshold is not None:
        lines.append(
            f"with `correct` only from a probability of {threshold['p_correct']:.3f} on, balanced accuracy would be "
            f"{_percent(threshold['balanced'])}, not {_percent(board['balanced'])} (a suggestion: no verdict changes)"
        )
    return lines


def _percent(rate: Mapping[str, Any] | None) -> str | None:
    return None if rate is None else f"{rate['value']:.0%} ({rate['low']:.0%} to {rate['high']:.0%})"


def _number(rate: Mapping[str, Any] | None) -> str | None:
    return None if rate is None else f"{rate['value']:.2f} ({rate['low']:.2f} to {rate['high']:.2f})"


def _calibration_line(calibration: Mapping[str, Any] | None) -> str:
    if calibration is None:
        return "none: its confidence is as the critic states it"
    before, after = (
        f"{part['ece']:.3f} ({part['low']:.3f} to {part['high']:.3f})"
        for part in (calibration["before"], calibration["after"])
    )
    share = calibration["class_shares"]["share"]
    return (
        f"error (ECE) {before} before, {after} after, on {calibration['questions']} held-out questions; "
        f"{share:.0%} of the traffic's labelled answers are right"
    )


def _swap_line(swap: Mapping[str, Any]) -> Text:
    line = Text(swap["requested_at"][:19].replace("T", " ") + f" after {swap['from_version']} ({swap['kind']}): ")
    line.append(swap["status"], style=_COLOURS[swap["status"]])
    return line.append(f": {plain(swap['reason'])}" if swap["reason"] else "")


def _receipt_line(details: Mapping[str, Any]) -> str:
    proofs = details["engines"]
    proven = f"proven on {len(proofs)} engine{'s' * (len(proofs) != 1)}"
    if proofs:
        proven += f", at most {max(proof['deltas']['from_trainer'] for proof in proofs):.1e} nats from the trainer"
    lost = "" if details["lost"] is None else f", {details['lost']} lost"
    return f"{proven}; {details['in_flight']} requests in flight on {details['from_version']}{lost}"
