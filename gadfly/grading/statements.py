"""Where a response states its answer: after a trigger such as "the answer is", in a box, or at its end.

A statement that the text denies, supposes, withdraws or calculates further with does not count. Pattern matching only:
`gadfly.grading.answers` reads the stated text.
"""

import re
from dataclasses import dataclass, replace

from gadfly.grading.denial import is_denied, last_clause
from gadfly.grading.numbers import Unread
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
    r"""(?P<mark>(?:^|\n)[ \t>]*(?:A|Ans)[ \t]*: | \#\#\#\#(?!\#|\ *(?:step|case|part|section)\b))
    | (?P<box>\\(?:boxed|fbox)\s?\{)
    | \banswers?\b(?:
        [^\n.:=?!]{0,80}?\b(?:is|are|was|equals|(?:would|should|must|will|has\ to|turns\ out\ to)\ be)\b
        | (?:\ ?\([^()\n]{0,80}\)|\ (?:to|for|in)\ [^\n.:=?!]{0,80})?[ \t]*[:=]
        | [ \t]*\n)
    | \b(?:correct|right|best|final)\ (?:option|choice|result)(?:\ is\b|:)
    | \b(?:my|final|best)\ (?:choice|pick|selection)[ \t]*(?:\bis\b|:)
    | \bI\ (?:choose|chose|pick|select)\b
    | 答案[ \t]*(?:选|选择|应该是|应为|应是|是|为|為|:):? | 答え[ \t]*(?:は|:) | 정?답[ \t]*(?:은|는|:)
    | \b(?:antwort|antwoord)[ \t]*(?:\b(?:ist|lautet|is)\b:?|:) | \b(?:lösung|ergebnis)[ \t]*:
    | \brespuesta(?:\ correcta|\ final)?[ \t]*(?:\bes\b:?|:) | \bréponse(?:\ finale|\ correcte)?[ \t]*(?:\best\b:?|:)
    | \brisposta(?:\ corretta|\ finale)?[ \t]*(?:è|:) | \bresposta(?:\ correta|\ final)?[ \t]*(?:é|:)
    | \bответ[ \t]*: | (?:الجواب|الإجابة)[ \t]*(?:هو|هي|:) | उत्तर[ \t]*(?:है|:)
    | \b(?:odpowiedź|svar|cevap|jawaban|đáp\ án)[ \t]*(?:\blà\b|:)""",
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
_SUPPOSED = re.compile(r"\b(?:assum(?:e|ing)|if|suppos(?:e|ing)|ignoring|without|were|had)\b", re.IGNORECASE)
_JOINED = re.compile(r"(?:\b(?:or|and|alternatively|maybe|possibly)\b[^.\n]{0,24}|[,/][\s$]*)$", re.IGNORECASE)
WITHDRAWN = re.compile(
    r"""(?:(?<=[.!?;,\n])|(?<=--)|(?<=—))\s{0,9}(?:(?:but|hmm+|oh|and|so)[,.]?\s+)?(?:
    wait\b | no,?\ wait\b | nope\b | nah\b | actually,?\s+(?!yes)(?=\w) | correction\b | scratch\ that
        | on\ second\ thought
        | oops | sorry\b
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
    r"(?<!\bsq)(?<!\bcu)(?<!\bapprox)(?<!\bSt)(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bRs)[.!?](?=[\"')\]*]*(?:\s|$))(?!\s?[=+*/^<>≤≥])|\n"
)
# A last line that concludes nothing: the response was cut off.
_UNDERWAY = re.compile(
    r"""let\ [A-Za-z]\s?(?:=|be\b)|suppose\b|assume\b|next\b(?:[^=]*$|.*\bthen\b)
    |(?:(?:so|now|then|first|finally|again),?\ )?(?:let\ (?:me|us)|let's|we\ (?:need|must|should|will|can)
        |i\ (?:need|must|will))
        \b[^=]*$
    |(?:(?:so|now|then|first),?\ )?(?:to\ (?:find|get|solve|compute|calculate|determine|check)|add|subtract
        |multiply|divide
        |compute|calculate|find|count|check|see|note|consider|use|take|round|convert|substitute|solve|recall)\b
        (?![^=]*\b(?:is|are|gives?|makes?|gets?|yields?|equals?)\b)[^=]*$""",
    re.VERBOSE | re.IGNORECASE,
)
# Names of things that are counted off: the number behind one is no answer, unless a sentence says so.
_LABEL = (
    r"(?:steps?|cases?|parts?|figures?|figs?\.?|tables?|equations?|eqs?\.?|sections?|chapters?|theorems?|lemmas?|rules?|examples?"
    r"|exercises?|questions?|problems?|versions?|appendix|proposition|corollary|definition|stage|phase|method|option|note|page"
    r"|line|footnote|hint)"
)
_LABELLED = re.compile(
    rf"\b{_LABEL}\s*(?:no\.|number|\#)?\s*\(?[0-9]+(?:\.[0-9]+)*\)?(?:\s*(?:of|and|to)\s*[0-9]+)?", re.IGNORECASE
)
_LIST_MARK = re.compile(r"[\s>*_]{0,9}\(?(?:[0-9]{1,3}|[a-z]|[ivx]{1,5})[.)\]:]{1,2}[\s*_]{0,9}$")
_NUMBERED = re.compile(r"[\s>*_]{0,9}\(?([0-9]{1,3})[.)][\s*_]{1,9}(?=\S)")
_BARE_NUMBER = re.compile(r"\W{0,9}([0-9]{1,3})\W{0,9}")
_ITEM = re.compile(r"(?:[-*•–]\s|\|)")
_HEADING = re.compile(r"#{1,6}\s")
_RESULT_KEY = (
    r"(?:(?:so|thus|hence|therefore|and|the|in|final|grand|overall)\s)*(?:total|final|result|sum|solution|conclusion|value|output"
    r"|ans|answers?|product|difference|therefore|thus|so|hence|finally|altogether|result\ is|lösung"
    r"|ergebnis)\b[^:]{0,40}"
)
_KEY_VALUE = re.compile(r"[\s>*_-]{0,9}([A-Za-z][^:=\n0-9]{0,60}):\s*(\S.*)$")
_SURE = re.compile(r"\b(?:sure|certain|confiden(?:t|ce)|certainty|likely)\b", re.IGNORECASE)
# A reply that is nothing but an answer: it begins with a number or a sign, or is two words, or a few without digits.
_BARE_ANSWER = re.compile(
    r"(?!(?:page|version|week|day|in|for|on|at|to|by|of|and|the)\b)(?:"
    r"[^A-Za-z]*[0-9$\\√π∞({\[][^\n]{0,200}|(?:[A-Za-z]\w?|\\\w+)\s?[=<>≤≥][^\n]{0,200}|[^\s0-9]+\s[0-9]\S*|\S{1,80}|[^0-9]{0,80})",
    re.IGNORECASE,
)
_CONCLUSION_WORD = re.compile(
    r"\b(?:so|therefore|thus|hence|total|altogether|in all|finally|conclude|overall|combined)\b", re.IGNORECASE
)
_CONCLUDES_WITH = re.compile(
    r"(?:so|therefore|thus|hence|altogether|in all|in total|total)\b[,:]?\s+(?:it is |it's |about )?"
    r"(?:[-$£€\\(]{0,3}[0-9]|\(?[A-J]\)?\W*$|[a-z]\s?=)",
    re.IGNORECASE,
)
_STATES = re.compile(
    r"(?<!there )\b(?:is|are|was|equals?|gives?|makes?|costs?|gets?|yields?|needs?|takes?|pays?|earns?|have|has)\b|=|≈",
    re.IGNORECASE,
)
_HANGS = re.compile(
    r"\b(?:and|or|the|a|an|of|to|for|with|than|then|each|per|by|in|on|at|from|is|are|was|has|have|had|but|so|as|that|which"
    r"|more|less|remaining|into|between|plus|minus|times|its|his|her|their|he|she|it|they|we|needs?|gets?|buys?|pays?|must|can|will|shares?)\W*$|[-+*/×÷=(,]\s*$",
    re.IGNORECASE,
)
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
    is_open: bool = False  # a last sentence without a full stop: the text may have been going on


# Text that may touch a box or formula that is an answer. Other text makes it part of an expression: -[18], 2[18].
_BEFORE_ALONE = re.compile(
    rf"""(?:^ | [,;:.!?"'&~] | [^\x00-\x7f≤≥≠±∓√−×÷·] | (?<![<>!≠])= | [=-]> | ≈ | \\\\ | (?:^|\s)[aA]
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


def may_precede(before: str) -> bool:
    """Whether the box or formula after `before`, in the same line, is complete and not denied by it."""
    line = before[-_MAX_SPAN_CHARS:].rsplit("\n", 1)[-1]
    line = re.sub(r"^[\s>*]{1,99}", "", _OPENS_MATH.sub("", line))
    return bool(_BEFORE_ALONE.search(line[-250:])) and not is_denied(line)


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


def next_sentence(text: str) -> str:
    """The second sentence of a text; empty where it has one."""
    text = text[:_MAX_SPAN_CHARS].lstrip(" \t\n:*_")
    end = _SENTENCE_END.search(text)
    return "" if end is None else first_sentence(text[end.end() :])


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0]


def _spans_by_ending(text: str) -> list[Span]:
    """For a response without a trigger: sentences of its last line, last first, without polite closing lines."""
    lines = [line.strip() for line in text[-_MAX_SPAN_CHARS * 2 :].split("\n")]
    lines = [line for line in lines if line.strip("$[]\\ *`")]
    while len(lines) > 1 and _CLOSING.match(lines[-1]):
        lines.pop()
    if not lines:
        return []
    sentences, rest = [], _concluding_line(lines)
    while end := _SENTENCE_END.search(rest):
        sentences.append(rest[: end.end()].strip())
        rest = rest[end.end() :]
    is_open = bool(rest.strip())
    sentences = [sentence for sentence in [*sentences, rest.strip()] if sentence]
    while len(sentences) > 1 and _CLOSING.match(sentences[-1]):
        sentences.pop()
        is_open = False
    if not sentences or _UNDERWAY.match(sentences[-1]):
        return []
    is_bare = len(lines) == 1 and len(sentences) == 1 and bool(_BARE_ANSWER.fullmatch(sentences[0]))
    if is_open and not is_bare and not _is_finished(sentences[-1]):
        return []
    last = sentences[-1] if is_open and not is_bare else None
    sentences = [sentence for sentence in sentences if not sentence.endswith("?") and not _is_aside(sentence)]
    return [Span(sentence, stated=False, rest=sentence, is_open=sentence is last) for sentence in reversed(sentences)]


def _concluding_line(lines: list[str]) -> str:
    """The last line, without its list mark; empty where it is a mark, a heading, an item or a step still to do."""
    line = re.sub(r"^(?:=>|->|→|⇒|⟹)\s*", "= ", lines[-1])
    if line.endswith(":") or _HEADING.match(line) or (_ITEM.match(line) and len(lines) > 1):
        return ""
    if len(lines) > 1 and (_LIST_MARK.fullmatch(line) or _continues_list(lines)):
        return ""
    if re.fullmatch(r"\W*(?:\(?[0-9]{1,3}\)|\[[0-9]{1,3}\])\W*", line):
        return ""
    numbered = _NUMBERED.match(line)
    if numbered and len(lines) > 1:
        line = line[numbered.end() :]
    if re.fullmatch(rf"\W*{_LABELLED.pattern}\W*", line, re.IGNORECASE):
        return ""
    pair = _KEY_VALUE.match(line)
    if pair and re.search(r"\b(?:tokens?|attempts?|iterations?)\b", pair[1], re.IGNORECASE):
        return ""
    if pair and not re.match(_RESULT_KEY, pair[1], re.IGNORECASE) and "=" not in pair[2]:
        return "" if re.fullmatch(r"\W*[0-9][0-9.,/%]*(?:\s+\w+)?\W*", pair[2]) else line
    return line


def _continues_list(lines: list[str]) -> bool:
    """Whether the last line is the number that follows the last numbered item."""
    bare = _BARE_NUMBER.fullmatch(lines[-1])
    if not bare:
        return False
    before = str(int(bare[1]) - 1)
    return any((item := _NUMBERED.match(line)) and item[1] == before for line in lines[:-1])


def _is_finished(sentence: str) -> bool:
    """Whether a last sentence without a full stop concludes something, and is not half of one."""
    if _HANGS.search(sentence):
        return False
    digits = list(re.finditer(r"[0-9][0-9.,]*", sentence))
    after = sentence[digits[-1].end() :] if digits else ""
    if re.search(r"[=≈]\s*[$£€]?\s?-?[0-9.,]+[^=≈0-9]*$", sentence) and len(after.split()) <= 10:
        return True
    if "=" in sentence and len(sentence[sentence.rfind("=") :].split()) <= 4:
        return True
    if len(after.split()) > 5:
        return False
    states = _STATES.search(sentence)
    concludes = _CONCLUSION_WORD.search(sentence) or not digits
    direct = digits and re.search(rf"(?:{_STATES.pattern})\W*$", sentence[: digits[0].start()], re.IGNORECASE)
    return bool(states and concludes) or bool(direct) or bool(_CONCLUDES_WITH.match(sentence))


def _is_aside(sentence: str) -> bool:
    """Whether a sentence says how sure the model is, or names a step, a figure or an equation by its number."""
    if _SURE.search(sentence) and not re.search(r"\bprobab", sentence):
        return True
    return (
        bool(re.search(r"[0-9]", sentence))
        and not re.search(r"[0-9]", _LABELLED.sub("", sentence))
        and not re.search(r"\b(?:choose|pick|select|answer|correct|right)\b", sentence, re.IGNORECASE)
    )


def _is_second_box(text: str, triggers: list[re.Match[str]]) -> bool:
    """Whether the last box follows another one, with other content, and no words between them replace it."""
    if len(triggers) < 2 or not triggers[-2]["box"]:
        return False
    (first, last), end = triggers[-2:], box_end(text, triggers[-2].end())
    between = text[end : last.start()]
    same = text[first.end() : end] == text[last.end() : box_end(text, last.end())]
    return not same and not re.search(r"(?<![\\A-Za-z])(?!(?:and|through)\b)(?:[A-Za-z]{3,}|so\b)", between)


def _ends_before(text: str, start: int) -> bool:
    """Whether the sentence that starts at `start` ends before the text does: `18.` may have been going to be `18.5`."""
    stated = text[start:]
    lead = len(stated) - len(stated.lstrip(" \t\n:*_"))
    end = _SENTENCE_END.search(stated, lead)
    return end is not None and (stated[end.start()] == "\n" or end.end() < len(stated))


def find_spans(text: str, *, is_cut: bool = False) -> list[Span] | Unread:
    """The places to read the answer from, best first. Of a text that is cut, only whole statements are."""
    triggers = [match for match in TRIGGER.finditer(text) if match["box"] or not _REMARK.match(text, match.end())]
    if is_cut:
        triggers = [
            match
            for match in triggers
            if (text[box_end(text, match.end()) :][:1] == "}" if match["box"] else _ends_before(text, match.end()))
        ]
    if not triggers:
        return (None if is_cut else _spans_by_ending(text)) or Unread.MISSING
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
        if "would" in last[0].lower() and _SUPPOSED.search(text[: last.start()][-200:].rsplit(".", 1)[-1]):
            return Unread.HEDGED
        if not last["mark"] and _NOT_OWN.search(last_clause(text[: last.start()])):
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
