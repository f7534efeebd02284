"""The kinds of answers: how a reference states one, and when two of a kind are the same.

The kind of the reference (`Number`, `Choice`, `YesNo`, `Colon`, `Sequence`, `Symbolic`, `Text`) decides what counts as
an answer in a response, which `gadfly.grading.answers` reads.

Numbers. Values are compared exactly (`0.5` is `1/2`; `0.33` is not `1/3`). A number reference requires a literal:
integer, decimal, fraction, mixed number, power of ten, number word. An unevaluated expression (`2+3`, `2^3`) is not an
answer; otherwise a response could score by repeating the question. Commas group thousands (`1,200`) and nothing else
(`1,2` is two numbers).
Units. A unit that is missing on either side makes no difference; two different units do. Nothing is converted, so
`60 minutes` is not `1 hour`. Scale words are part of the number (`2 million`, `3 dozen`); a bare `k`, `M` or `B` cannot
be distinguished from a unit and is not read. Any other letter is a variable (`18 x`); inside a formula so are `m`, `s`,
`h` and `g`, unless the reference has a unit. `%` is a unit that may be missing only above 1 (or at 0): `50%` is `50`,
but `0.5` is neither `50%` nor `0.5%`, since it could mean either.
Order. Lists and tuples are compared in order, sets in braces without order; brackets must agree.
Formulas of one or two letters (`-x`, `n!`) keep their case, signs and marks; other texts are compared without them.

Plain rules run in bounded time: texts are capped and patterns cannot backtrack far. Symbolic comparison does not, so
text from outside is read in the child process of `gadfly.grading.process`.
"""

import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gadfly.errors import UnreadableReference
from gadfly.grading.numbers import MEASURE_WORDS, Number, Unread, same_number, same_unit, singular, whole_number
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
from gadfly.grading.text import SIZES, WRAPPED, tidy, unlatex

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
    """Plain numbers, in brackets or only comma-separated (`brackets` is then empty), with the variables they assign."""

    brackets: str
    items: tuple[Number, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Symbolic:
    """LaTeX for math-verify. `unit` is the unit after the expression."""

    latex: str
    unit: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """Words, folded: case, outer punctuation and space do not matter. In formulas (`-x`, `n!`) they do."""

    folded: str


Answer = Number | Choice | YesNo | Colon | Sequence | Symbolic | Text


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference as read: `text` is the part that states the answer, `answer` its meaning."""

    text: str
    answer: Answer


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


def _same_colon(reference: Colon, answer: Colon) -> bool:
    def of_day(time: Colon) -> tuple[int, ...]:
        return (time.parts[0] % 12 + 12 * (time.half == "pm"), *time.parts[1:])

    if reference.half and answer.half:
        return of_day(reference) == of_day(answer)
    if reference.half:  # without am or pm a time is in 24-hour notation, or ambiguous
        return (answer.padded or answer.parts[0] > 12) and answer.parts == of_day(reference)
    if answer.half:
        return of_day(answer) == reference.parts or (not reference.padded and answer.parts == reference.parts)
    return reference.parts == answer.parts


_BRACKETED = re.compile(
    r"\s*(?P<open>\\\{|[(\[{]|\\langle)?(?P<items>.*?)(?P<close>\\\}|[)\]}]|\\rangle)?\s*\.?\s*$", re.DOTALL
)
_ITEM_SEPARATOR = re.compile(r",(?![0-9]{3}(?![0-9]))\s*|,\s+|;\s*|,?\s+and\s+")
_NAMED = re.compile(r"^[A-Za-z]\s?=\s?")


def read_sequence(text: str) -> Sequence | Unread:
    """The sequence that `text` is; MISSING for ellipses, unpaired brackets and items that are not plain numbers."""
    match = _BRACKETED.match(unlatex(text).replace("\\{", "{").replace("\\}", "}"))
    if not match or bool(match["open"]) != bool(match["close"]):
        return Unread.MISSING
    if re.search(r"\.{2}|…|dots", text):
        return Unread.MISSING
    pieces = [piece.strip() for piece in _ITEM_SEPARATOR.split(match["items"])]
    names = tuple(piece[0] for piece in pieces if _NAMED.match(piece))
    numbers = [whole_number(_NAMED.sub("", piece)) for piece in pieces]
    if not 2 <= len(numbers) <= 100:
        return Unread.MISSING
    items = tuple(number for number in numbers if number is not None)
    if len(items) < len(numbers):
        return Unread.MISSING
    return Sequence((match["open"] or "") + (match["close"] or ""), items, names if len(names) == len(items) else ())


def _same_sequence(reference: Sequence, answer: Sequence) -> bool:
    if reference.brackets != answer.brackets:
        return False
    if reference.names and answer.names and reference.names != answer.names:
        return False
    if reference.brackets == "{}":
        return all(any(same_number(left, right) for right in answer.items) for left in reference.items) and all(
            any(same_number(left, right) for left in reference.items) for right in answer.items
        )
    if len(reference.items) != len(answer.items):
        return False
    return all(same_number(left, right) for left, right in zip(reference.items, answer.items, strict=True))


def _fold(text: str) -> str:
    text = WRAPPED.sub(r"\1", text).casefold()
    text = re.sub(r"\s+", " ", text).strip(" \t\n.,;:!?\"'()[]{}$*_`")
    if not re.search(r"[0-9]", text):  # in numbers and dates punctuation matters
        text = re.sub(r"[.,;:!?\"'()\[\]]", "", re.sub(r"(?<=\w)\s*-\s*(?=\w)", " ", text))
    return re.sub(r"\s+", " ", text).strip().removeprefix("the ")


def _is_formula(text: str) -> bool:
    """Whether a text has neither digits nor words: in `-xy`, `n!` and `f'(x)` case and signs matter."""
    return bool(re.search(r"[A-Za-z]", text)) and not re.search(r"[0-9]|[A-Za-z]{3}", text)


def comparable_text(text: str) -> str:
    """The form of `text` for comparison: folded, or unchanged if it is a formula."""
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
    | (?<=[0-9})A-Za-z])\s+([A-Za-z]{2,12})(?:\^\{?([23])\}?)?\s*$""",
    re.VERBOSE,
)
_UNIT_WORDS = MEASURE_WORDS.keys() | {"unit", "units", "square", "sq", "cubic", "cu", "per"}
_NOT_MATH = re.compile(r"[%$\"#;?@]|\\text")
_PROSE = re.compile(r"[A-Za-z]{3,}|\b(?:is|or|of|if|in|to|at|by|so|no|we|he|it|an|as|be|do|on|up|my)\b")
_SIGNS_OF_MATH = re.compile(
    rf"""^[\[(].{{1,80}},.{{1,80}}[\])]$
    | \\(?!text|textbf|mathrm|mbox)[A-Za-z]+ | \^ | [√π∞²³≤≥≠∪] | [0-9]! | [0-9][A-Za-z](?![A-Za-z])
    | (?<![A-Za-z])(?:{FUNCTIONS})\s?\( | ^\s*[A-Za-z]\s?[=<>]
    | (?<![A-Za-z])[a-z]\s?[-+*/=<>]\s?[0-9a-z(] | [0-9)]\s?[-+*/=<>]\s?[a-z](?![A-Za-z])""",
    re.VERBOSE,
)


def read_expression(text: str) -> Symbolic | Unread:
    """The LaTeX of one mathematical expression; MISSING for prose, of which the parser would silently read a part."""
    text = SIZES.sub("", text.strip().strip("$").strip()).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = text.removesuffix(".").removesuffix("\\").strip()
    unit: tuple[str, ...] = ()
    trailing = _TRAILING_UNIT.search(text)
    if trailing:
        word, power = (trailing[1] or trailing[3]).strip(), trailing[2] or trailing[4]
        if all(part.lower() in _UNIT_WORDS for part in word.split()):
            unit = (*({"2": ("square",), "3": ("cubic",)}.get(power or "", ())), *map(singular, word.split()))
            text = text[: trailing.start()].strip()
    for pattern, replacement in _TO_LATEX:
        text = pattern.sub(replacement, text)
    letters = re.sub(r"\\(?:begin|end)\{[a-z]+\*?\}|\\[A-Za-z]+", " ", text)
    if not text or len(text) > _MAX_MATH_CHARS or _PROSE.search(letters) or _NOT_MATH.search(text):
        return Unread.MISSING
    return Symbolic(text, unit)


# --- comparison ------------------------------------------------------------------------------------------------------


def is_same(reference: Answer, answer: Answer) -> bool:
    """Whether two answers are the same. Not symmetric: the reference determines the required kind."""
    match reference, answer:
        case Number(), Number():
            return same_number(reference, answer)
        case Colon(), Colon():
            return _same_colon(reference, answer)
        case Sequence(), Sequence():
            return _same_sequence(reference, answer)
        case Symbolic(), Symbolic():
            same = same_unit(reference.unit, answer.unit)
            return same and bool(load_sympy().is_same(reference.latex, answer.latex))
        case _:
            return reference == answer


def is_sympy_loaded() -> bool:
    """Whether symbolic references can be read without waiting for the import."""
    return _SYMBOLIC_MODULE in sys.modules


def load_sympy() -> Any:
    """`gadfly.grading.symbolic`, imported on first need: it takes seconds, and plain rules decide most answers."""
    return importlib.import_module(_SYMBOLIC_MODULE)


# --- references ------------------------------------------------------------------------------------------------------


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
        return Reference(stated, Choice(letter[0].upper()))
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
    sequence = read_sequence(stated)
    if isinstance(sequence, Sequence):
        return Reference(stated, sequence)
    if _SIGNS_OF_MATH.search(stated) and not re.fullmatch(r"[-0-9/:. ]+", plain):
        symbolic = read_expression(stated)
        if isinstance(symbolic, Symbolic):
            return Reference(stated, symbolic)
        if "\\" in WRAPPED.sub("", stated):
            raise _no_expression(stated)
    folded = comparable_text(stated)
    if not folded:
        raise UnreadableReference(f"The reference {stated[:60]!r} contains no letter or digit; send the answer.")
    if len(stated) > _MAX_TEXT_CHARS:
        raise _essay(stated)
    return Reference(stated, Text(folded))


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
