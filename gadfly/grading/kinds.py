"""The kinds of answers: how a reference states one, and when two of a kind are the same.

The kind of the reference (`Number`, `Choice`, `YesNo`, `Colon`, `Sequence`, `Symbolic`, `Date`, `Compound`, `Special`,
`Text`) decides what counts as an answer in a response, which `gadfly.grading.answers` reads. `compare` has three
outcomes: the same, another, and None where no rule can tell.

Numbers. Values are compared exactly (`0.5` is `1/2`). A rounded value (`0.33` for `1/3`) is neither the same nor
beyond doubt another. A number reference requires a literal: integer, decimal, fraction, mixed number, power of ten,
number word. An unevaluated expression (`2+3`, `2^3`) is not an answer; otherwise a response could score by repeating
the question. Commas group thousands (`1,200`) and nothing else (`1,2` is two numbers).
Units. A unit that is missing on either side makes no difference; two different units do. Nothing is converted: no rule
can tell whether `60 minutes` answers `1 hour`. Scale words are part of the number (`2 million`, `3 dozen`); a bare
`k`, `M` or `B` cannot be distinguished from a unit and is not read. Any other letter is a variable (`18 x`); inside a
formula so are `m`, `s`, `h` and `g`, unless the reference has a unit. `%` is a unit that may be missing only above 1
(or at 0): `50%` is `50`, but `0.5` is neither `50%` nor `0.5%`, since it could mean either.
Order. Tuples are compared in order; sets in braces, and numbers joined by `and` or `or`, without. A bare list in
another order is in doubt. An inequality and its interval are the same, `(1, 5)` as a reference is a point.
Texts. Equal words are the same answer. Others differ beyond doubt only where both are single names, weekdays or months.
Formulas of one or two letters (`-x`, `n!`) keep their case, signs and marks; other texts are compared without them.

Plain rules run in bounded time: texts are capped and patterns cannot backtrack far. Symbolic comparison does not, so
text from outside is read in the child process of `gadfly.grading.process`.
"""

import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

from gadfly.errors import UnreadableReference
from gadfly.grading.dates import (
    MONTHS,
    WEEKDAYS,
    Compound,
    Date,
    same_compound,
    same_date,
    whole_compound,
    whole_date,
)
from gadfly.grading.latex import is_balanced, is_plain_relation
from gadfly.grading.numbers import (
    MEASURE_WORDS,
    Number,
    Unread,
    compare_numbers,
    same_number,
    same_unit,
    singular,
    whole_number,
)
from gadfly.grading.statements import (
    FUNCTIONS,
    TRIGGER,
    YES_NO,
    box_end,
    first_sentence,
    may_follow,
    may_precede,
    sentence_after,
)
from gadfly.grading.text import SIZES, WRAPPED, math_segments, tidy, unlatex

MAX_REFERENCE_CHARS = 20_000
_MAX_TEXT_CHARS = 200  # a longer text without a stated answer is an essay, which no rule can compare
_MAX_MATH_CHARS = 500
_SYMBOLIC_MODULE = "gadfly.grading.symbolic"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the options A-E. A response may name any letter to J; one past E is merely wrong."""

    letter: str


@dataclass(frozen=True, slots=True)
class YesNo:
    """Yes and true are one answer, no and false the other."""

    truth: bool


@dataclass(frozen=True, slots=True)
class Colon:
    """A clock time (`3:30`, `3 pm`) or a ratio (`3:2`), part by part; `half` is am, pm or empty."""

    parts: tuple[int, ...]
    half: str = ""
    padded: bool = False  # 03:30 is 24-hour notation, which needs neither am nor pm


@dataclass(frozen=True, slots=True)
class Sequence:
    """Plain numbers, in brackets or not (`brackets` is then empty), with the variables they assign.

    Numbers joined by `and` or `or` alone have no order.
    """

    brackets: str
    items: tuple[Number, ...]
    names: tuple[str, ...] = ()
    is_ordered: bool = True


@dataclass(frozen=True, slots=True)
class Symbolic:
    """LaTeX for math-verify. `unit` is the unit after the expression."""

    latex: str
    unit: tuple[str, ...] = ()


class Special(StrEnum):
    """An answer in words that also has signs."""

    NONE = "no solution"
    MANY = "infinitely many"
    REALS = "all real numbers"


@dataclass(frozen=True, slots=True)
class Text:
    """Words, folded: case, outer punctuation and space do not matter. In formulas (`-x`, `n!`) they do.

    `is_name`: it was written with a capital, as names are.
    """

    folded: str
    is_name: bool = field(default=False, compare=False)


Answer = Number | Choice | YesNo | Colon | Sequence | Symbolic | Date | Compound | Special | Text


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference as read: `text` is the part that states the answer, `answer` its meaning."""

    text: str
    answer: Answer
    content: Answer | None = None  # the text of the chosen option: `(C) 12`


# --- times, sequences, text -------------------------------------------------------------------------------------------

_COLON = re.compile(
    r"""(?<![0-9:.,/-])(?P<parts>[0-9]{1,4}(?:\s?:\s?[0-9]{1,4}){1,3}|[0-9]{1,2}(?=\s?[ap]\.?m\b))
    (?![0-9:^√\\*/]|\.[0-9]|(?![ap]\.?m\b)[A-Za-z])(?:\s?(?P<half>[ap])\.?m\b\.?)?""",
    re.VERBOSE | re.IGNORECASE,
)


def _colon(match: re.Match[str]) -> Colon:
    parts = [part.strip() for part in match["parts"].split(":")]
    half = f"{match['half'].lower()}m" if match["half"] else ""
    numbers = tuple(map(int, parts)) if len(parts) > 1 else (int(parts[0]), 0)
    return Colon(numbers, half, padded=len(parts[0]) == 2 and parts[0][0] == "0")


def colons_in(text: str) -> list[Colon]:
    """Every clock time or ratio in `text`, in order."""
    return [_colon(match) for match in _COLON.finditer(text)]


def _compare_colons(reference: Colon, answer: Colon) -> bool | None:
    if _same_colon(reference, answer):
        return True
    if reference.parts == answer.parts and "" in (reference.half, answer.half):
        return None  # the half of the day is not stated
    if not (reference.half or answer.half) and len(reference.parts) == len(answer.parts) == 2:
        (a, b), (c, d) = reference.parts, answer.parts
        if a * d == b * c:
            return None  # a ratio that is not reduced
    return False


def _same_colon(reference: Colon, answer: Colon) -> bool:
    def of_day(time: Colon) -> tuple[int, ...]:
        return (time.parts[0] % 12 + 12 * (time.half == "pm"), *time.parts[1:])

    if reference.half and answer.half:
        return of_day(reference) == of_day(answer)
    if reference.half:  # without am or pm a time is in 24-hour notation, or ambiguous
        is_24 = answer.padded or answer.parts[0] > 12 or answer.parts[0] == 0
        return is_24 and answer.parts == of_day(reference)
    if answer.half:
        return of_day(answer) == reference.parts or (not reference.padded and answer.parts == reference.parts)
    return reference.parts == answer.parts


_BRACKETED = re.compile(
    r"\s*(?P<open>\\\{|[(\[{]|\\langle)?(?P<items>.*?)(?P<close>\\\}|[)\]}]|\\rangle)?\s*\.?\s*$", re.DOTALL
)
_ITEM_SEPARATOR = re.compile(r",(?![0-9]{3}(?![0-9]))\s*|,\s+|;\s*|,?\s+and\s+")
_ALTERNATIVE = re.compile(r",?\s+or\s+")
_NAMED = re.compile(r"^[A-Za-z]\s?=\s?")


def read_sequence(text: str) -> Sequence | Unread:
    """The sequence that `text` is; MISSING for ellipses, unpaired brackets and items that are not plain numbers."""
    text = re.sub(r"^\s*\(\s?[A-Za-z](?:\s?,\s?[A-Za-z]){1,3}\s?\)\s?=\s?(?=[(\\$])", "", text)
    match = _BRACKETED.match(unlatex(text).replace("\\{", "{").replace("\\}", "}"))
    if not match or bool(match["open"]) != bool(match["close"]):
        return Unread.MISSING
    if re.search(r"\.{2}|…|dots", text):
        return Unread.MISSING
    alternatives = [piece.strip() for piece in _ALTERNATIVE.split(match["items"])]
    if len(alternatives) > 1 and not _NAMED.match(alternatives[0]):
        return Unread.MISSING  # 3 or 4: a hedge
    pieces = [piece.strip() for part in alternatives for piece in _ITEM_SEPARATOR.split(part)]
    names = tuple(piece[0] for piece in pieces if _NAMED.match(piece))
    if len(names) == 1 and _NAMED.match(pieces[0]) and len(pieces) > 1:
        names *= len(pieces)  # x = 2, 3
    numbers = [whole_number(_NAMED.sub("", piece)) for piece in pieces]
    if not 2 <= len(numbers) <= 100:
        return Unread.MISSING
    items = tuple(number for number in numbers if number is not None)
    if len(items) < len(numbers):
        return Unread.MISSING
    names = names if len(names) == len(items) else ()
    is_joined = not re.search(r"[,;]", re.sub(r",\s+(?:and|or)\b|[0-9],[0-9]{3}", "", match["items"])) or (
        len(pieces) == 2 and " and " in match["items"]
    )
    is_ordered = bool(match["open"]) or not (is_joined or len(set(names)) == 1)
    return Sequence((match["open"] or "") + (match["close"] or ""), items, names, is_ordered)


def _compare_sequences(reference: Sequence, answer: Sequence) -> bool | None:
    reference, answer = _without_names(reference, answer), _without_names(answer, reference)
    if len(set(reference.names)) > 1 and len(set(answer.names)) > 1 and set(reference.names) != set(answer.names):
        return None
    if len(set(reference.names)) > 1 and len(set(answer.names)) > 1:
        if len(set(answer.names)) < len(answer.names):
            return None  # two values for one name
        own = dict(zip(answer.names, answer.items, strict=True))
        return _same_items(reference.items, tuple(own[name] for name in reference.names))
    if set(reference.names) and set(answer.names) and set(reference.names) != set(answer.names):
        return None
    is_same_set = _same_set(reference.items, answer.items)
    brackets = {reference.brackets, answer.brackets}
    if reference.brackets == "{}" or not reference.is_ordered:
        if not is_same_set:
            return False
        return True if brackets <= {"{}", ""} else None
    if reference.brackets == answer.brackets or (not reference.brackets and answer.brackets == "{}"):
        if _same_items(reference.items, answer.items):
            return True
        return None if is_same_set and not reference.brackets else False
    return None if is_same_set else False


def _without_names(sequence: Sequence, other: Sequence) -> Sequence:
    """A point for named coordinates in the order of their names, if the other one is a point.

    (3, 4) is x = 3, y = 4.
    """
    if other.brackets != "()" or other.names or sequence.brackets or len(set(sequence.names)) < 2:
        return sequence
    ordered = sorted(zip(sequence.names, sequence.items, strict=True), key=lambda pair: pair[0])
    names = [name for name, _ in ordered]
    if any(ord(right) - ord(left) != 1 for left, right in pairwise(names)):
        return sequence
    return Sequence("()", tuple(item for _, item in ordered))


def _same_items(reference: tuple[Number, ...], answer: tuple[Number, ...]) -> bool:
    if len(reference) != len(answer):
        return False
    return all(same_number(left, right) for left, right in zip(reference, answer, strict=True))


def _same_set(reference: tuple[Number, ...], answer: tuple[Number, ...]) -> bool:
    return all(any(same_number(left, right) for right in answer) for left in reference) and all(
        any(same_number(left, right) for left in reference) for right in answer
    )


def _fold(text: str) -> str:
    text = WRAPPED.sub(r"\1", text).casefold()
    text = re.sub(r"\s+", " ", text).strip(" \t\n.,;:!?\"'()[]{}$*_`")
    if not re.search(r"[0-9]", text):  # in numbers and dates punctuation matters
        text = re.sub(r"[.,;:!?\"'()\[\]]", "", re.sub(r"(?<=\w)\s*-\s*(?=\w)", " ", text))
    return re.sub(r"\s+", " ", text).strip().removeprefix("the ")


def _is_formula(text: str) -> bool:
    """Whether a text has neither digits nor words: in `-xy`, `n!` and `f'(x)` case and signs matter."""
    return bool(re.search(r"[A-Za-z]", text)) and not re.search(r"[0-9]|[A-Za-z]{3}", text)


_CLOSED = (WEEKDAYS, MONTHS)


def _compare_texts(reference: Text, answer: Text) -> bool | None:
    """Whether two texts are the same. Others differ beyond doubt only where both are names, or of one short list."""
    if reference == answer:
        return True
    if any(reference.folded in words and answer.folded in words for words in _CLOSED):
        return False
    both = (reference.folded, answer.folded)
    if not (reference.is_name and answer.is_name) or any(not re.fullmatch(r"[^\W\d_]{3,}", text) for text in both):
        return None
    return None if SequenceMatcher(None, *both).ratio() > 0.6 else False


def read_text(text: str) -> Text | Unread:
    """The text for comparison."""
    folded = comparable_text(text)
    bare = WRAPPED.sub(r"\1", text).strip(" \t\n$*_`\"'")
    return Text(folded, is_name=bare[:1].isupper()) if folded else Unread.MISSING


_SPECIALS: tuple[tuple[Special, re.Pattern[str]], ...] = (
    (
        Special.NONE,
        re.compile(r"(?:there (?:is|are) |it has |has |have )?(?:no|zero) (?:real )?(?:solutions?"
                   r"|roots?)(?: exists?)?|(?:the )?empty set|∅|\{\s?\}"
                   r"|\\(?:emptyset|varnothing)", re.IGNORECASE),
    ),
    (
        Special.MANY,
        re.compile(r"(?:there (?:is|are) |it has |has |have )?(?:infinitely many|infinite"
                   r"|an infinite number(?: of)?)(?: solutions?)?", re.IGNORECASE),
    ),
    (
        Special.REALS,
        re.compile(r"(?:(?:the set of )?all (?:the )?(?:real numbers?|reals)(?: [a-z])?|every real number"
                   r"|(?:all )?real numbers"
                   r"|(?:[a-z]\s?\\in\s?)?\\mathbb\{?\s?R\}?|(?:[a-z]\s?\\in\s?)?\(-\\infty\s?,\s?\+?\\infty\)"
                   r"|ℝ)", re.IGNORECASE),
    ),
)  # fmt: skip


def whole_special(text: str) -> Special | None:
    """The answer in words that is the whole of `text`, in words or in signs."""
    plain = (
        re.sub(r"\s+", " ", SIZES.sub("", WRAPPED.sub(r" \1 ", text.replace("∞", "\\infty")))).strip(" .$*_`!").strip()
    )
    plain = plain.replace("\\{", "{").replace("\\}", "}").replace("\\ ", " ")
    return next((special for special, form in _SPECIALS if form.fullmatch(plain)), None)


_STATED_SPECIAL = re.compile(
    r"(?:^|\b(?:is|are|has|have|be|so|therefore|thus|hence|that|,)\s)\s*"
    r"(?:(?P<none>(?:no|zero) (?:real )?(?:solutions?|roots?)(?: exists?)?)"
    r"|(?P<many>(?:infinitely many|an infinite number of)(?: solutions?)?)|(?P<reals>all real numbers))\W*$",
    re.IGNORECASE,
)


def special_at_end(text: str) -> Special | None:
    """The answer in words with which a sentence ends."""
    match = _STATED_SPECIAL.search(text[-200:])
    if match is None:
        return None
    return next(
        kind
        for name, kind in (
            ("none", Special.NONE), ("many", Special.MANY), ("reals", Special.REALS)
        )
        if match[name]
    )  # fmt: skip


def comparable_text(text: str) -> str:
    """The form of `text` for comparison: folded, or unchanged if it is a formula."""
    text = re.sub(r"_\{([A-Za-z0-9]{1,9})\}", r"_\1", text)
    text = re.sub(rf"\\({FUNCTIONS})(?![A-Za-z])", r"\1", text)
    formula = re.sub(r"\s+", " ", WRAPPED.sub(r"\1", text)).strip(' \t\n.$*_`"')
    return formula if _is_formula(formula) else _fold(text)


# --- symbolic ------------------------------------------------------------------------------------------------------

_TO_LATEX: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<!\\)\bsqrt\s?\(([^()]{1,200})\)|√\s?\(([^()]{1,200})\)"), lambda m: rf"\sqrt{{{m[1] or m[2]}}}"),
    (re.compile(r"√\s?([0-9]+|[a-zA-Z])"), r"\\sqrt{\1}"),
    (re.compile(r"\^\s?\(([^()]{1,200})\)"), r"^{\1}"),
    (re.compile(r"\^\s?(-?[0-9]{2,})"), r"^{\1}"),
    (re.compile(rf"(?<![\\A-Za-z])({FUNCTIONS})(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])|∞"), r"\\infty "),
    (re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])|π"), r"\\pi "),
    (re.compile(r"\*|·|⋅"), r"\\cdot "),
    (re.compile(r"×"), r"\\times "),
    (re.compile(r"≤|<="), r"\\leq "),
    (re.compile(r"≥|>="), r"\\geq "),
    (re.compile(r"≠"), r"\\neq "),
    (re.compile(r"∪"), r"\\cup "),
    (re.compile(r"∅"), r"\\emptyset "),
    (re.compile(r"²"), "^2"),
    (re.compile(r"³"), "^3"),
]
_TRAILING_UNIT = re.compile(
    r"""(?:\s|\\[,;:\ ]){0,9}\\(?:text|mathrm|mbox|textrm)\s?\{[\s~]?([A-Za-z. ]{1,40})\}(?:\s?\^\s?\{?([23])\}?)?\s*$
    | (?<=[0-9})A-Za-zπ])\s+((?:square\s|cubic\s|sq\s|cu\s)?[A-Za-z]{2,12})(?:\^\{?([23])\}?|([²³]))?\s*$""",
    re.VERBOSE,
)
_UNIT_WORDS = MEASURE_WORDS.keys() | {"unit", "units", "square", "sq", "cubic", "cu", "per"}
_NOT_MATH = re.compile(r"[%$\"#;?@]|\\text")
_PROSE = re.compile(r"[A-Za-z]{3,}|\b(?:is|or|of|if|in|to|at|by|so|no|we|he|it|an|as|be|do|on|up|my)\b")
_SIGNS_OF_MATH = re.compile(
    rf"""^[\[(].{{1,80}},.{{1,80}}[\])]$
    | \\(?!text|textbf|mathrm|mbox)[A-Za-z]+ | \^ | [√π∞²³≤≥≠∪] | [0-9]! | [0-9][A-Za-z](?![A-Za-z])
    | (?<![A-Za-z])(?:{FUNCTIONS})\s?\( | ^\s*[A-Za-z]\s?[=<>] | ^[^=<>!]{{1,60}}=(?!=)
    | (?<![A-Za-z])[a-z]\s?[-+*/=<>]\s?[0-9a-z(] | [0-9)]\s?[-+*/=<>]\s?[a-z](?![A-Za-z])""",
    re.VERBOSE,
)


def read_expression(text: str) -> Symbolic | Unread:
    """The LaTeX of one mathematical expression; MISSING for prose, of which the parser would silently read a part."""
    text = SIZES.sub("", text.strip().strip("$").strip()).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = text.removesuffix(".").removesuffix("\\").strip()
    text = re.sub(r"\\mathrm\s?\{\s?([eid])\s?\}", r"\1", text)
    text = re.sub(r"\^\s?\{\s?([^{}]{1,40})\s?\}", lambda m: "^{" + m[1].strip() + "}", text)
    if is_plain_relation(text):
        text = re.sub(r"\\(?:text|mathrm)\s?\{\s?or\s?\}|\bor\b", r"\\cup ", text)
    unit: tuple[str, ...] = ()
    trailing = _TRAILING_UNIT.search(text)
    if trailing:
        word = (trailing[1] or trailing[3]).strip()
        power = trailing[2] or trailing[4] or {"²": "2", "³": "3"}.get(trailing[5] or "")
        if all(part.lower() in _UNIT_WORDS for part in word.split()):
            unit = (*({"2": ("square",), "3": ("cubic",)}.get(power or "", ())), *map(singular, word.split()))
            text = text[: trailing.start()].strip()
    for pattern, replacement in _TO_LATEX:
        text = pattern.sub(replacement, text)
    letters = re.sub(r"\\(?:begin|end)\{[a-z]+\*?\}|\\[A-Za-z]+", " ", text)
    if not text or len(text) > _MAX_MATH_CHARS or _PROSE.search(letters) or _NOT_MATH.search(text):
        return Unread.MISSING
    return Symbolic(text, unit)


def read_opaque(text: str) -> Symbolic | Unread:
    """LaTeX that no rule evaluates, to be compared as it stands."""
    segments = math_segments(text)
    if len(segments) == 1 and segments[0][0] == 0:
        text = segments[0][2] + text[segments[0][1] :]
    text = text.strip().strip("$").strip().removesuffix(".").strip()
    if (
        "\\" not in text
        or len(text) > _MAX_MATH_CHARS
        or not is_balanced(text)
        or re.search(r"\\frac\{[^{}]*\}\{0+\}", text)
    ):
        return Unread.MISSING
    return Symbolic(text)


# --- comparison ------------------------------------------------------------------------------------------------------


def compare(reference: Answer, answer: Answer) -> bool | None:
    """Whether two answers are the same; None where no rule can tell. The reference determines the required kind."""
    match reference, answer:
        case Number(), Number():
            return compare_numbers(reference, answer)
        case Choice(), Choice():
            return reference.letter == answer.letter
        case YesNo(), YesNo():
            return reference == answer
        case Colon(), Colon():
            return _compare_colons(reference, answer)
        case Sequence(), Sequence():
            return _compare_sequences(reference, answer)
        case Symbolic(), Symbolic():
            if not same_unit(reference.unit, answer.unit):
                return False
            same: bool | None = load_sympy().compare(reference.latex, answer.latex)
            return same
        case Date(), Date():
            return same_date(reference, answer)
        case Compound(), Compound():
            return same_compound(reference, answer)
        case Special(), Special():
            return reference == answer
        case Text(), Text():
            return _compare_texts(reference, answer)
        case _:
            return None


def is_sympy_loaded() -> bool:
    """Whether symbolic references can be read without waiting for the import."""
    return _SYMBOLIC_MODULE in sys.modules


def load_sympy() -> Any:
    """`gadfly.grading.symbolic`, imported on first need: it takes seconds, and plain rules decide most answers."""
    return importlib.import_module(_SYMBOLIC_MODULE)


# --- references ------------------------------------------------------------------------------------------------------


def _option_content(stated: str, letter: str) -> Answer | None:
    """What an option says, if that is a number or the like: `12` of `(C) 12`."""
    match = re.match(rf"\s*\(?{letter}[).:]\s*(\S.*)$", stated)
    if match is None:
        return None
    try:
        content = classify_reference(match[1]).answer
    except UnreadableReference:
        return None
    return None if isinstance(content, Choice | Text | YesNo | Symbolic) else content


def _stated_reference(text: str) -> str:
    """The part of a reference that states the answer; the rest may be a worked solution."""
    if "####" in text:
        return text.rsplit("####", 1)[1].strip()
    boxes = [match for match in TRIGGER.finditer(text) if match["box"]]
    if boxes:
        end = box_end(text, boxes[-1].end())
        if not may_precede(text[: boxes[-1].start()]) or not may_follow(sentence_after(text, end + 1)):
            raise UnreadableReference(f"The reference boxes only part of its answer, {text[-60:]!r}; box all of it.")
        return text[boxes[-1].end() : end].strip()
    triggers = list(TRIGGER.finditer(text))
    if triggers:
        stated = first_sentence(text[triggers[-1].end() :]).strip()
        return stated.removesuffix(".").strip() if stated else text
    return text


_ABOUT = re.compile(r"^(?:[=≈~]|(?:about|approximately|approx\.|roughly)(?=\s))\s*", re.IGNORECASE)


def _no_expression(text: str) -> UnreadableReference:
    return UnreadableReference(f"The reference {text[:60]!r} is not a readable expression; send plain LaTeX.")


def _essay(text: str) -> UnreadableReference:
    return UnreadableReference(
        f"The reference has {len(text)} characters and no recognisable answer; send the answer alone, "
        "or end it with '#### ANSWER'."
    )


# What tables and programs write where there is no value. Not "none": that can be an answer.
_PLACEHOLDERS = frozenset({"nan", "n/a", "#n/a", "<na>", "null", "undefined", "tbd", "todo", "unknown", "nat"})


@lru_cache(maxsize=1024)
def classify_reference(text: str) -> Reference:
    """A reference classified by its form, without sympy and so in bounded time: a Symbolic one may fail to parse.

    Raises:
        UnreadableReference: as `read_reference`, except for LaTeX that cannot be parsed.
    """
    if len(text) > MAX_REFERENCE_CHARS:
        raise UnreadableReference(
            f"The reference is longer than {MAX_REFERENCE_CHARS} characters; send the answer alone."
        )
    stated = _stated_reference(tidy(text).strip()).strip()
    if not stated:
        raise UnreadableReference("The reference is empty; send the answer, such as 18, 3/4, B or yes.")
    if len(stated) > _MAX_MATH_CHARS:
        raise _essay(stated)
    plain = unlatex(stated)
    word = plain.strip(" .!").casefold()
    if word in _PLACEHOLDERS:
        raise UnreadableReference(f"The reference {stated!r} is a placeholder; leave the reference out instead.")
    if word in YES_NO:
        return Reference(stated, YesNo(YES_NO[word]))
    if re.fullmatch(r"\(?[A-Ea-e]\)?|(?:option|choice)\s+\(?[A-E]\)?", plain.rstrip(". ")) or re.match(
        r"\(?[A-E]\)\s|\(?[A-E][.:]\s", plain
    ):
        letter = re.search(r"(?<![A-Za-z])[A-Ea-e](?![A-Za-z])", plain)
        assert letter is not None
        return Reference(stated, Choice(letter[0].upper()), _option_content(stated, letter[0]))
    clock = _COLON.fullmatch(plain.rstrip(". "))
    if clock:
        return Reference(stated, _colon(clock))
    number = whole_number(_ABOUT.sub("", re.sub(r"^\(([^()]*)\)$", r"\1", plain)))
    if number is not None:
        return Reference(stated, number)
    if re.fullmatch(r"[-+]?[$£€]?\s?[0-9.,]+\s?/\s?[0-9.,]+.{0,40}", plain) and re.search(
        r"/\s?0+(?:\.0*)?(?![0-9.])", plain
    ):
        raise UnreadableReference(f"The reference {stated[:60]!r} divides by zero; send a number.")
    if re.fullmatch(r"-?[$£€]-?[0-9.,]+\s?[KkMmBb]n?\.?", plain):
        raise UnreadableReference(f"The reference {stated[:60]!r} may mean several numbers; write it out.")
    special = whole_special(stated)
    if special is not None:
        return Reference(stated, special)
    date = whole_date(plain)
    if date is not None:
        return Reference(stated, date)
    compound = whole_compound(plain)
    if compound is not None:
        return Reference(stated, compound)
    ratio = _ratio(plain)
    if ratio is not None:
        return Reference(stated, ratio)
    sequence = read_sequence(stated)
    if isinstance(sequence, Sequence):
        return Reference(stated, sequence)
    if _SIGNS_OF_MATH.search(stated) and not re.fullmatch(r"[-0-9/:. ]+", plain):
        symbolic = _with_unit_behind(stated)
        if isinstance(symbolic, Symbolic):
            return Reference(stated, symbolic)
        if "\\" in (stated if "=" in stated else WRAPPED.sub("", stated)):
            opaque = read_opaque(stated)
            if isinstance(opaque, Symbolic):
                return Reference(stated, opaque)
            raise _no_expression(stated)
    words = read_text(stated)
    if isinstance(words, Unread):
        raise UnreadableReference(f"The reference {stated[:60]!r} contains no letter or digit; send the answer.")
    if len(stated) > _MAX_TEXT_CHARS:
        raise _essay(stated)
    return Reference(stated, words)


def _with_unit_behind(stated: str) -> Symbolic | Unread:
    """The expression of a reference, with a unit behind its formula: `$y = 2t$ ft`."""
    segments = math_segments(stated)
    if len(segments) == 1 and segments[0][0] == 0:
        unit = stated[segments[0][1] :].strip(" .")
        if unit.lower() in MEASURE_WORDS:
            return read_expression(f"{segments[0][2]}\\text{{ {unit}}}")
    return read_expression(stated)


_FRACTIONS_RATIO = re.compile(r"\s*([0-9]{1,6})(?:/([0-9]{1,6}))?\s*:\s*([0-9]{1,6})(?:/([0-9]{1,6}))?\s*")


def _ratio(plain: str) -> Colon | None:
    """A ratio of fractions, in the smallest whole numbers."""
    match = _FRACTIONS_RATIO.fullmatch(plain.strip("() "))
    if match is None or "/" not in plain:
        return None
    unders = [int(match[2] or 1), int(match[4] or 1)]
    if 0 in unders or not int(match[3]):
        return None
    value = Fraction(int(match[1]), unders[0]) / Fraction(int(match[3]), unders[1])
    return Colon((value.numerator, value.denominator))


def read_reference(text: str) -> Reference:
    r"""The answer that a reference states: `18`, `$1,200`, `3/4`, `(C)`, `yes`, `Paris`, `\frac{\pi}{2}`, or a worked
    solution that ends in `#### 18` or `\boxed{18}`.

    Loads sympy when the reference needs it, and may then take arbitrarily long: text from outside must go through
    `Grader`.

    Raises:
        UnreadableReference: empty, a placeholder (`n/a`), an essay, not a number (1/0), or LaTeX that cannot be parsed.
    """
    reference = classify_reference(text)
    if isinstance(reference.answer, Symbolic) and not load_sympy().is_readable(reference.answer.latex):
        raise _no_expression(reference.text)
    return reference


def stated_answer(text: str) -> str | None:
    """The answer that a worked solution states in a form that is an answer's; None for prose without one.

    Runs in bounded time. What it returns may still be LaTeX that cannot be parsed.
    """
    try:
        reference = classify_reference(text)
    except UnreadableReference:
        return None
    is_prose = isinstance(reference.answer, Text) and reference.text == tidy(text).strip()
    return None if is_prose else reference.text


def needs_sympy(reference: str) -> bool:
    """Whether reading `reference` loads sympy, which takes seconds once per process."""
    try:
        return isinstance(classify_reference(reference).answer, Symbolic)
    except UnreadableReference:
        return False
