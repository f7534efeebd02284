"""LaTeX as text: one form for notations of the same thing, sides of equations, items of lists, intervals.

Nothing here evaluates, and all of it takes time linear in the text.
"""

import re
from dataclasses import dataclass

_SIZES = re.compile(r"\\(?:left|right|displaystyle|limits|bigl?|bigr?|Bigl?|Bigr?|mathstrut)(?![a-zA-Z])")
_SPACE = re.compile(r"\s+|\\[,;:! ]|\\q?quad(?![a-zA-Z])|~|\{\}|\\/")
_TYPEFACE = re.compile(r"\\(?:text|textrm|mathrm|mbox|operatorname|textnormal)\s?\*?\{\s?([^{}]{0,60}?)\s?\}")
_SAME: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\\frac([0-9])([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac([0-9])\{"), r"\\frac{\1}{"),
    (re.compile(r"\\le(?![a-zA-Z])|\\leqslant"), r"\\leq"),
    (re.compile(r"\\ge(?![a-zA-Z])|\\geqslant"), r"\\geq"),
    (re.compile(r"\\ne(?![a-zA-Z])"), r"\\neq"),
    (re.compile(r"\\varnothing"), r"\\emptyset"),
    (re.compile(r"\\rightarrow"), r"\\to"),
    (re.compile(r"\\(?:mid|vert)(?![a-zA-Z])"), "|"),
    (re.compile(r"\\colon"), ":"),
    (re.compile(r"\\lvert|\\rvert"), "|"),
    (re.compile(r"\\p?mod\{([^{}]{1,20})\}"), r"\\pmod\1"),
    (re.compile(r"\\\\?(?:dots|ldots|cdots)"), r"\\dots"),
    (re.compile(r"([_^])\{([A-Za-z0-9])\}"), r"\1\2"),
    (re.compile(r"\\cdot(?=[0-9A-Za-z(\\])"), r"\\cdot "),
)
# Notations of which the parser reads a part or the opposite: they are compared as they stand.
_OPAQUE = re.compile(
    r"""'|\\prime|\^\{?T\b|\\(?:math(?:bf|bb|cal|frak|sf|it|rm)|text|operatorname|boldsymbol|vec|hat|tilde|dot|ddot|bar
    |overline|underline|overrightarrow|overleftarrow|widehat|nabla|partial|angle|measuredangle|triangle|cong|sim|parallel|perp
    |pmod|bmod|mod|equiv|det|arg|tr|rank|dim|ker|gcd|lcm|max|min|sup|inf|Re|Im|mathrm|odot|oplus|otimes|wedge|vee|neg|lnot
    |forall|exists|subset|supset|subseteq|setminus|mid|in|notin|Rightarrow|iff|implies|to(?!\s)|mapsto|langle|rangle|nmid)
    (?![a-zA-Z])
    |\\[lc]?dots|\\approx|\\mp|\\sum(?!\s?_)|[A-Z](?:\^\{?-?\w\}?)?\s?(?:\\times\s?)?[A-Z](?![a-z])|[A-Za-z]_\{?[A-Za-z0-9]{2}|\|""",
    re.VERBOSE,
)
_LIMIT = re.compile(r"\\lim\s?_\{[^{}]{1,40}\}")
_DERIVATIVE_NAME = re.compile(
    r"\\frac\s?\{\s?(?:d|\\partial)\s?(?:\^\{?[0-9]\}?)?\s?[A-Za-z]+\s?\}\s?\{\s?(?:d|\\partial)\s?[A-Za-z]\s?(?:\^\{?[0-9]\}?)?\s?\}"
)


def normal(latex: str) -> str:
    """The text without spaces and sizes, with one form of each notation that has several."""
    text = _SPACE.sub(" ", _SIZES.sub("", latex)).replace("\\%", "%")
    text = re.sub(r"(?<=[A-Za-z])\s(?=[A-Za-z])|(?<=[0-9])\s(?=[0-9])", "\0", _TYPEFACE.sub(r"\1", text)).replace(
        " ", ""
    )
    text = re.sub(r"(\\[A-Za-z]+|[0-9])\0", r"\1 ", text).replace("\0", "")
    for pattern, one in _SAME:
        text = pattern.sub(one, text)
    text = re.sub(r"(?<=[|<>=]) | (?=[|<>=\\])", "", re.sub(r"(\\(?:leq|geq|neq|in|cup|cap)) ", r"\1~", text)).replace(
        "~", " "
    )
    return text.strip().rstrip(".,;")


def is_balanced(latex: str) -> bool:
    """Whether braces close in order, with something in each group of a fraction or a root."""
    depth = 0
    for character in re.sub(r"\\[{}]", "", latex):
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return (
        depth == 0
        and bool(re.search(r"[A-Za-z0-9]", latex))
        and not re.search(r"\\frac\s?\{\s?\}|\\sqrt\s?\{\s?\}|mod\s?\{?\s?0(?![0-9.])", latex)
    )


def is_opaque(latex: str) -> bool:
    """Whether the expression has notations that are compared as text: vectors, primes, names in words, residues."""
    return bool(_OPAQUE.search(_LIMIT.sub("", latex))) or bool(_DERIVATIVE_NAME.search(latex))


def _split_outside(text: str, pattern: re.Pattern[str]) -> list[str]:
    """`text` split where `pattern` matches outside of brackets and braces."""
    depths, depth = [], 0
    plain = text.replace("\\{", "\\(").replace("\\}", "\\)").replace("\\(", " (").replace("\\)", " )")
    for character in plain:
        depth -= character in ")]}"
        depths.append(depth)
        depth += character in "([{"
    pieces, start = [], 0
    for match in pattern.finditer(plain):
        if depths[match.start()] == 0:
            pieces.append(text[start : match.start()])
            start = match.end()
    return [*pieces, text[start:]]


_EQUALS = re.compile(r"(?<![<>!:\\])=(?!=)")
_OR = re.compile(
    r"\\text\s?\{\s?or\s?\}|\\mathrm\s?\{\s?or\s?\}|\\lor(?![a-z])|\\vee(?![a-z])|(?<![A-Za-z\\])or(?![A-Za-z])|\\cup(?![a-z])"
)
_AND = re.compile(r"\\text\s?\{\s?and\s?\}|\\mathrm\s?\{\s?and\s?\}|(?<![A-Za-z\\])and(?![A-Za-z])")
_SEMICOLON = re.compile(r"(?<!\\);")
_COMMA = re.compile(r"(?<!\\),(?!\s?[A-Za-z]\s?\\in\b)")


def sides(latex: str) -> list[str]:
    """The sides of an equation or a chain of equations; one for an expression."""
    return [side.strip() for side in _split_outside(latex, _EQUALS)]


def split_list(latex: str) -> tuple[list[str], bool]:
    """The items of a list that is not in brackets, and whether their order counts. One item for anything else."""
    for pattern, is_ordered in ((_OR, False), (_AND, False), (_SEMICOLON, True), (_COMMA, True)):
        items = [item.strip() for item in _split_outside(latex, pattern)]
        if len(items) > 1 and all(items) and "\\in" not in latex and "\\cup" not in latex:
            return items, is_ordered
    return [latex], True


def is_nameable(latex: str) -> bool:
    """Whether the left side of an equation is the quantity in question, so that the right side alone answers it."""
    text = normal(latex)
    if re.fullmatch(
        r"(?:\\[A-Za-z]+|[A-Za-z])(?:_(?:[A-Za-z0-9]|\{[^{}]{1,20}\}|\\[a-z]+))?'{0,3}(?:\([^()]{1,20}\))?", text
    ):
        return True
    if _DERIVATIVE_NAME.search(latex) and _DERIVATIVE_NAME.fullmatch(latex.strip()):
        return True
    if re.search(
        r"\\(?:int|sum|prod|lim|det|arg|angle|measuredangle|binom|max|min|gcd|lcm|overline|tr|rank|dim)(?![a-zA-Z])",
        text,
    ):
        return True
    if re.fullmatch(r"\|[^|=]{1,20}\||[PE][(\[][^=]{1,40}[)\]]", text):
        return True
    return not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text))  # 2^5


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval: LaTeX of its ends, empty at infinity, and whether each end belongs to it."""

    low: str
    high: str
    closed: tuple[bool, bool]
    name: str = ""


_RELATION = re.compile(r"\\(?:leq|geq|lt|gt)(?![a-zA-Z])|[<>]")
_INFINITE = re.compile(r"([-+]?)\s?\\infty")
_BUILDER = re.compile(r"\\\{([A-Za-z])(?:\\in\\mathbb\{?R\}?)?[|:](.+)\\\}")
_MEMBER = re.compile(r"([A-Za-z])\\in(?![a-z])")


def is_plain_relation(latex: str) -> bool:
    """Whether the text is an inequality."""
    return bool(_RELATION.search(normal(latex)))


def as_intervals(latex: str, *, may_be_point: bool = False) -> list[Interval] | None:
    """The union of intervals that the text states in any notation; None for anything else.

    Two plain ends in round brackets are also a point: they are an interval only if `may_be_point`.
    """
    text = normal(latex)
    built = _BUILDER.fullmatch(text)
    name = ""
    if built:
        name, text = built[1], built[2]
    elif member := _MEMBER.match(text):
        name, text = member[1], text[member.end() :]
    pieces = [piece.strip() for piece in _split_outside(text, _OR)]
    found = [_interval(piece, may_be_point=may_be_point or len(pieces) > 1) for piece in pieces]
    if not all(found):
        return None
    intervals = [each for each in found if each is not None]
    names = {each.name for each in intervals if each.name} | ({name} - {""})
    if len(names) > 1:
        return None
    one = next(iter(names), "")
    return [Interval(each.low, each.high, each.closed, one) for each in intervals]


def _interval(text: str, *, may_be_point: bool) -> Interval | None:
    bracketed = re.fullmatch(r"([(\[])(.+)([)\]])", text)
    if bracketed and not _RELATION.search(text):
        ends = _split_outside(bracketed[2], _COMMA)
        if len(ends) != 2:
            return None
        low, high = (_end(end) for end in ends)
        closed = (bracketed[1] == "[", bracketed[3] == "]")
        if low is None or high is None:
            return None
        if low and high and closed == (False, False) and not may_be_point:
            return None
        if (not low and not ends[0].startswith("-")) or (not high and ends[1].startswith("-")):
            return None
        return Interval(low, high, closed)
    return _from_relation(text)


def _end(text: str) -> str | None:
    """An end of an interval; empty for infinity."""
    if _INFINITE.fullmatch(text):
        return ""
    return None if "infty" in text or not text else text


def _from_relation(text: str) -> Interval | None:
    signs = list(_RELATION.finditer(text))
    parts = [part.strip() for part in _RELATION.split(text)]
    if not 1 <= len(signs) <= 2 or not all(parts):
        return None
    is_less = ["l" in sign[0] or sign[0] == "<" for sign in signs]
    is_closed = ["eq" in sign[0] for sign in signs]
    if len(signs) == 2:
        if is_less[0] != is_less[1] or not re.fullmatch(r"[A-Za-z]|\\[a-z]+", parts[1]):
            return None
        low, high = (parts[0], parts[2]) if is_less[0] else (parts[2], parts[0])
        closed = (is_closed[0], is_closed[1]) if is_less[0] else (is_closed[1], is_closed[0])
        return _ranged(low, high, closed, parts[1])
    name_first = re.fullmatch(r"[A-Za-z]|\\(?:alpha|beta|gamma|theta|lambda|mu)", parts[0])
    name, bound, is_below = (parts[0], parts[1], is_less[0]) if name_first else (parts[1], parts[0], not is_less[0])
    if not re.fullmatch(r"[A-Za-z]|\\(?:alpha|beta|gamma|theta|lambda|mu)", name) or name in bound:
        return None
    if is_below:
        return _ranged("-\\infty", bound, (False, is_closed[0]), name)
    return _ranged(bound, "\\infty", (is_closed[0], False), name)


def _ranged(low: str, high: str, closed: tuple[bool, bool], name: str) -> Interval | None:
    ends = _end(low), _end(high)
    if ends[0] is None or ends[1] is None:
        return None
    return Interval(ends[0], ends[1], closed, name)
