"""Control tokens in texts: a text by a caller or another model is never read as a turn of the conversation.

A tokenizer turns strings such as `<|im_end|>` into control tokens at any position, so a text could end its own turn and
begin another one as the system. `neutralise` inserts an invisible character into such a string: it then consists of
ordinary tokens, and the rest of the text is unchanged. Only prompts are changed, not stored texts.
"""

import re
from collections.abc import Awaitable, Callable, Collection, Iterable

from gadfly.prompts import Message, Prompt

JOINER = "\u2060"
"""WORD JOINER: it has no width, and tokenizers encode it as separate bytes."""

_LIKE_CONTROL = re.compile(
    r"<\|[^\s|]{1,80}\|>"  # ChatML, Llama 3, Phi, GLM
    r"|<｜[^\s｜]{1,80}｜>"  # DeepSeek
    r"|</?[A-Za-z][A-Za-z0-9_.:-]{0,79}>"  # sentencepiece, Gemma, and markers such as <tool_call>
    r"|\[/?[A-Z][A-Z0-9_]{2,79}\]"  # Mistral
)


def may_hold_control_tokens(text: str) -> bool:
    """Whether any part of a text has the form of a control token of some model."""
    # Every form begins with one of two characters, and most texts have neither.
    return ("<" in text or "[" in text) and _LIKE_CONTROL.search(text) is not None


def reserved_strings(added_tokens: Iterable[str]) -> frozenset[str]:
    """The added tokens of a tokenizer that have the form of a control token.

    Other added tokens are ordinary words of a model, or runs of spaces, and a text may hold them.
    """
    return frozenset(token for token in added_tokens if _LIKE_CONTROL.search(token.strip()))


async def guard(prompt: Prompt, read_reserved: Callable[[], Awaitable[frozenset[str] | None]]) -> Prompt:
    """The prompt without control tokens in its texts, so that no text can begin a turn.

    `read_reserved` gives the control tokens of the model that reads the prompt, or None where they are unknown. It is
    called only for a text that may hold one.
    """
    texts = [message.content for message in prompt.messages] + [prompt.opener]
    if not any(map(may_hold_control_tokens, texts)):
        return prompt
    reserved = await read_reserved()
    messages = tuple(Message(each.role, neutralise(each.content, reserved)) for each in prompt.messages)
    return Prompt(messages, neutralise(prompt.opener, reserved))


def neutralise(text: str, reserved: Collection[str] | None) -> str:
    """The text with every control token broken up; with `reserved` None, every string in the form of one."""

    def broken(match: re.Match[str]) -> str:
        candidate = match[0]
        if reserved is not None and not any(string in candidate or candidate in string for string in reserved):
            return candidate
        return candidate[0] + JOINER + candidate[1:]

    return _LIKE_CONTROL.sub(broken, text)
