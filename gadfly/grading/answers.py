"""Which answer a response states: the last one of the reference's kind (`gadfly.grading.kinds`).

The rule above all others: **when in doubt, no answer**. A false right teaches the critic to praise mistakes, a false
wrong to find mistakes where there are none; no answer costs one sample.

Context. A box or a formula is an answer when it stands alone, next to nothing, an equals sign, punctuation, words or a
unit. A sign, factor, power or function outside it makes it part of a larger expression.
Hedging. Two answers (`3 or 4`), bounds (`at least 4`), negations and withdrawn answers are none, whatever their
content. So is a number that a later conclusion contradicts (`18. However, 2 more come, so 20`), and an answer that is
denied, hypothetical or attributed to another (`if the answer is 18`, `the given answer is 18`).

Model text is never evaluated. The rules run in bounded time: texts are capped and patterns cannot backtrack far.
"""

import re
from fractions import Fraction

from gadfly.grading.dates import (
    Compound,
    Date,
    compounds_in,
    dates_in,
)
from gadfly.grading.denial import is_denied
from gadfly.grading.kinds import (
    Answer,
    Choice,
    Colon,
    Reference,
    Sequence,
    Special,
    Symbolic,
    Text,
    YesNo,
    colons_in,
    compare,
    read_expression,
    read_opaque,
    read_sequence,
    read_text,
    special_at_end,
    whole_special,
)
from gadfly.grading.latex import as_intervals, is_plain_relation
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
from gadfly.grading.replies import answering_part
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
    next_sentence,
)
from gadfly.grading.text import math_segments, tail, tidy, unlatex

_MAX_CONCLUSIONS = 20
_MAX_REST_CHARS = 600
_MAX_SENTENCE_CHARS = 400


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
    r"\b(?:not|never|neither|nor|cannot|either|unsure|unclear|wrong|incorrect|hardly|barely|scarcely|partly|usually|mostly|almost|probably|sometimes|largely)\b|n't\b|\beliminate",
    re.IGNORECASE,
)


_CHOICE_CONCLUDED = re.compile(
    r"(?:\b(?:so|thus|hence|therefore),?\s+(?:(?:it|the answer|that) is\s+)?|\bwhich is\s+"
    r"|\bwhich (?:corresponds to|matches)\s+)"
    r"(?:option\s+|choice\s+|answer\s+)?\(?([A-J])\)?\W*$|^([A-J])\s+(?:remains|is left|is the only one left)\W*$"
)


def _read_choice(text: str, rest: str, stated: bool) -> Choice | Unread:
    concluded = None if stated else _CHOICE_CONCLUDED.search(text)
    if concluded and not is_denied(text[: concluded.start()]):
        return Choice(concluded[1] or concluded[2])
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


# What follows the word at once, or after a comma, and makes it hold in part, or not at all.
_HOLDS_IN_PART = re.compile(
    r"""\s*\(?(?:is|was|would|could|for|in|when|if|iff|on|at|with|under|only|provided|and|or|as\ long|/)\b
    |\s*[,(]?\s*(?:but|assuming|if|iff|unless|only|provided|except|in\ (?:most|some|many|general|theory|principle)
        |partly|mostly|usually
        |sometimes|for\ (?:some|most|[a-z]\ ?[<>=≤≥]|even|odd|\(|positive|negative|large|small)|when|although
        |though|however
        |technically|strictly|they\ say|at\ (?:first|least))\b""",
    re.VERBOSE | re.IGNORECASE,
)
_CONTRAST = re.compile(
    r"\b(?:but|however|although|though|yet|otherwise|unless|except|mistaken|disagree|naive|only (?:if|when|for))\b",
    re.IGNORECASE,
)
_SUPPOSES = re.compile(r"\b(?:would|could|might|if)\b", re.IGNORECASE)
_CONCLUDED = re.compile(
    r"\b(?:so|therefore|thus|hence|since|as|because|wait|actually)\b[^.;\n]{0,80}?(?:[,:]\s*|\s)(yes|no|true|false)\W*$",
    re.IGNORECASE,
)


def _read_yes_no(text: str) -> YesNo | Unread:
    text = _NOT_TRUE.sub("false", text)
    words = {YES_NO[match[1].lower()] for match in _YES_NO_WORD.finditer(text)}
    head = YES_NO_HEAD.match(text)
    if head:
        words.add(YES_NO[head[1].lower()])
    if not words:
        return Unread.MISSING
    concluded = _CONCLUDED.search(text)
    if len(words) > 1:
        return YesNo(YES_NO[concluded[1].lower()]) if concluded else Unread.HEDGED
    if _CONTRAST.search(text) or (head and _HOLDS_IN_PART.match(text, head.end())):
        return Unread.HEDGED
    is_hedged = not head and (_NEGATED.search(text) or _SUPPOSES.search(text))
    return Unread.HEDGED if is_hedged else YesNo(words.pop())


def _read_compound(span: Span) -> Compound | Number | Unread:
    text = unlatex(span.text)
    found = _last_of_kind(text, list(compounds_in(text)))
    if found is Unread.MISSING:
        return read_number(text, stated=span.stated)
    assert isinstance(found, Compound | Unread)
    return found


_NOT_THEN = re.compile(
    r"n't\b|\b(?:not|never|before|after|until|between|past|or|either|next day|to(?= [0-9]{1,2}:))\b", re.IGNORECASE
)


_IN_WORDS = re.compile(r"(?<![0-9.,/:-])([0-9]{1,6})\s+(?:to|:)\s+([0-9]{1,6})(?![0-9.,]*[0-9]|\s?[:/])")
_RATIO = re.compile(r"\b(?:ratio|odds|proportion|rate)\b", re.IGNORECASE)


def _read_colon(text: str, reference: Colon) -> Colon | Unread:
    colons = colons_in(text)
    may_be_time = reference.half or reference.padded or (reference.parts[0] < 24 and 10 <= reference.parts[-1] < 60)
    in_words = list(_IN_WORDS.finditer(text))
    if not colons and len(in_words) == 1 and (_RATIO.search(text) or not may_be_time):
        if is_denied(text[: in_words[0].start()]):
            return Unread.HEDGED
        return Colon((int(in_words[0][1]), int(in_words[0][2])))
    if not colons:
        return Unread.MISSING
    return Unread.HEDGED if len(set(colons)) > 1 or _NOT_THEN.search(text) else colons[0]


_SAYS = re.compile(
    r"\b(?:is|are|was|were|be|called|named|on|in|=|:|prints?|returns?|raises?|outputs?|throws?|gives?|yields?|gets?"
    r"|becomes?|equals?|says?|choose|pick|remains?)\s+(?:(?:a|an|the)\s)?(\S.*)$",
    re.IGNORECASE,
)
_DOUBTED = re.compile(
    r"\b(?:could|might|may|perhaps|maybe|possibly|or|either|some|others|they|first|guess|if|unless|but|although"
    r"|not sure"
    r"|from|than|before|after|until|except|like)\b",
    re.IGNORECASE,
)
_SUBJECT = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s)?(.{1,80}?)\s(?:(?:is|was)\s(?:the|a|an)"
    r"|(?:has|had|got)\s(?:the\s)?(?:most|more|least|fewest|highest|lowest|longest)|w[io]ns?)\b[\w' -]{0,80}$",
    re.IGNORECASE,
)


def _read_text(span: Span, reference: Text) -> Text | Unread:
    text = span.text if span.boxed else re.sub(r"^[\s:]*(?:is|be)\b(?!\s*$)", "", span.text)
    read = read_text(text)
    if isinstance(read, Unread) or span.boxed or read == reference:
        return read
    # A sentence that says so: `The capital of Peru is Lima.`, `Lima is the capital.`
    plain = re.sub(r"\s+", " ", unlatex(span.text)).strip(" .!*_")
    if len(plain) > _MAX_SENTENCE_CHARS:
        return read
    end = _SAYS.search(plain)
    while end:
        if read_text(end[1]) == reference:
            before = plain[: end.start(1)]
            return Unread.HEDGED if is_denied(before) or _DOUBTED.search(before) else reference
        end = _SAYS.search(plain, end.start() + 1)
    subject = _SUBJECT.match(plain)
    if subject and reference.is_name and read_text(subject[1]) == reference and not _DOUBTED.search(plain):
        is_denial = _NEGATED.search(plain) or re.search(r"\b(?:guess|opposite|mistake|trap)\b", plain)
        return Unread.HEDGED if is_denial else reference
    return read


def _last_of_kind(text: str, found: list[Answer]) -> Answer | Unread:
    """The one answer of a kind in a sentence that denies none."""
    if not found:
        return Unread.MISSING
    if (
        len(set(found)) > 1
        or _NEGATED.search(text)
        or re.search(r"\b(?:or|before|after|until|between|if|maybe|perhaps)\b", text)
    ):
        return Unread.HEDGED
    return found[0]


def _read_special(span: Span) -> Special | Unread:
    text = re.sub(r"^[\s:]*(?:is|be|are)\b(?!\s*$)", "", span.text)
    found = whole_special(text) or (None if span.boxed else special_at_end(unlatex(span.text).strip(" .!*_")))
    if found is None:
        return Unread.MISSING
    return Unread.HEDGED if _DOUBTED.search(span.text) or re.search(r"\bnot\b|n't\b", span.text) else found


_BRACKETS = re.compile(r"\\\{[^{}]{1,300}\\\}|\[[^][]{1,300}\]|\([^()]{1,300}\)")


def _read_sequence(span: Span, reference: Sequence) -> Sequence | Unread:
    text = re.sub(r"^[\s:]*(?:is|are)?\s", "", span.text)
    read = read_sequence(text)
    intervals = as_intervals(text) if reference.brackets == "[]" and is_plain_relation(text) else None
    if intervals and len(intervals) == 1 and intervals[0].closed == (True, True):
        return read_sequence(f"[{intervals[0].low}, {intervals[0].high}]")
    if not isinstance(read, Unread) or span.boxed:
        return read
    plain = text.strip().rstrip(".`*_ ")
    bracketed = list(_BRACKETS.finditer(plain))
    start = bracketed[-1].start() if bracketed and plain[bracketed[-1].end() :].strip("$`*_ ") == "" else -1
    if start < 0:
        verb = list(re.finditer(r"\b(?:are|is|be|were|by)\b:?\s|:\s|[=≈]\s?(?=[(\[])", plain))
        if not verb:
            return read
        start = verb[-1].end()
    if is_denied(plain[:start]) or re.search(r"\b(?:or|maybe|perhaps|could|might)\b", plain[:start]):
        return Unread.HEDGED
    return read_sequence(plain[start:].strip("$`"))


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


_OR_AND = re.compile(r"\\(?:text\s?\{\s?)?(?:or|and)\b|\bor\b|\\text\{\s?(?:or|and)\s?\}")


def _read_symbolic(span: Span, reference: Symbolic) -> Symbolic | Unread:
    text = span.text
    segments = [] if span.boxed else math_segments(text)
    is_opaque = isinstance(read_expression(reference.latex), Unread)
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
        verb = None if span.stated else re.search(r"\b(?:is|are|equals)\s+(?=\S)", text)
        if verb:
            if is_denied(text[: verb.end()]):
                return Unread.HEDGED
            text = text[verb.end() :]
    if is_opaque:
        return read_opaque(text)
    if not is_plain_relation(text) and _OR_AND.search(text):
        return Unread.HEDGED
    if "=" not in reference.latex and "=" in text:
        if re.search(r"[,;]|\\\\|\band\b", text[text.find("=") : text.rfind("=")]):
            return Unread.HEDGED  # a = 2, b = 3
        text = text[text.rfind("=") + 1 :]
    if _NAMED_NUMBER.fullmatch(reference.latex) and not whole_number(unlatex(text[text.rfind("=") + 1 :])):
        return Unread.MISSING  # as for a number without a name, an unevaluated expression is not an answer
    read = read_expression(text)
    if isinstance(read, Unread) and (span.boxed or segments):
        return read_opaque(text)
    return read


# --- the rules together --------------------------------------------------------------------------------------------


def extract_answer(response: str, reference: Reference, *, is_cut: bool = False) -> Answer | Unread:
    """The last answer of the reference's kind that `response` states."""
    return find_answer(response, reference, is_cut=is_cut)[0]


def find_answer(response: str, reference: Reference, *, is_cut: bool = False) -> tuple[Answer | Unread, bool]:
    """The last answer of the reference's kind, and whether it is sure to be meant as the answer.

    One at the end of a last sentence without a full stop is not: more may have been to come.
    """
    reply = answering_part(tail(response), is_cut=is_cut)
    text = tidy(reply.text)
    spans = find_spans(text, is_cut=reply.is_cut)
    if isinstance(spans, Unread):
        return spans, False
    answer: Answer | Unread = Unread.MISSING
    for span in spans:
        answer = _read(span, reference.answer)
        if answer is not Unread.MISSING:
            return answer, not span.is_open
    if answer is Unread.MISSING and reference.content is not None:
        content = extract_answer(response, Reference(reference.text, reference.content), is_cut=is_cut)
        if not isinstance(content, Unread) and compare(reference.content, content):
            return reference.answer, True  # the option's content in place of its letter
    if isinstance(reference.answer, YesNo) and not reply.is_cut and not any(span.stated for span in spans[:1]):
        return _read_opening(text), True
    return answer, False


def _read_opening(text: str) -> YesNo | Unread:
    """Yes or no as the first word of a response that does not repeat it."""
    head = re.match(r"\W{0,5}(yes|no|true|false)\b\s*(?:[.,:;!\n-]|$)", text, re.IGNORECASE)
    if not head:
        return Unread.MISSING
    truth = YES_NO[head[1].lower()]
    others = {YES_NO[match[1].lower()] for match in _YES_NO_WORD.finditer(text, head.end())}
    takes_back = re.search(
        r"(?:^|[.!\n])\s*(?:but|however|although|though|actually|unless)\b", text[head.end() - 1 :], re.IGNORECASE
    )
    return Unread.HEDGED if others - {truth} or takes_back or WITHDRAWN.search(text, head.end()) else YesNo(truth)


_TERM = re.compile(r"[0-9}]\s?(?:\\[,;: ]\s?)?[A-Za-z]\s*\.?\s*$")  # in a formula 3m is more likely a term than metres


# A later sentence, or the rest of this one, that takes the answer back or gives another one.
_DISOWNED = re.compile(
    r"""[❌✗✘]|\bI\ disagree\b|\banswer\ (?:should|would|ought\ to)\ (?:be|have)\b
    |\b(?:that|this|the)\ (?:answer|value|result|number|one)?\ ?(?:is|was)\ (?:wrong|incorrect|false
        |not\ (?:right|correct|true|it))\b
    |\b(?:actual|correct|right|real|true|proper)\ (?:answer|value|number|result|one
        |figure)\b[^.\n]{0,40}?(?:\b(?:is|was|would|should|were)\b|[:=])
    |\b(?:is|are)\ mistaken\b|\bwhich\ is\ (?:wrong|incorrect|mistaken)\b|\bthat(?:'s|\ is)\ an?\ (?:error
        |mistake|typo)\b|\bthey\ want\ you\ to\ think\b""",
    re.VERBOSE | re.IGNORECASE,
)
_NOT_MINE = re.compile(
    r"\s*(?:is|was)\ (?:what|the|my|his|her|their|a|only|just|not)\b|\s*(?:would|could|might|may)\ be\b"
    r"|\s*according\ to\b",
    re.VERBOSE,
)


def _is_disowned(span: Span, *, but_not: Fraction | None = None, is_yes_no: bool = False) -> bool:
    """Whether the text behind an answer takes it back; repeating the number `but_not` takes nothing back."""
    if span.boxed and _NOT_MINE.match(span.after):
        return True
    rest = span.rest[:_MAX_REST_CHARS] if span.stated else span.text
    for match in _DISOWNED.finditer(rest):
        if is_yes_no and match[0].lower().endswith(("false", "not true")):
            continue  # an answer of that kind
        if but_not is None or match.start() == 0:
            return True
        said = values_in(unlatex(first_sentence(rest[match.start() :])))
        if not said or but_not not in said:
            return True
    return False


_NUMBER_ALONE = re.compile(
    r"\W*(?!(?:step|case|part|figure"
    r"|table)\b)(?:[A-Za-z']+[,.]?\s)?[$£€]?[0-9][0-9.,]*%?\W*",
    re.IGNORECASE,
)


def _is_contradicted(number: Number, rest: str) -> bool:
    """Whether the next sentence is another number, or the last conclusion with numbers in `rest` lacks this one."""
    following = next_sentence(rest)
    if _NUMBER_ALONE.fullmatch(following) and number.value not in values_in(following):
        return True
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
        share = 0 < reference.value < 1
        if _is_disowned(span, but_not=reference.value):
            return Unread.HEDGED
        number = read_number(unlatex(span.text + span.after), stated=span.stated, share=share)
        return Unread.HEDGED if isinstance(number, Number) and _is_contradicted(number, span.rest) else number
    if not may_follow(span.after):
        return Unread.HEDGED
    if _is_disowned(span, is_yes_no=isinstance(reference, YesNo)):
        return Unread.HEDGED
    match reference:
        case Choice():
            return _read_choice(unlatex(span.text), span.rest, span.stated)
        case YesNo():
            return _read_yes_no(unlatex(span.text))
        case Colon():
            return _read_colon(unlatex(span.text), reference)
        case Sequence():
            return _read_sequence(span, reference)
        case Symbolic():
            return _read_symbolic(span, reference)
        case Text():
            return _read_text(span, reference)
        case Date():
            return _last_of_kind(span.text, list(dates_in(unlatex(span.text))))
        case Compound():
            return _read_compound(span)
        case Special():
            return _read_special(span)
