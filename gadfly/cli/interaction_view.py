"""Prints stored interactions."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from gadfly.cli.terminal import out, plain

_LISTED_CHARS = 60


def show_interactions(page: Mapping[str, Any]) -> None:
    """Print one line per interaction."""
    if not page["items"]:
        out.print("no interactions")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("interaction", "created", "kind", "verdict", "grade", "question"):
        table.add_column(name, no_wrap=True)
    for item in page["items"]:
        table.add_row(
            item["id"],
            item["created_at"][:16].replace("T", " "),
            item["kind"],
            item["verdict"] or "",
            (item["grade"] or "").replace("_", " "),
            Text(_short(item["question"])),
        )
    out.print(table)
    if page["next_cursor"] is not None:
        out.print(f"more: --cursor {page['next_cursor']}", markup=False)


def show_interaction(item: Mapping[str, Any]) -> None:
    """Print everything about one interaction."""
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    result = item["result"] or {}
    critic = item["critic"] and f"critic@{item['critic']['version']}"
    rows = {
        "interaction": item["id"],
        "created": item["created_at"][:19].replace("T", " "),
        "kind": item["kind"],
        "question": item["question"],
        "response": item["response"],
        "reference": item["reference"],
        "grade": (item["grade"] or "").replace("_", " "),
        "critic": critic,
        "verdict": item["verdict"],
        "critique": result.get("critique"),
        "refined": result.get("refined_response"),
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, Text(plain(str(value))))
    for feedback in item["feedback"]:
        given = {name: feedback.get(name) for name in ("correct", "reference", "edited_response", "rating", "comment")}
        said = ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)
        table.add_row("feedback", Text(plain(f"{feedback['created_at'][:16].replace('T', ' ')} {said}")))
    out.print(table)


def _short(text: str) -> str:
    line = plain(" ".join(text.split()))
    return line if len(line) <= _LISTED_CHARS else line[: _LISTED_CHARS - 1] + "…"
