"""Where a response states its answer: after a trigger such as "the answer is", in a box, or at its end.

A statement that the text denies, supposes, withdraws or calculates further with does not count. Pattern matching only:
`gadfly.grading.answers` reads the stated text.
"""

import re
from dataclasses import dataclass, replace

from gadfly.grading.numbers import DENIED_BEFORE, Unread
from gadfly.grading.text import math_segments

_MAX_SPAN_CHARS = 2_000
FUNCTIONS = "sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp"

YES_NO = {"yes": True, "true": True, "no": False, "false": False}
YES_NO_HEAD = re.compile(
    r"[\s:\"'*(\[]*+(?:(?:is|the|therefore|so|thus|hence|clearly|that|it|a|statement)\b[\s,:]*+)*+"
    r"(yes|true|false|no(?=\W*$|\s*[.,;:!)\"'}\n-]|\s+(?:because|since|as|it|he|she|they|and|or|but|yes)\b))\b",
    re.IGNORECASE,
)

TRIGGER = re.compile(
    r"""(?P<mark>(?:^|\n)[ \t>]*(?:A|Ans)[ \t]*: | \#\#\#\#(?!\#))
    | (?P<box>\\(?:boxed|fbox)\s?\{)
    | \banswers?\b(?:
        [^\n.:=?!]{0,80}?\b(?:is|are|was|equals|(?:would|should|must|will|has\ to|turns\ out\ to)\ be)\b
        | (?:\ ?\([^()\n]{0,80}\)|\ (?:to|for|in)\ [^\n.:=?!]{0,80})?[ \t]*[:=]
        | [ \t]*\n)
    | \b(?:correct|right|best|final)\ (?:option|choice|result)\ is\b
    | \bI\ (?:choose|chose|pick|select)\b""",
    re.VERBOSE | re.IGNORECASE,
)
# Words before "answer is", in its clause, that deny that answer, suppose it or attribute it to another.
_NOT_OWN = re.compile(
    r"""\b(?:not|never|hardly|wrong|incorrect|false|if|unless|doubt|suppose|assum(?:e|ing)|whether|would|could|might|may|some)\b
    |n't\b
    |\b(?:given|previous|original|initial|first|earlier|old|proposed|stated|suggested|claimed|your|their|his|[a-z]+'s)\s{0,9}$""",
    re.VERBOSE | re.IGNORECASE,
)
# Words after "the answer is" in a sentence that is about an answer and does not state it.
_REMARK = re.compile(
    r"[\s:]*(?:(?:indeed|also|definitely|therefore|now)\s+)?(?:correct|right|clear|helpful|useful|reasonable|consistent|verified"
    r"|as follows|above|given above|obvious|what (?:you|we))\b(?!\s*[:,]?\s*(?:option|choice|\(?[A-J]\b|[-$]?[0-9]))",
    re.IGNORECASE,
)
_JOINED = re.compile(r"(?:\b(?:or|and|alternatively|maybe|possibly)\b[^.\n]{0,24}|[,/][\s$]*)$", re.IGNORECASE)
WITHDRAWN = re.compile(
    r"""(?:(?<=[.!?;,\n])|(?<=--)|(?<=—))\s{0,9}(?:(?:but|hmm+|oh|and|so)[,.]?\s+)?(?:
    wait\b | actually,?\s+(?!yes)(?=\w) | correction\b | scratch\ that | on\ second\ thought | oops | sorry\b
    | no(?:,|:|\ -|\.|!|\s*$) | i\ (?:was\ wrong|made\ (?:a|an)\ (?:mistake|error)|mean\b)
    | let\ me\ (?:correct|fix|re-?do|re-?consider|try\ again)
    | (?P<second>alternatively\b | or\ (?:maybe|perhaps|possibly|is\ it|rather|\$?[0-9]|\(?[A-J]\b))
    | (?:this|that|it|the\ answer|which)(?:'s|\ is|\ was)\ (?:not|wrong|incorrect|a\ mistake)
    | hold\ on\b | my\ (?:mistake|bad|apologies)\b | i\ apologi[sz]e\b | edit: | i\ misread\b
    | (?:this|that|it)\ (?:should|must)\ (?:be|have\ been) | (?:this|that|it)\ (?:isn't|can't|cannot)\b
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_NO = re.compile(r"\W*no\b", re.IGNORECASE)
# Words that open a conclusion. A conclusion with numbers, none of which is the answer, contradicts the answer.
CONCLUDES = re.compile(
    r"""\b(?:so|therefore|thus|hence|consequently|but|however|let\ me\ (?:double[\ -])?check)\b
    | (?:^|(?<=[.!]\ ))(?:finally|altogether|in\ total),
    | \bit(?:'s|\ is)(?=\ \$?[0-9][0-9,.]*\s*$)
    | \$?[0-9][0-9,.]*\ (?:[a-z]+\ )?(?:in\ total|altogether)\b""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(
    r"(?<!\bsq)(?<!\bcu)(?<!\bapprox)(?<!\bSt)(?<!\bDr)(?<!\bMr)(?<!\bMrs)[.!?](?=[\"')\]*]*(?:\s|$))|\n"
)
# A last line that concludes nothing: the response was cut off.
_UNDERWAY = re.compile(r"let [A-Za-z]\s?(?:=|be\b)|suppose\b|assume\b|next\b(?:[^=]*$|.*\bthen\b)", re.IGNORECASE)
_CLOSING = re.compile(
    r"(?:i )?hope|let me know|feel free|thank|good luck|happy to|is there anything|please", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Span:
    """Where an answer is stated: in a box, or in one sentence, after a trigger (`stated`) or without one."""

    text: str
    boxed: bool = False
    stated: bool = True
    after: str = ""  # the text after a box in its sentence: a unit, a scale, a second answer
    rest: str = ""  # the text from the statement on, which may conclude something else


# Text that may touch a box or formula that is an answer. Other text makes it part of an expression: -[18], 2[18].
_BEFORE_ALONE = re.compile(
    rf"""(?:^ | [,;:.!?"'&~] | (?<![<>!≠])= | [=-]> | ≈ | \\\\ | (?:^|\s)[aA]
    | \\(?:approx|therefore|implies|[Rr]ightarrow|Longrightarrow|to|q?quad|[,;:!])
    | (?<![\\A-Za-z])(?!(?:{FUNCTIONS})$)[A-Za-z]{{2,}} | \\text(?:bf|rm)?\s?\{{[^{{}}]{{0,200}}\}})$""",
    re.VERBOSE,
)
_AFTER_ALONE = re.compile(
    r"""\s*(?:$|[.,;:!?"'*)\]%&°—] | \\(?:%|\\|text|mathrm|mbox|q?quad|[,;:!\ ]|circ) | \^\s?\{?\\circ | -\ [A-Za-z])
    | \s+(?!(?:or|and|to|times|plus|minus|divided|multiplied|over|squared|cubed|is\ not|hundred|thousand|[mbtr]+illion
        |dozen)\b)[A-Za-z(]""",
    re.VERBOSE,
)
_OPENS_MATH = re.compile(r"[\s*_]{0,9}(?:\$\$?|\\\(|\\\[)?[\s{*_]{0,9}$")
_CLOSES_MATH = re.compile(r"(?<!\\)\$\$?(?![0-9])|\\\)|\\\]")
_DECORATION = re.compile(r"\\(?:blacksquare|square|qed|checkmark|(?:tag|end)\s?\{[^{}]{0,40}\})")
_CLAUSE = re.compile(r"[,.;:\n]|\b(?:so|but|then|therefore|thus|hence)\b", re.IGNORECASE)


def _last_clause(text: str) -> str:
    return _CLAUSE.split(text[-_MAX_SPAN_CHARS:])[-1]


def may_precede(before: str) -> bool:
    """Whether the box or formula after `before`, in the same line, is complete and not denied by it."""
    line = before[-_MAX_SPAN_CHARS:].rsplit("\n", 1)[-1]
    line = re.sub(r"^[\s>*]{1,99}", "", _OPENS_MATH.sub("", line))
    return bool(_BEFORE_ALONE.search(line[-250:])) and not DENIED_BEFORE.search(_last_clause(line) + " ")


def may_follow(after: str) -> bool:
    """Whether the box or formula before `after`, in the same line, is complete."""
    return bool(_AFTER_ALONE.match(after))


def sentence_after(text: str, start: int) -> str:
    """The rest of a sentence from the end of a box or formula on, without the mark that closes the formula."""
    text = _first_line(text[start : start + _MAX_SPAN_CHARS])
    end = _SENTENCE_END.search(text)
    text = text if end is None else text[: end.end()]
    return _DECORATION.sub("", _CLOSES_MATH.sub(" ", text, count=1)).rstrip()


def box_end(text: str, start: int) -> int:
    """The index of the brace that closes the box whose content starts at `start`; the end of its line without one."""
    depth = 1
    for index in range(start, min(len(text), start + _MAX_SPAN_CHARS)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return index
    newline = text.find("\n", start)
    return min(len(text) if newline < 0 else newline, start + _MAX_SPAN_CHARS)


def first_sentence(text: str) -> str:
    text = text[:_MAX_SPAN_CHARS].lstrip(" \t\n:*_")
    if text.startswith(("$$", "\\[", "\\(")):
        segment = math_segments(text)
        if segment and segment[0][0] == 0:
            return segment[0][2].strip() + _first_line(text[segment[0][1] :])
    end = _SENTENCE_END.search(text)
    # The closing mark is kept: 5! is not 5, and a rule must see it.
    return text if end is None else text[: end.end()].rstrip()


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0]


def _spans_by_ending(text: str) -> list[Span]:
    """For a response without a trigger: sentences of its last line, last first, without polite closing lines."""
    lines = [line.strip() for line in text[-_MAX_SPAN_CHARS * 2 :].split("\n")]
    lines = [line for line in lines if line.strip("$[]\\ *")]
    while len(lines) > 1 and _CLOSING.match(lines[-1]):
        lines.pop()
    if not lines:
        return []
    sentences, rest = [], lines[-1]
    if rest.endswith(":") or _UNDERWAY.match(rest):
        return []
    while end := _SENTENCE_END.search(rest):
        sentences.append(rest[: end.end()].strip())
        rest = rest[end.end() :]
    sentences = [sentence for sentence in [*sentences, rest.strip()] if sentence and not sentence.endswith("?")]
    while len(sentences) > 1 and _CLOSING.match(sentences[-1]):
        sentences.pop()
    return [Span(sentence, stated=False, rest=sentence) for sentence in reversed(sentences)]


def _is_second_box(text: str, triggers: list[re.Match[str]]) -> bool:
    """Whether the last box follows another one, with other content, and no words between them replace it."""
    if len(triggers) < 2 or not triggers[-2]["box"]:
        return False
    (first, last), end = triggers[-2:], box_end(text, triggers[-2].end())
    between = text[end : last.start()]
    same = text[first.end() : end] == text[last.end() : box_end(text, last.end())]
    return not same and not re.search(r"(?<![\\A-Za-z])(?!(?:and|through)\b)(?:[A-Za-z]{3,}|so\b)", between)


def find_spans(text: str) -> list[Span] | Unread:
    """The places to read the answer from, best first."""
    triggers = [match for match in TRIGGER.finditer(text) if match["box"] or not _REMARK.match(text, match.end())]
    if not triggers:
        return _spans_by_ending(text) or Unread.MISSING
    last = triggers[-1]
    if len(triggers) > 1:
        between = text[triggers[-2].end() : last.start()]
        if between.strip() and "\n" not in between.strip() and _JOINED.search(between[-80:]):
            return Unread.HEDGED
    if last["box"]:
        if not may_precede(text[: last.start()]) or _is_second_box(text, triggers):
            return Unread.HEDGED
        end = box_end(text, last.end())
        if re.match(r"[\s$.,]*(?:or|and)\b", text[end + 1 :]):
            return Unread.HEDGED
        span = Span(text[last.end() : end], boxed=True, after=sentence_after(text, end + 1))
        after = text[end:]
    else:
        after = text[last.end() :]
        span = Span(first_sentence(after))
        if span.text.endswith("?"):
            return Unread.HEDGED
        if not last["mark"] and _NOT_OWN.search(_last_clause(text[: last.start()])):
            sentence = _SENTENCE_END.search(after.lstrip())
            return (_spans_by_ending(after.lstrip()[sentence.end() :]) if sentence else []) or Unread.HEDGED
    # A model that withdraws its answer states the text that follows, or nothing.
    lead = len(after) - len(after.lstrip(" \t\n:*"))
    withdrawn = WITHDRAWN.search(after[: _MAX_SPAN_CHARS * 2], lead + 1)
    opening = YES_NO_HEAD.match(after)  # "No. No, it is odd" withdraws nothing, "Yes... no." does
    is_no = opening is not None and not YES_NO[opening[1].lower()]
    if withdrawn and not (is_no and _NO.match(after, withdrawn.start())):
        rest = "" if withdrawn["second"] else after[withdrawn.end() :]
        return _spans_by_ending(rest) if re.search(r"\w", rest) else Unread.HEDGED
    return [replace(span, rest=after[: _MAX_SPAN_CHARS * 2])]
