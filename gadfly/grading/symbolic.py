"""Symbolic answers, by math-verify and sympy.

Importing this module takes seconds, so only `gadfly.grading.kinds` does it, for the first reference that needs it. A
call may never return, or use all memory: text from outside is compared in the child process of
`gadfly.grading.process`.

math-verify parses; equality is decided here, because it takes the right side of an equation whose left side it
can compute for any other, and reads vectors, primes and other typefaces in part.
"""

import contextlib
import logging
import re
from functools import lru_cache
from itertools import pairwise
from typing import Any

import math_verify
import sympy  # type: ignore[import-untyped]
from latex2sympy2_extended.logic import And

from gadfly.grading.latex import (
    Interval,
    as_intervals,
    is_balanced,
    is_nameable,
    is_opaque,
    is_plain_relation,
    normal,
    sides,
    split_list,
)

# math-verify warns once that its own limit, a signal, is off. Here the whole process is killed instead.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)
_log = logging.getLogger(__name__)

_CONFIG = [math_verify.LatexExtractionConfig(boxed_match_priority=-1)]
_MIXED = re.compile(r"[0-9]\\frac")  # a mixed number or a product: ambiguous
_SHAPES = (
    ("equation", sympy.Eq),
    ("relation", (sympy.core.relational.Relational, And)),
    ("set", (sympy.Set, sympy.Tuple)),
    ("matrix", sympy.MatrixBase),
)
_PRECISION = 80  # digits of a numeric comparison
_EQUAL = sympy.Float(10, _PRECISION) ** -60  # relative
_ROUNDED = sympy.Rational(1, 1000)  # relative: nearer than this a decimal may be meant for the value
# Values of the variables, in order of their names: first positive ones, then of both signs.
_POINTS = (
    tuple(sympy.Rational(n, 7) for n in (11, 5, 17, 3, 23, 13, 29)),
    tuple(sympy.Rational(n, 11) for n in (5, 19, 7, 31, 3, 37, 13)),
    tuple(sympy.Rational(n, 13) for n in (31, 8, 43, 19, 5, 29, 9)),
    tuple(sympy.Rational(n, 9) for n in (-11, 5, -17, 23, -13, 29, -7)),
    tuple(sympy.Rational(n, 8) for n in (-5, -19, -7, -31, -3, -37, -13)),
)
_POSITIVE_POINTS = 3
_TO_DO = re.compile(r"\\(?:int|sum|prod|lim)(?![a-zA-Z])|\\frac\s?\{\s?d\s?\}")


class _Undefined(Exception):
    """The expression has no value, such as 1/0."""


def is_readable(latex: str) -> bool:
    """Whether answers can be compared with `latex`: an expression with a value, or a notation compared as it stands.

    Performs the operations of a comparison, so that a reference that hangs is detected before any answer is blamed.
    """
    try:
        return is_balanced(latex) and all(_is_readable_part(part) for part in _parts(latex))
    except _Undefined:
        return False


def _parts(latex: str) -> list[str]:
    """What is compared separately: the ends of intervals, the sides of equations, the items of lists."""
    intervals = as_intervals(latex)
    if intervals:
        return [end for interval in intervals for end in (interval.low, interval.high) if end]
    return [side for item in split_list(latex)[0] for side in sides(item)]


def _is_readable_part(latex: str) -> bool:
    expression = _parse(latex)
    if expression is None:
        return True  # compared as it stands
    try:
        # An expression that cannot be simplified can still be compared. Other errors concern the row, and are logged.
        with contextlib.suppress(TypeError, ValueError, NotImplementedError, AttributeError):
            if isinstance(expression, sympy.Expr):
                done = _done(expression)
                if done.has(sympy.nan, sympy.zoo):
                    return False  # cot 0
                _numeric(done, _POINTS[0])
            else:  # math-verify compares sets, matrices and relations
                sympy.simplify(expression.doit())
                sympy.N(expression, 50)
    except ArithmeticError:  # x modulo 0, cot 0
        return False
    return True


def compare(reference: str, answer: str) -> bool | None:
    """Whether two LaTeX answers are the same; None where no rule can tell."""
    if normal(reference) == normal(answer):
        return True
    try:
        intervals = as_intervals(reference), as_intervals(answer, may_be_point=True)
        if intervals[0] and intervals[1]:
            return _same_intervals(intervals[0], intervals[1])
        if intervals[0] or is_plain_relation(answer):
            return None
        return _compare_items(reference, answer)
    except _Undefined:
        return None


def _compare_items(reference: str, answer: str) -> bool | None:
    items, is_ordered = split_list(reference)
    stated, _ = split_list(answer)
    if len(items) == 1 and len(stated) == 1:
        return _compare_one(items[0], stated[0])
    if len(items) != len(stated):
        return None
    if is_ordered:
        same = _all(_compare_one(left, right) for left, right in zip(items, stated, strict=True))
        is_other_order = same is False and all(any(_compare_one(item, each) for each in stated) for item in items)
        return None if is_other_order else same
    left_over = list(stated)
    for item in items:
        found = next((each for each in left_over if _compare_one(item, each)), None)
        if found is None:
            return None
        left_over.remove(found)
    return True


def _all(outcomes: Any) -> bool | None:
    found = list(outcomes)
    return False if False in found else None if None in found else True


def _compare_one(reference: str, answer: str) -> bool | None:
    left, right = sides(reference), sides(answer)
    if len(left) == 1 and len(right) == 1:
        return _compare_values(reference, answer)
    if len(left) == 2 and len(right) == 1:
        if not is_nameable(left[0]):
            return None
        value, degrees = right[0], r"\^\{?\\circ\}?\s*$"
        if re.search(degrees, left[1]) and re.fullmatch(r"\s*-?[0-9.]+\s*", value):
            return _compare_values(re.sub(degrees, "", left[1]), value)
        return _compare_values(left[1], value)
    if len(left) < 2:
        return None
    return _same_equation(left, right)


def _same_equation(reference: list[str], answer: list[str]) -> bool | None:
    """Whether two equations, or chains of them, say the same."""
    for one, other in pairwise(answer[1:]):
        if _compare_values(one, other) is not True:
            return None
    first, last = answer[0], answer[-1]
    for name, value in ((first, last), (last, first)):
        if normal(reference[0]) == normal(name):
            return _compare_values(reference[-1], value)
    if normal(reference[-1]) in (normal(first), normal(last)) and not _is_constant(reference[-1]):
        return _compare_values(reference[0], last if normal(reference[-1]) == normal(first) else first)
    if all(map(_is_constant, (reference[0], first))):
        if _compare_values(reference[0], first) is True and _compare_values(first, last) is True:
            return _compare_values(reference[-1], last)
        return None
    return _same_curve((reference[0], reference[-1]), (first, last))


def _is_constant(latex: str) -> bool:
    expression = None if is_opaque(latex) else _parse(latex)
    return expression is not None and not getattr(expression, "free_symbols", True)


def _same_curve(reference: tuple[str, str], answer: tuple[str, str]) -> bool | None:
    """Whether two equations between polynomials have the same solutions: their differences are in a constant ratio."""
    if any(is_opaque(side) for side in (*reference, *answer)) or _names_of(*reference) != _names_of(*answer):
        return None
    if _is_symbol(reference[0]) and _is_constant(reference[1]) and not any(map(_is_symbol, answer)):
        return None  # x = 4 asks for the solution, which 2x = 8 is not yet
    parsed: list[Any] = [_parse(side) for side in (*reference, *answer)]
    if any(not isinstance(side, sympy.Expr) for side in parsed):
        return None
    left, right = parsed[0] - parsed[1], parsed[2] - parsed[3]
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    if not symbols or not (left.is_polynomial(*symbols) and right.is_polynomial(*symbols)):
        return None
    ratio = sympy.cancel(left / right) if not right.is_zero else sympy.S.Zero
    if ratio.is_number and ratio.is_zero is False:
        return True
    degrees = [sympy.Poly(side, *symbols).total_degree() for side in (left, right)]
    return False if degrees == [1, 1] else None


def _is_symbol(latex: str) -> bool:
    return bool(re.fullmatch(r"\s*[A-Za-z]\s*", latex))


def _same_intervals(reference: list[Interval], answer: list[Interval]) -> bool | None:
    """Whether two unions of intervals are the same; the ends are compared one by one, in any order of intervals."""
    names = {interval.name for interval in (*reference, *answer)} - {""}
    if len(names) > 1:
        return None
    if len(reference) != len(answer):
        return None
    left_over = list(answer)
    for interval in reference:
        same = next((other for other in left_over if _same_interval(interval, other)), None)
        if same is None:
            return False if len(reference) == 1 and _same_interval(interval, answer[0]) is False else None
        left_over.remove(same)
    return True


def _same_interval(one: Interval, other: Interval) -> bool | None:
    ends = []
    for low_or_high in ("low", "high"):
        left, right = getattr(one, low_or_high), getattr(other, low_or_high)
        ends.append(left == right if not left or not right else _compare_values(left, right))
    if one.closed != other.closed:
        return False
    return _all(ends)


def _compare_values(reference: str, answer: str) -> bool | None:
    """Whether two expressions without an equals sign have the same value."""
    left, right = normal(reference), normal(answer)
    if left == right:
        return True
    if is_opaque(reference) or is_opaque(answer):
        return None
    if _brackets(left) != _brackets(right) or left.count("circ") != right.count("circ"):
        return None
    if bool(_MIXED.search(left)) != bool(_MIXED.search(right)):
        return None
    if _names_of(reference) != _names_of(answer):
        return _of_other_names(reference, answer)
    if _TO_DO.search(answer) and not _TO_DO.search(reference):
        return None  # the question, repeated
    gold, stated = _parse(reference), _parse(answer)
    if gold is None or stated is None:
        return None
    letters = [[each for each in side.free_symbols if str(each) == "i"] for side in (gold, stated)]
    if bool(letters[0]) != bool(letters[1]):  # the imaginary unit on one side, and no index on the other
        (letter,) = letters[0] or letters[1]
        gold, stated = gold.subs(letter, sympy.I), stated.subs(letter, sympy.I)
    shapes = (_shape(gold), _shape(stated))
    if shapes == ("value", "value"):
        return _same_number(_done(gold), _done(stated))
    if shapes[0] != shapes[1]:
        return None
    same = math_verify.verify(gold, stated, float_rounding=30, numeric_precision=50, timeout_seconds=None)
    if same:
        return True
    return False if shapes[0] in ("set", "matrix") else None


def _of_other_names(reference: str, answer: str) -> bool | None:
    """Expressions in other variables. Two are different beyond doubt only where one has none: `2x` is not 3."""
    gold, stated = _parse(reference), _parse(answer)
    if not isinstance(gold, sympy.Expr) or not isinstance(stated, sympy.Expr):
        return None
    done = _done(gold), _done(stated)
    if done[0].free_symbols or done[1].free_symbols:
        return None
    if {name for name in _names_of(reference, answer) if name.islower()} - _bound(reference) - _bound(answer):
        return None  # a variable that the parser dropped
    return _same_number(*done)


def _same_number(gold: Any, stated: Any) -> bool | None:
    """Whether two expressions agree at every point tried. Near ones are neither the same nor different."""
    names = sorted(gold.free_symbols | stated.free_symbols, key=str)
    agrees: list[bool | None] = []
    for number, point in enumerate(_POINTS):
        if not names and number:
            break
        one, other = _numeric(gold, point, names), _numeric(stated, point, names)
        if one is None or other is None:
            agrees.append(None)
            continue
        size = max(abs(one), abs(other))
        near = size == 0 or abs(one - other) <= _EQUAL * size
        if not near and number < _POSITIVE_POINTS:
            is_rounding = not names and abs(one - other) <= _ROUNDED * size and not _are_integers(gold, stated)
            return None if is_rounding else False
        if not near and not (_is_complex(one) and _is_complex(other)):
            return None  # |x| and x
        agrees.append(near)
    return True if agrees and agrees[0] and None not in agrees[:_POSITIVE_POINTS] else None


def _are_integers(*expressions: Any) -> bool:
    return all(expression.is_integer for expression in expressions)


def _is_complex(value: Any) -> bool:
    return bool(abs(sympy.im(value)) > _EQUAL * abs(value))


def _numeric(expression: Any, point: tuple[Any, ...], names: list[Any] | None = None) -> Any | None:
    """The value at a point; None where it has none that sympy finds."""
    if not isinstance(expression, sympy.Expr):
        return None
    symbols = sorted(expression.free_symbols, key=str) if names is None else names
    if len(symbols) > len(point):
        return None
    try:
        value = sympy.N(expression.subs(dict(zip(symbols, point, strict=False))), _PRECISION)
    except (TypeError, ValueError, NotImplementedError, AttributeError):
        return None
    return value if value.is_number and value.is_finite else None


def _done(expression: Any) -> Any:
    """The expression with its integrals, sums and limits worked out, and no derivative of an unknown function."""
    if not isinstance(expression, sympy.Expr):
        return expression
    for derivative in expression.atoms(sympy.Derivative):
        if not set(derivative.variables) & derivative.expr.free_symbols:
            raise _Undefined  # dy/dx, of which sympy would say 0
    return expression.doit()


@lru_cache(maxsize=512)
def _parse(latex: str) -> Any | None:
    """The expression, with exact decimals; None when the text is not one.

    Raises:
        _Undefined: it has no value.
    """
    if is_opaque(latex):
        return None
    try:
        expressions = math_verify.parse(f"${latex}$", _CONFIG, fallback_mode="no_fallback", parsing_timeout=None)
        if len(expressions) != 1 or not isinstance(expressions[0], (sympy.Basic, sympy.MatrixBase)):
            return None
        expression = expressions[0]
        exact = {number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)}
        expression = expression.subs(exact) if exact else expression
        is_defined = not expression.has(sympy.nan, sympy.zoo)
    except MemoryError:
        raise
    except Exception as error:  # the parser documents no exception types, and the text comes from outside
        _log.debug("math-verify cannot read an expression: %s", type(error).__name__)  # not its text, a caller's
        return None
    if not is_defined:
        raise _Undefined
    return expression


def warm_up() -> None:
    """Fills the caches of parser and sympy, so that the first comparison is as fast as the others."""
    for expression in ("2\\sqrt{3}", "\\frac{\\pi}{4}", "x^2 + 2x + 1", "[0, \\infty)", "\\{1, x\\}", "y = 2x"):
        is_readable(expression)
    compare("2\\sqrt{3}", "\\sqrt{12}")


def _shape(expression: Any) -> str:
    return next((name for name, kind in _SHAPES if isinstance(expression, kind)), "value")


def _names_of(*latex: str) -> set[str]:
    """The variables: letters, and commands of Greek ones. Without those that a sum, a limit or an integral binds."""
    text = " ".join(latex)
    bound = _bound(text)
    text = re.sub(r"\\(?:begin|end)\{[a-z]+\*?\}|\\(?:text|mathrm)\{[^{}]*\}", " ", text)
    text = re.sub(r"\\frac\s?\{\s?d\s?(?:\^\{?[0-9]\}?)?\s?\}\s?\{\s?d\s?([A-Za-z])", r"{\1", text)
    if "\\int" in text or "\\frac{d" in text:
        text = re.sub(r"(?<![A-Za-z\\])d(?=\s?[A-Za-z](?![A-Za-z]))", " ", text)
    greek = set(
        re.findall(r"\\(?:alpha|beta|gamma|delta|theta|lambda|mu|omega|phi|psi|rho|sigma|tau|Delta|Omega)\b", text)
    )
    letters = set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", text)))
    return (letters | greek) - {"e", "i"} - bound


def _bound(latex: str) -> set[str]:
    bound = set(re.findall(r"\\(?:sum|prod)\s?(?:\\limits)?_\{?\s?([A-Za-z])\s?=", latex))
    bound |= set(re.findall(r"\\lim\s?(?:\\limits)?_\{?\s?([A-Za-z])\s?\\(?:to|rightarrow)", latex))
    if re.search(r"\\int\s?(?:\\limits)?_", latex):
        bound |= set(re.findall(r"(?<![A-Za-z\\])d\s?([A-Za-z])(?![A-Za-z])", latex))
    return bound


def _brackets(latex: str) -> str:
    latex = latex.replace("\\{", "{").replace("\\}", "}")
    pair = latex[:1] + latex[-1:]
    is_list = len(latex) > 1 and pair[0] in "([{" and pair[1] in ")]}" and "," in latex
    return pair if is_list else ""
