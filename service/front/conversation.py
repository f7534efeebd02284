"""The question, the answer and their context in a conversation.

The critic reads a question and an answer. Where the last user turn stands alone, it is the question. Where other turns
surround it, the question is the last user turn with a transcript of those turns, because "And twice that?" is a
question only together with the earlier turns. This text is stored, trained on and measured as the question, so that
the critic learns from the same text that it judges; the conversation itself is stored beside it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gadfly.errors import BadInput

_NAMES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}

_HEADINGS_CHARS = 150  # room for the headings, and for a sentence about turns that are left out

Message = Mapping[str, Any]


class Context(StrEnum):
    """Which turns besides the last user turn belong to the question."""

    TURNS = "turns"  # user, assistant and tool turns
    ALL = "all"  # these, and system turns
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as the critic reads it, and for a critique the assistant turn to judge."""

    question: str
    response: str = ""


def read_question(messages: Sequence[Message], *, context: Context, max_chars: int) -> Asked:
    """The question that the next assistant turn will answer.

    Raises:
        BadInput: there is no user turn with text, or it is longer than `max_chars`.
    """
    return Asked(_question(messages, context=context, max_chars=max_chars))


def read_answer(messages: Sequence[Message], *, context: Context, max_chars: int) -> Asked:
    """The last assistant turn, and the question that it answers. Later turns are ignored.

    Raises:
        BadInput: there is no assistant turn with text, or no user turn before it; or as `read_question`.
    """
    at = _last(messages, "assistant")
    if at is None:
        raise BadInput("a critic judges the last assistant turn, and there is none with text", field="messages")
    return Asked(_question(messages[:at], context=context, max_chars=max_chars), text_of(messages[at]))


def text_of(message: Message) -> str:
    """The text of a message, whose content is a text, a list of text parts, or nothing."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return content or ""


def response_of(message: Message) -> str:
    """An answer as it is stored and judged: its text, then its tool calls, each on a line."""
    calls = _calls(message)
    return "\n".join(filter(None, [text_of(message).strip("\n"), *calls])) if calls else text_of(message)


def _question(messages: Sequence[Message], *, context: Context, max_chars: int) -> str:
    at = _last(messages, "user")
    if at is None:
        raise BadInput("the conversation needs a user turn with text", field="messages")
    question = text_of(messages[at])
    if len(question) > max_chars:
        raise BadInput(f"the last user turn must be at most {max_chars:,} characters", field="messages")
    if context is Context.NONE:
        return question
    room = max_chars - len(question) - _HEADINGS_CHARS
    since = _transcript(messages[at + 1 :], context=context, max_chars=room)
    before = _transcript(messages[:at], context=context, max_chars=room - len(since))
    if not before and not since:
        return question
    parts = [f"Conversation so far:\n\n{before}" if before else "", f"Question:\n\n{question}"]
    whole = "\n\n".join(filter(None, [*parts, f"Work on it so far:\n\n{since}" if since else ""]))
    return whole if len(whole) <= max_chars else question


def _transcript(messages: Sequence[Message], *, context: Context, max_chars: int) -> str:
    """The turns as text, the newest of them if not all fit in `max_chars`."""
    turns: list[str] = []
    for message in reversed(messages):
        if context is not Context.ALL and _NAMES[message["role"]] == "System":
            continue
        text = response_of(message)
        if not text.strip():
            continue
        turn = f"{_NAMES[message['role']]}: {text}"
        max_chars -= len(turn) + len("\n\n")
        if max_chars < 0:
            turns.append("(Earlier turns are left out.)")
            break
        turns.append(turn)
    return "\n\n".join(reversed(turns))


def _calls(message: Message) -> list[str]:
    functions = [call.get("function") or call.get("custom") or {} for call in message.get("tool_calls") or ()]
    return [
        f"Calls {function.get('name')} with {_compact(function.get('arguments', function.get('input')))}"
        for function in functions
    ]


def _compact(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _last(messages: Sequence[Message], role: str) -> int | None:
    places = [at for at, message in enumerate(messages) if message["role"] == role and text_of(message).strip()]
    return places[-1] if places else None
