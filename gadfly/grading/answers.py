"""Which answer a response states: the last one of the reference's kind (`gadfly.grading.kinds`).

The rule above all others: **when in doubt, wrong**. A false right teaches the critic to praise mistakes; a false wrong
costs one sample.

Context. A box or a formula is an answer when it stands alone, next to nothing, an equals sign, punctuation, words or a
unit. A sign, factor, power or function outside it makes it part of a larger expression.
Hedging. Two answers (`3 or 4`), bounds (`at least 4`), negations and withdrawn answers are wrong whatever their
content. So is a number that a later conclusion contradicts (`18. However, 2 more come, so 20`), and an answer that is
denied, hypothetical or attributed to another (`if the answer is 18`, `the given answer is 18`).

Model text is never evaluated. The rules run in bounded time: texts are capped and patterns cannot backtrack far.
"""

import re

from gadfly.grading.kinds import (
    Answer,
    Choice,
    Colon,
    Reference,
    Sequence,
    Symbolic,
    Text,
    YesNo,
    colons_in,
    comparable_text,
    read_expression,
    read_sequence,
)
from gadfly.grading.numbers import (
    AMBIGUOUS_UNITS,
    DECIMAL,
    MEASURE_WORDS,
    Number,
    Unread,
    read_number,
    values_in,
    whole_number,
)
from gadfly.grading.statements import (
    CONCLUDES,
    WITHDRAWN,
    YES_NO,
    YES_NO_HEAD,
    Span,
    find_spans,
    first_sentence,
    may_follow,
    may_precede,
)
from gadfly.grading.text import math_segments, tail, tidy, unlatex

_MAX_CONCLUSIONS = 20


# --- choices, yes and no, times, text ------------------------------------------------------------------------------

# A letter that opens a statement, followed by nothing, punctuation or a reason. "A 20% discount" does not match.
_CHOICE_HEAD = re.compile(
    r"""[\s:"'*$\\]*+(?:(?i:is|be|the|it|it's|therefore|clearly|thus|so|hence|option|choice|letter|answer)\b[\s:,"']*+)*+
    (?:[(\[{]\s?(?P<bracketed>[A-Ja-j])\s?[)\]}]
    | (?P<letter>[A-J])(?=[).:,;!\]}"*]|'(?![a-z])|\s*$|\s[-(.]
        |\s(?:or|and|because|since|as|is|was|which|with)\b)
    | (?P<lower>[a-j])(?=[).]|\s*$))""",
    re.VERBOSE,
)
_CHOICE_INSIDE = re.compile(
    r"""[(\[]\s?([A-Ja-j])\s?[)\]]
    | \b(?:option|choice|letter|answer|is|be|choose|chose|select|pick|with)\s*:?\s+([A-J])
    (?=[).,;:!]|\s*$|\s+[^\sa-z])""",
    re.VERBOSE | re.IGNORECASE,
)
_CHOICE_CALLED_RIGHT = re.compile(
    r"""(?:^|\b(?:option|choice|letter|answer|so|thus|hence|therefore|only)\b,?\s+|\(\s?)([A-J])(?:\s?\))?,?\s+
    (?:is|must\ be|would\ be|seems)\ (?:(?:therefore|clearly|the|only)\ ){0,3}(?:correct|right|best|answer|true)\b""",
    re.VERBOSE | re.IGNORECASE,
)
_CHOICE_ALSO = re.compile(
    r"""[)\]}"'*]*\s*(?:[(,;/&+<>-]|\bor\b|\band\b|\bbut\b|\bmaybe\b|\bto\b|\\[a-z]+)*
    \s*(?:(?:or|and|but|maybe|possibly|perhaps|either|also|option|choice)\s)*+\(?(?!A\ [a-z])[A-J](?![A-Za-z'])
    | \s?(?:plus|minus)\b""",
    re.VERBOSE,
)
_NEGATED = re.compile(
    r"\b(?:not|never|neither|nor|cannot|either|unsure|unclear|wrong|incorrect|hardly|barely|scarcely|partly)\b|n't\b|\beliminate",
    re.IGNORECASE,
)


def _read_choice(text: str, rest: str, stated: bool) -> Choice | Unread:
    head = _CHOICE_HEAD.match(text)
    if head:
        letter = (head["bracketed"] or head["letter"] or head["lower"]).upper()
        reason = re.search(r"\b(?:because|since|as)\b", text[head.end() :])
        claim = text[head.end() : head.end() + reason.start()] if reason else text[head.end() :]
        following = chr(ord(letter) + 1)  # the next option of a list, from which none is chosen
        if (
            _CHOICE_ALSO.match(claim)
            or re.search(r".{0,40}?\bis (?:not|wrong|incorrect)\b", claim)
            or re.match(rf"[^\n]*\n\s*\(?{following}[).:]\s|[^\n]*[\s(]{following}\)\s", rest.lstrip())
        ):
            return Unread.HEDGED
        if stated or not re.match(r"[)\]}.:]?\s+(?:[a-z]+s|[a-z]+n't|was|can|could|would|must)\b", claim):
            return Choice(letter)
    called = {match[1].upper() for match in _CHOICE_CALLED_RIGHT.finditer(text)}
    letters = called or {(m[1] or m[2]).upper() for m in _CHOICE_INSIDE.finditer(text)}
    if not letters:
        return Unread.MISSING
    if (
        len(letters) > 1
        or _NEGATED.search(text)
        or re.search(rf"(?:\bor|\band|,|/)\s*\(?(?!{min(letters)})[A-J](?![A-Za-z'])", text)
        or not (stated or called or _CHOSEN.search(text))
    ):
        return Unread.HEDGED
    return Choice(letters.pop())


# Without a trigger a letter is an answer when the sentence chooses it.
_CHOSEN = re.compile(
    r"\b(?:choose|chose|select|pick|go with|(?:it|answer|this|that) (?:is|must be|would be))\b", re.IGNORECASE
)


_NOT_TRUE = re.compile(r"\bnot\s+true\b", re.IGNORECASE)
_YES_NO_WORD = re.compile(r"\b(yes|true|false|no(?=\s*(?:[.,;:!)\"']|$)))(?!\w)", re.IGNORECASE)


def _read_yes_no(text: str) -> YesNo | Unread:
    text = _NOT_TRUE.sub("false", text)
    words = {YES_NO[match[1].lower()] for match in _YES_NO_WORD.finditer(text)}
    head = YES_NO_HEAD.match(text)
    if head:
        truth = YES_NO[head[1].lower()]
        also = re.match(
            r"\s*(?:,|/|and|or|but)?\s*(?:also\s|maybe\s)?(yes|no|true|false)\b", text[head.end() :], re.IGNORECASE
        )
        if also and YES_NO[also[1].lower()] != truth:
            return Unread.HEDGED
        return YesNo(truth)
    if not words:
        return Unread.MISSING
    return Unread.HEDGED if len(words) > 1 or _NEGATED.search(text) else YesNo(words.pop())


_NOT_THEN = re.compile(
    r"n't\b|\b(?:not|never|before|after|until|between|past|or|either|next day|to(?= [0-9]{1,2}:))\b", re.IGNORECASE
)


def _read_colon(text: str) -> Colon | Unread:
    colons = colons_in(text)
    if not colons:
        return Unread.MISSING
    return Unread.HEDGED if len(set(colons)) > 1 or _NOT_THEN.search(text) else colons[0]


def _read_text(text: str, boxed: bool) -> Text | Unread:
    read = comparable_text(text if boxed else re.sub(r"^[\s:]*(?:is|be)\b(?!\s*$)", "", text))
    return Text(read) if read else Unread.MISSING


# --- symbolic ------------------------------------------------------------------------------------------------------

_NAMED_NUMBER = re.compile(rf"[A-Za-z]\s?=\s?-?{DECIMAL}")
_ANOTHER = re.compile(r"\s*(?:(?:or|and|maybe|perhaps)\b\s*|,\s*)+", re.IGNORECASE)
_ANOTHER_AFTER = re.compile(r"[\s.,]*(?:or\b|and\s+[$\\(0-9-])", re.IGNORECASE)


def _measure_after(after: str) -> str:
    """The unit of measure after a formula or a box, in the form that `read_expression` reads."""
    unit = re.match(r"\s*([A-Za-z]+)(?:\s?\^\s?\{?([23])\}?)?(\W*$)?", unlatex(after))
    if not unit or unit[1].lower() not in MEASURE_WORDS or (unit[1] in AMBIGUOUS_UNITS and unit[3] is None):
        return ""
    return f"\\text{{{unit[1]}}}" + (f"^{unit[2]}" if unit[2] else "")


def _read_symbolic(span: Span, reference: Symbolic) -> Symbolic | Unread:
    text = span.text
    segments = [] if span.boxed else math_segments(text)
    if segments:
        if len(segments) > 1 and (span.stated or _ANOTHER.fullmatch(text, segments[-2][1], segments[-1][0])):
            return Unread.HEDGED
        start, end, content = segments[-1]
        after = text[end:]
        if not may_precede(text[:start]) or not may_follow(after) or _ANOTHER_AFTER.match(after):
            return Unread.HEDGED
        text = content + _measure_after(after)
    elif span.boxed:
        text += _measure_after(span.after)
    else:
        text = re.sub(r"^[\s:]*(?:is|be|therefore|simply|equal to)?\s*(?=[^\s])", "", text)
    if re.search(r"\\(?:text\s?\{\s?)?(?:or|and)\b|\bor\b|\\text\{\s?(?:or|and)\s?\}", text):
        return Unread.HEDGED
    if "=" not in reference.latex and "=" in text:
        if re.search(r"[,;]|\\\\|\band\b", text[text.find("=") : text.rfind("=")]):
            return Unread.HEDGED  # a = 2, b = 3
        text = text[text.rfind("=") + 1 :]
    if _NAMED_NUMBER.fullmatch(reference.latex) and not whole_number(unlatex(text[text.rfind("=") + 1 :])):
        return Unread.MISSING  # as for a number without a name, an unevaluated expression is not an answer
    return read_expression(text)


# --- the rules together --------------------------------------------------------------------------------------------


def extract_answer(response: str, reference: Reference, *, is_cut: bool = False) -> Answer | Unread:
    """The last answer of the reference's kind that `response` states."""
    text = tidy(tail(response))
    spans = find_spans(text)
    if isinstance(spans, Unread):
        return spans
    answer: Answer | Unread = Unread.MISSING
    for span in spans:
        answer = _read(span, reference.answer)
        if answer is not Unread.MISSING:
            return answer
    if isinstance(reference.answer, YesNo) and not any(span.stated for span in spans[:1]):
        return _read_opening(text)
    return answer


def _read_opening(text: str) -> YesNo | Unread:
    """Yes or no as the first word of a response that does not repeat it."""
    head = re.match(r"\W{0,5}(yes|no|true|false)\b\s*(?:[.,:;!\n-]|$)", text, re.IGNORECASE)
    if not head:
        return Unread.MISSING
    truth = YES_NO[head[1].lower()]
    others = {YES_NO[match[1].lower()] for match in _YES_NO_WORD.finditer(text, head.end())}
    return Unread.HEDGED if others - {truth} or WITHDRAWN.search(text, head.end()) else YesNo(truth)


_TERM = re.compile(r"[0-9}]\s?(?:\\[,;: ]\s?)?[A-Za-z]\s*\.?\s*$")  # in a formula 3m is more likely a term than metres


def _is_contradicted(number: Number, rest: str) -> bool:
    """Whether the last conclusion with numbers in `rest` lacks this number."""
    for match in reversed(list(CONCLUDES.finditer(rest))[-_MAX_CONCLUSIONS:]):
        values = values_in(unlatex(first_sentence(rest[match.start() :])))
        if values:
            return number.value not in values
    return False


def _read(span: Span, reference: Answer) -> Answer | Unread:
    if isinstance(
        reference, Number
    ):  # its own rules read the text after a box: a scale is part of the number, a unit may be
        formulas = [span.text] if span.boxed else [content for _, _, content in math_segments(span.text)]
        if not reference.unit and any(_TERM.search(formula) for formula in formulas):
            return Unread.HEDGED
        number = read_number(unlatex(span.text + span.after), stated=span.stated)
        return Unread.HEDGED if isinstance(number, Number) and _is_contradicted(number, span.rest) else number
    if not may_follow(span.after):
        return Unread.HEDGED
    match reference:
        case Choice():
            return _read_choice(unlatex(span.text), span.rest, span.stated)
        case YesNo():
            return _read_yes_no(unlatex(span.text))
        case Colon():
            return _read_colon(unlatex(span.text))
        case Sequence():
            return read_sequence(re.sub(r"^[\s:]*(?:is|are)?\s", "", span.text))
        case Symbolic():
            return _read_symbolic(span, reference)
        case Text():
            return _read_text(span.text, span.boxed)
