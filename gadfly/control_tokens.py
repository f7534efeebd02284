"""Control tokens in texts: what a caller or another model wrote is never read as a turn of the conversation.

A tokenizer turns strings such as `<|im_end|>` into control tokens wherever they stand, so a text could end its own turn
and begin another as the system. `neutralise` puts an invisible character into such a string: it then consists of
ordinary tokens, and the rest of the text stays as it is. Stored texts are not changed, only prompts.
"""

import re
from collections.abc import Collection, Iterable

JOINER = "\u2060"
"""WORD JOINER: it has no width, and tokenizers keep it as bytes of its own."""

_LIKE_CONTROL = re.compile(
    r"<\|[^\s|]{1,80}\|>"  # ChatML, Llama 3, Phi, GLM
    r"|<｜[^\s｜]{1,80}｜>"  # DeepSeek
    r"|</?[A-Za-z0-9_.:-]{1,80}>"  # sentencepiece, Gemma, and markers such as <tool_call>
    r"|\[/?[A-Z0-9_]{1,80}\]"  # Mistral
)


def may_hold_control_tokens(text: str) -> bool:
    """Whether any part of a text has the form of a control token of some model."""
    return _LIKE_CONTROL.search(text) is not None


def reserved_strings(added_tokens: Iterable[str]) -> frozenset[str]:
    """The added tokens of a tokenizer that have the form of a control token.

    Other added tokens are ordinary words of a model, or runs of spaces, and a text may hold them.
    """
    return frozenset(token for token in added_tokens if _LIKE_CONTROL.search(token.strip()))


def neutralise(text: str, reserved: Collection[str] | None) -> str:
    """The text with every control token taken apart; with `reserved` None, whatever has the form of one."""

    def broken(match: re.Match[str]) -> str:
        found = match[0]
        if reserved is not None and not any(string in found or found in string for string in reserved):
            return found
        return found[0] + JOINER + found[1:]

    return _LIKE_CONTROL.sub(broken, text)
