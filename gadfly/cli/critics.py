"""`gadfly critics`, `promote` and `rollback`: which critic answers, and why."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from gadfly.cli.terminal import out, plain
from gadfly.client import Client

_COLOURS = {"done": "green", "refused": "red", "pending": "yellow"}


def list_critics(client: Client) -> list[dict[str, Any]]:
    """Every version, newest first."""
    found: list[dict[str, Any]] = client.get("/critics")
    return found


def read_critic(client: Client, version: int) -> dict[str, Any]:
    """One version with its gate report, swaps and receipts."""
    found: dict[str, Any] = client.get(f"/critics/{version}")
    return found


def promote(client: Client, version: int, reason: str | None) -> dict[str, Any]:
    """Make a version live."""
    return client.post("/admin/promote", _given(version=version, reason=reason))


def rollback(client: Client, reason: str | None) -> dict[str, Any]:
    """Go back to the version that was live before the one that is live now; asked twice, it is done once."""
    live = [critic["version"] for critic in list_critics(client) if "live" in critic["pointers"]]
    return client.post("/admin/rollback", _given(from_version=live[0] if live else None, reason=reason))


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def show_critics(critics: list[dict[str, Any]]) -> None:
    """One line per version."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("version", "is", "from", "made", "adapter"):
        table.add_column(name)
    for critic in critics:
        table.add_row(
            str(critic["version"]),
            Text(", ".join(critic["pointers"]), style="green" if "live" in critic["pointers"] else ""),
            "" if critic["parent"] is None else str(critic["parent"]),
            critic["created_at"][:16].replace("T", " "),
            "the base model" if critic["adapter_sha256"] is None else critic["adapter_sha256"][:12],
        )
    out.print(table)


def show_critic(critic: Mapping[str, Any]) -> None:
    """One version: where it comes from, how it went live, what proved it."""
    pointers = ", ".join(critic["pointers"]) or "not pointed to"
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0))
    table.add_row("version", f"{critic['version']} ({pointers})")
    table.add_row("adapter", critic["adapter_sha256"] or "none: the base model under the critic's prompt")
    if critic["run_id"] is not None:
        gate = "" if critic["outcome"] is None else f", whose gate said {critic['outcome'].replace('_', ' ')}"
        table.add_row("from", f"version {critic['parent']}, by the run {critic['run_id']}{gate}")
    for swap in critic["swaps"]:
        table.add_row("swap", _swap_line(swap))
    for receipt in critic["receipts"]:
        table.add_row("receipt", _receipt_line(receipt["details"]))
    out.print(table)


def show_swap(swap: Mapping[str, Any]) -> None:
    """How a swap went."""
    if swap["status"] == "pending":
        out.print(f"[yellow]under way[/]: version {swap['version']} is still being proven; `gadfly status` shows more")
    else:
        out.print(f"version [green]{swap['version']}[/] is live; before it was {swap['from_version']}")


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
