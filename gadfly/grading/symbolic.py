"""Symbolic answers, by math-verify and sympy.

Importing this takes seconds, so only `gadfly.grading.kinds` does it, for the first reference that needs it. A call
may never return, or use all memory: text from outside is compared in the child process of `gadfly.grading.process`.
"""

import contextlib
import logging
import re
from functools import lru_cache
from typing import Any

import math_verify
import sympy  # type: ignore[import-untyped]
from latex2sympy2_extended.logic import And

# It warns once that its own limit is off. That limit is a signal; ours is the death of the process.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)

_CONFIG = [math_verify.LatexExtractionConfig(boxed_match_priority=-1)]
# Of these it reads a part or the opposite: primes, transposes, letters in other type, dots, and the lower sign of two.
_HALF_READ = re.compile(r"'|\\prime|\^\{?T\b|\\(?:math|text|operatorname|boldsymbol)|\\[lc]?dots|\\approx|\\mp")
_MIXED = re.compile(r"[0-9]\\frac")  # a mixed number or a product, which cannot be told
_SHAPES = (
    ("equation", sympy.Eq),
    ("relation", (sympy.core.relational.Relational, And)),
    ("set", (sympy.Set, sympy.Tuple)),
    ("matrix", sympy.MatrixBase),
)


def is_readable(latex: str) -> bool:
    """Whether `latex` is one expression with a value.

    Does to it what a comparison will do, so that a reference that hangs is found out before any answer is blamed.
    """
    expression = _parse(latex)
    if expression is None:
        return False
    try:
        # What cannot be simplified can still be compared. Any other error is the row's, and logged.
        with contextlib.suppress(TypeError, ValueError, NotImplementedError, AttributeError):
            sympy.simplify(expression.doit())
            sympy.N(expression, 50)
    except ArithmeticError:  # x modulo 0, cot 0
        return False
    return True


def is_same(reference: str, answer: str) -> bool:
    """math-verify's judgement on two LaTeX expressions, behind gates against what it grants and we do not.

    It reads (1,2) as an interval that equals {1,2}, folds the case of variables, takes some for units and drops them
    as it does degree signs, reads some notations in part, and takes the right side of any equation for its value.
    """
    left, right = (re.sub(r"\s+", "", latex) for latex in (reference, answer))
    if left == right:
        return True
    if _brackets(left) != _brackets(right) or left.count("circ") != right.count("circ"):
        return False
    if _HALF_READ.search(left + " " + right) or bool(_MIXED.search(left)) != bool(_MIXED.search(right)):
        return False
    ours, theirs = _names(reference), _names(answer)
    other_case = {name[:2].swapcase() + name[2:] for name in ours} - ours  # \Delta of \delta, X of x
    if other_case & theirs or _variables(ours) != _variables(theirs):
        return False
    gold, found = _parse(reference), _parse(answer)
    if gold is None or found is None:
        return False
    shapes = (_shape(gold), _shape(found))
    if shapes[0] != shapes[1]:
        equation = next((side for side in (gold, found) if isinstance(side, sympy.Eq)), None)
        if equation is None or not equation.lhs.is_Symbol or "value" not in shapes:
            return False
    same = math_verify.verify(gold, found, float_rounding=30, numeric_precision=50, timeout_seconds=None)
    if same and shapes == ("value", "value"):
        return (gold.doit() - found.doit()).is_zero is not False  # it takes any difference below 10^-50 for none
    return bool(same)


@lru_cache(maxsize=512)
def _parse(latex: str) -> Any | None:
    """The expression, its decimals made exact; None when it is none or has no value."""
    try:
        found = math_verify.parse(f"${latex}$", _CONFIG, fallback_mode="no_fallback", parsing_timeout=None)
        if len(found) != 1 or not isinstance(found[0], (sympy.Basic, sympy.MatrixBase)):
            return None
        expression = found[0]
        exact = {number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)}
        expression = expression.subs(exact) if exact else expression
        return None if expression.has(sympy.nan, sympy.zoo) else expression
    except MemoryError:
        raise
    except Exception:  # the parser promises no exception types, and this is text that anyone may have written
        return None


def warm_up() -> None:
    """Fills the caches of parser and sympy, so that the first comparison takes no longer than the others."""
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
