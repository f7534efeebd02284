"""Prompt sets: the prompts of critic and actor, as versioned data.

A set is a file `prompt_sets/NAME@VERSION.toml`. A published version is never edited, because every interaction names
the set that produced it. Messages go through the model's own chat template, in the engine. The field structure is
that of the prompts released with Critique-RL (arXiv 2510.24320).
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from gadfly.errors import BadSettings

_SLOT = re.compile(r"\{(question|response|critique)\}")


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """Messages for the chat template; `opener` is the text that a reply is forced to begin with (empty: none)."""

    messages: tuple[Message, ...]
    opener: str = ""

    def continued(self, text: str) -> "Prompt":
        """This prompt with `text` as the beginning of the reply, for the engine to continue."""
        return Prompt(self.messages, text)


@dataclass(frozen=True, slots=True)
class PromptSet:
    """One version of all prompts of critic and actor.

    `correct` and `incorrect` are the words of a critique's verdicts.
    """

    name: str
    description: str
    correct: str
    incorrect: str
    _critique: Prompt
    _refine: Prompt
    _critique_starts_at: str

    def solve(self, *, question: str) -> Prompt:
        """The prompt for a first answer by the actor: the opening turns of a refinement's conversation."""
        first = next(place for place, message in enumerate(self._refine.messages) if message.role == "assistant")
        return _fill(Prompt(self._refine.messages[:first]), {"question": question})

    def critique(self, *, question: str, response: str) -> Prompt:
        """The prompt for a critique of `response`. The opener, if any, is part of the critique's text."""
        return _fill(self._critique, {"question": question, "response": response})

    def refine(self, *, question: str, response: str, critique: str) -> Prompt:
        """The prompt for a rewrite of `response` with `critique`. The opener is not part of the refined answer."""
        start = critique.find(self._critique_starts_at) if self._critique_starts_at else 0
        return _fill(
            self._refine, {"question": question, "response": response, "critique": critique[max(start, 0) :].strip()}
        )


def _fill(prompt: Prompt, values: Mapping[str, str]) -> Prompt:
    # One pass, so that the name of a slot inside a caller's text is not replaced.
    return Prompt(
        tuple(
            Message(message.role, _SLOT.sub(lambda slot: values[slot[1]], message.content))
            for message in prompt.messages
        ),
        prompt.opener,
    )


def available() -> tuple[str, ...]:
    """The names of all prompt sets, as `name@version`."""
    return tuple(
        sorted(
            entry.name.removesuffix(".toml")
            for entry in files("gadfly").joinpath("prompt_sets").iterdir()
            if entry.name.endswith(".toml")
        )
    )


@cache
def load(name: str) -> PromptSet:
    """The prompt set `name@version`.

    Raises:
        BadSettings: there is no such set; the message lists the existing ones.
    """
    if name not in available():
        raise BadSettings(f"there is no prompt set {name!r}; the prompt sets are {', '.join(available())}")
    data = tomllib.loads(files("gadfly").joinpath("prompt_sets", f"{name}.toml").read_text(encoding="utf-8"))
    critique, refine = data["critique"], data["refine"]
    return PromptSet(
        name=name,
        description=data["description"],
        correct=critique["verdicts"]["correct"],
        incorrect=critique["verdicts"]["incorrect"],
        _critique=_read(critique),
        _refine=_read(refine),
        _critique_starts_at=refine.get("critique_starts_at", ""),
    )


def _read(section: Mapping[str, Any]) -> Prompt:
    messages = tuple(Message(item["role"], item["content"].strip()) for item in section["messages"])
    return Prompt(messages, section.get("opener", ""))
