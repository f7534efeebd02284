"""Conversations with the actor in the form of OpenAI's chat completions, as its callers send them.

A `Prompt` is text that Gadfly composes. A `Chat` is the caller's own: its messages and options reach the model as they
are, except for control tokens in its texts.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gadfly.control_tokens import may_hold_control_tokens, neutralise
from gadfly.records import Usage

OnDelta = Callable[[int, dict[str, Any], dict[str, Any] | None], Awaitable[None]]
"""Called with (choice, delta, log-probabilities) for each piece of a streamed reply, as OpenAI's chunks hold them."""

_UNTOUCHED = frozenset({"role", "type", "id", "tool_call_id"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Chat:
    """A conversation and the options of its continuation. `options` have OpenAI's names; absent ones are not sent."""

    messages: tuple[dict[str, Any], ...]
    max_tokens: int
    n: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatReply:
    """One continuation: a message, and the log-probabilities of its tokens in OpenAI's form, if they were asked for."""

    message: dict[str, Any]
    finish_reason: str | None
    usage: Usage
    logprobs: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        return self.message.get("content") or ""


class Assembly:
    """Puts the deltas of one streamed reply together."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {"content": ""}
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: list[Any] | None = None
        self.finish_reason: str | None = None

    def add(self, delta: Mapping[str, Any], logprobs: Mapping[str, Any] | None) -> None:
        for name, value in delta.items():
            if name != "role" and isinstance(value, str):
                self._texts[name] = self._texts.get(name, "") + value
        for piece in delta.get("tool_calls") or ():
            call = self._calls.setdefault(piece["index"], {"type": "function", "function": {}})
            call |= {name: piece[name] for name in ("id", "type") if piece.get(name)}
            for name, value in (piece.get("function") or {}).items():
                call["function"][name] = call["function"].get(name, "") + (value or "")
        if logprobs is not None and logprobs.get("content"):
            self._logprobs = [*(self._logprobs or ()), *logprobs["content"]]

    def reply(self, usage: Usage) -> ChatReply:
        calls = [self._calls[index] for index in sorted(self._calls)]
        return ChatReply(
            message={"role": "assistant", **self._texts, **({"tool_calls": calls} if calls else {})},
            finish_reason=self.finish_reason,
            usage=usage,
            logprobs=None if self._logprobs is None else {"content": self._logprobs},
        )


def reply_of(choice: Mapping[str, Any], usage: Usage) -> ChatReply:
    """A choice of a chat completion as a reply; fields without a value are left out of its message."""
    message = {name: value for name, value in choice["message"].items() if value not in (None, [], {})}
    return ChatReply(
        message={"content": "", **message, "role": "assistant"},
        finish_reason=choice.get("finish_reason"),
        usage=usage,
        logprobs=choice.get("logprobs"),
    )


def is_piece(delta: Mapping[str, Any]) -> bool:
    """Whether a delta carries anything but the role."""
    return any(value for name, value in delta.items() if name != "role")


async def guard_messages(
    messages: Sequence[Mapping[str, Any]], read_reserved: Callable[[], Awaitable[frozenset[str] | None]]
) -> list[dict[str, Any]]:
    """The messages without control tokens in their texts, as `gadfly.control_tokens.guard` does for prompts."""
    if not any(map(may_hold_control_tokens, _texts(messages))):
        return [dict(message) for message in messages]
    reserved = await read_reserved()

    def guarded(value: Any) -> Any:
        match value:
            case str():
                return neutralise(value, reserved)
            case Mapping():
                return {name: item if name in _UNTOUCHED else guarded(item) for name, item in value.items()}
            case list() | tuple():
                return [guarded(item) for item in value]
        return value

    return [guarded(message) for message in messages]


def _texts(value: Any) -> list[str]:
    match value:
        case str():
            return [value]
        case Mapping():
            return [text for name, item in value.items() if name not in _UNTOUCHED for text in _texts(item)]
        case list() | tuple():
            return [text for item in value for text in _texts(item)]
    return []
