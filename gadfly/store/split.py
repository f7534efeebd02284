"""The identity of a question, and its side of the training wall.

Duplicates must be on one side, or the held-out set measures memory; near-duplicates too (`gadfly/store/blocks.py`). So
questions that differ only in typography share one hash: Unicode form, case, white space, quotation marks and dashes,
invisible characters, outer quotation marks, closing punctuation. Nothing that may be part of a number is changed:
signs, decimal points, thousands separators, a factorial's exclamation mark, and superscripts (5² differs from 52) are
all kept.
"""

import hashlib
import unicodedata

from gadfly.records import Split
from gadfly.storable import storable_text
from gadfly.task_names import DEFAULT_TASK

_TYPOGRAPHY = str.maketrans(
    dict.fromkeys("‘’‚‛′`´", "'") | dict.fromkeys("“”„‟″«»", '"') | dict.fromkeys("‐‑‒–—―−", "-") | {"…": "..."}
)
_QUOTES = "\"'"
_CLOSING = " ?.,;:"


def normalise_question(question: str) -> str:
    """The form in which all spellings of one question are equal."""
    text = unicodedata.normalize("NFC", storable_text(question)).translate(_TYPOGRAPHY)
    text = "".join(map(_compatible, text))
    for _ in range(2):  # case folding can produce characters to normalise, and vice versa
        text = unicodedata.normalize("NFKC", text.casefold()).translate(_TYPOGRAPHY)
    text = " ".join(text.split())
    return _trimmed(text) or text


def question_hash(question: str, task: str = DEFAULT_TASK) -> bytes:
    """SHA-256 of the normalised question: 32 bytes, the question's identity within its task.

    One text asked under two tasks is two questions, with labels and sides of their own. The hash of `math` is that of
    the text alone, as it always was; of another task the name is hashed with it (migration 0020 does the same).
    """
    own = hashlib.sha256(normalise_question(question).encode()).digest()
    return own if task == DEFAULT_TASK else hashlib.sha256(b"task\0" + task.encode() + b"\0" + own).digest()


def split_of(hash_: bytes, heldout_share: float, *, secret: bytes) -> Split:
    """The side of a NEW question without near-duplicates. A stored one keeps its side, whatever the share is now.

    Only the deployment's secret, of at most 64 bytes, makes it predictable.
    """
    drawn = hashlib.blake2b(hash_, digest_size=8, key=secret).digest()
    return Split.HELDOUT if int.from_bytes(drawn) < heldout_share * 2**64 else Split.TRAIN


def _compatible(char: str) -> str:
    # NFKC alone would write 5² as 52 and 3½ as 31/2: other numbers.
    if char.isascii():
        return char
    if unicodedata.category(char) == "Cf":
        return ""
    match unicodedata.decomposition(char).partition(" ")[0]:
        case "<super>":
            return f"^{unicodedata.normalize('NFKC', char)}"
        case "<sub>":
            return f"_{unicodedata.normalize('NFKC', char)}"
        case "<fraction>" | "<circle>" | "<square>":
            return f" {unicodedata.normalize('NFKC', char)} "
    return char


def _trimmed(text: str) -> str:
    # By index: a new string for each of 25,000 pairs of quotes would block the process for seconds.
    start, end = 0, len(text)
    while True:
        before = start, end
        while end > start and text[end - 1] in _CLOSING:
            end -= 1
        toneless = end
        while toneless > start and text[toneless - 1] == "!":
            toneless -= 1
        if toneless - start >= 2 and text[toneless - 2 : toneless].isalpha():
            end = toneless  # after a word it is emphasis; after a digit, bracket or symbol a factorial
        if end - start > 1 and text[start] == text[end - 1] and text[start] in _QUOTES:
            start, end = start + 1, end - 1
            while start < end and text[start].isspace():
                start += 1
            while end > start and text[end - 1].isspace():
                end -= 1
        if (start, end) == before:
            return text[start:end]
