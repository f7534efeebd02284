"""Symbolic answers, by math-verify and sympy.

Importing this module takes seconds, so only `gadfly.grading.kinds` does it, for the first reference that needs it. A
call may never return, or use all memory: text from outside is compared in the child process of
`gadfly.grading.process`.
"""

import contextlib
import logging
import re
from functools import lru_cache
from typing import Any

import math_verify
import sympy  # type: ignore[import-untyped]
from latex2sympy2_extended.logic import And

# math-verify warns once that its own limit, a signal, is off. Here the whole process is killed instead.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)

_CONFIG = [math_verify.LatexExtractionConfig(boxed_match_priority=-1)]
# Notations of which it reads a part or the opposite: primes, transposes, other typefaces, dots, the lower of two signs.
_HALF_READ = re.compile(r"'|\\prime|\^\{?T\b|\\(?:math|text|operatorname|boldsymbol)|\\[lc]?dots|\\approx|\\mp")
_MIXED = re.compile(r"[0-9]\\frac")  # a mixed number or a product: ambiguous
_SHAPES = (
    ("equation", sympy.Eq),
    ("relation", (sympy.core.relational.Relational, And)),
    ("set", (sympy.Set, sympy.Tuple)),
    ("matrix", sympy.MatrixBase),
)


def is_readable(latex: str) -> bool:
    """Whether `latex` is one expression with a value.

    Performs the operations of a comparison, so that a reference that hangs is detected before any answer is blamed.
    """
    expression = _parse(latex)
    if expression is None:
        return False
    try:
        # An expression that cannot be simplified can still be compared. Other errors concern the row, and are logged.
        with contextlib.suppress(TypeError, ValueError, NotImplementedError, AttributeError):
            sympy.simplify(expression.doit())
            sympy.N(expression, 50)
    except ArithmeticError:  # x modulo 0, cot 0
        return False
    return True


def is_same(reference: str, answer: str) -> bool:
    """math-verify's judgement on two LaTeX expressions, with stricter checks where it is too lenient.

    It reads (1,2) as an interval equal to {1,2}, ignores the case of variables, drops degree signs and variables that
    it takes for units, reads some notations in part, and takes the right side of any equation for its value.
    """
    left, right = (re.sub(r"\s+", "", latex) for latex in (reference, answer))
    if left == right:
        return True
    if _brackets(left) != _brackets(right) or left.count("circ") != right.count("circ"):
        return False
    if _HALF_READ.search(left + " " + right) or bool(_MIXED.search(left)) != bool(_MIXED.search(right)):
        return False
    allowed, used = _names(reference), _names(answer)
    other_case = {name[:2].swapcase() + name[2:] for name in allowed} - allowed  # \Delta of \delta, X of x
    if other_case & used or _variables(allowed) != _variables(used):
        return False
    gold, stated = _parse(reference), _parse(answer)
    if gold is None or stated is None:
        return False
    shapes = (_shape(gold), _shape(stated))
    if shapes[0] != shapes[1]:
        equation = next((side for side in (gold, stated) if isinstance(side, sympy.Eq)), None)
        if equation is None or not equation.lhs.is_Symbol or "value" not in shapes:
            return False
    same = math_verify.verify(gold, stated, float_rounding=30, numeric_precision=50, timeout_seconds=None)
    if same and shapes == ("value", "value"):
        return (gold.doit() - stated.doit()).is_zero is not False  # verify ignores any difference below 10^-50
    return bool(same)


@lru_cache(maxsize=512)
def _parse(latex: str) -> Any | None:
    """The expression, with exact decimals; None when the text is not one, or has no value."""
    try:
        expressions = math_verify.parse(f"${latex}$", _CONFIG, fallback_mode="no_fallback", parsing_timeout=None)
        if len(expressions) != 1 or not isinstance(expressions[0], (sympy.Basic, sympy.MatrixBase)):
            return None
        expression = expressions[0]
        exact = {number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)}
        expression = expression.subs(exact) if exact else expression
        return None if expression.has(sympy.nan, sympy.zoo) else expression
    except MemoryError:
        raise
    except Exception:  # the parser documents no exception types, and the text comes from outside
        return None


def warm_up() -> None:
    """Fills the caches of parser and sympy, so that the first comparison is as fast as the others."""
    for expression in ("2\\sqrt{3}", "\\frac{\\pi}{4}", "x^2 + 2x + 1", "[0, \\infty)", "\\{1, x\\}", "y = 2x"):
        is_readable(expression)
    is_same("2\\sqrt{3}", "\\sqrt{12}")


def _shape(expression: Any) -> str:
    return next((name for name, kind in _SHAPES if isinstance(expression, kind)), "value")


def _names(latex: str) -> set[str]:
    """The letters and commands of an expression, without the name that it may be assigned to."""
    latex = re.sub(r"^\s*[A-Za-z]\s*=|\\(?:begin|end)\{[a-z]+\*?\}", "", latex)
    return set(re.findall(r"\\[A-Za-z]+|[A-Za-z]", latex))


def _variables(names: set[str]) -> set[str]:
    return {name for name in names if len(name) == 1} - {"e", "i"}


def _brackets(latex: str) -> str:
    latex = latex.replace("\\{", "{").replace("\\}", "}")
    pair = latex[:1] + latex[-1:]
    is_list = len(latex) > 1 and pair[0] in "([{" and pair[1] in ")]}" and "," in latex
    return pair if is_list else ""
