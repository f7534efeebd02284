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
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gadfly.errors import BadSettings
from gadfly.fields import problems_of
from gadfly.verdict import Verdict, read_word, words_for

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
    path = files("gadfly").joinpath("prompt_sets", f"{name}.toml")
    return parse_prompt_set(path.read_bytes(), name=name, where=str(path))


def parse_prompt_set(content: bytes, *, name: str, where: str) -> PromptSet:
    """The prompt set in a file.

    Args:
        content: of the file.
        name: what is stored with everything that these prompts produce, so a name belongs to one content.
        where: the file, for messages.

    Raises:
        BadSettings: the file is not a prompt set; the message names the field and says what to do.
    """
    try:
        data = _File.model_validate(tomllib.loads(content.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSettings(f"{where} is not TOML: {error}") from None
    except ValidationError as error:
        raise BadSettings(f"{where}: {problems_of(error)}") from None
    return PromptSet(
        name=name,
        description=data.description,
        correct=data.critique.verdicts.correct,
        incorrect=data.critique.verdicts.incorrect,
        _critique=data.critique.prompt(),
        _refine=data.refine.prompt(),
        _critique_starts_at=data.refine.critique_starts_at,
    )


class _PromptShape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Turn(_PromptShape):
    role: Literal["system", "user", "assistant"]
    content: str


class _Section(_PromptShape):
    messages: tuple[_Turn, ...] = Field(min_length=1)
    opener: str = ""

    def prompt(self) -> Prompt:
        return Prompt(tuple(Message(turn.role, turn.content.strip()) for turn in self.messages), self.opener)

    def require(self, *slots: str) -> None:
        """Raises ValueError: a slot is in none of the messages, or the last turn is not the user's."""
        text = "\n".join(turn.content for turn in self.messages)
        for slot in slots:
            if f"{{{slot}}}" not in text:
                raise ValueError(f"no message contains {{{slot}}}: write it where the text belongs")
        if self.messages[-1].role != "user":
            raise ValueError("messages must end with a user turn, which the model answers")


class _Verdicts(_PromptShape):
    correct: str
    incorrect: str

    @model_validator(mode="after")
    def _are_read(self) -> Self:
        for word, verdict in ((self.correct, Verdict.CORRECT), (self.incorrect, Verdict.INCORRECT)):
            if read_word(word) is not verdict:
                raise ValueError(f"{word!r} is not read as {verdict}: use {' or '.join(words_for(verdict))}")
        return self


class _CritiqueSection(_Section):
    verdicts: _Verdicts

    @model_validator(mode="after")
    def _shows_the_answer(self) -> Self:
        self.require("question", "response")
        return self


class _RefineSection(_Section):
    critique_starts_at: str = ""

    @model_validator(mode="after")
    def _shows_the_critique(self) -> Self:
        self.require("question", "response", "critique")
        if all(turn.role != "assistant" for turn in self.messages):
            raise ValueError(
                "messages need an assistant turn with {response}: the turns before it are the prompt for a first answer"
            )
        return self


class _File(_PromptShape):
    description: str = Field(min_length=1)
    critique: _CritiqueSection
    refine: _RefineSection
