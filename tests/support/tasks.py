"""Folders with tasks, for tests."""

from collections.abc import Mapping
from pathlib import Path

PROMPTS = """
description = "Prompts of a test."

[critique]
verdicts = { correct = "Right", incorrect = "Wrong" }

[[critique.messages]]
role = "user"
content = "Judge {response} to {question}."

[refine]

[[refine.messages]]
role = "user"
content = "{question}"

[[refine.messages]]
role = "assistant"
content = "{response}"

[[refine.messages]]
role = "user"
content = "{critique}"
"""


def write_task(
    folder: Path,
    grader: str = 'kind = "exact"',
    *,
    answer: str | None = 'form = "whole"',
    head: str = 'name = "test"\ndescription = "A test."\nprompts = "prompts.toml"',
    files: Mapping[str, str] | None = None,
    prompts: str | None = PROMPTS,
) -> Path:
    """Write a task's folder; `grader`, `answer` and `head` are parts of its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [head, *([] if answer is None else [f"[answer]\n{answer}"]), f"[grader]\n{grader}"]
    (folder / "task.toml").write_text("\n\n".join(parts))
    if prompts is not None:
        (folder / "prompts.toml").write_text(prompts)
    for name, content in (files or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder
