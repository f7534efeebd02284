"""Whether a critique gives the reference answer away, which makes the critic a second solver.

Decided by patterns alone, in this process and within milliseconds, without sympy and child processes. The result is a
lower bound: a formula that is written in another way than the reference is missed.
"""

import re
from functools import lru_cache

from gadfly.errors import UnreadableReference
from gadfly.grading.answers import extract_answer
from gadfly.grading.kinds import Answer, Choice, Reference, Symbolic, YesNo, classify_reference, compare
from gadfly.grading.numbers import Number, Unread, values_in
from gadfly.grading.text import SIZES, tidy, unlatex
from gadfly.verdict import parse_critique


def leaks_gold(critique: str, *, question: str, response: str, reference: str) -> bool:
    """Whether `critique`, of `response` to `question`, gives away the answer in `reference`.

    It does if it states the answer as its own (`the answer should be 21`, at its end or in its final explanation), or
    if it contains the answer anywhere and neither question nor response does: a quotation gives nothing away. The
    letter of a choice, yes and no only count when stated, since every text contains them. A reference that is no
    answer to a question of mathematics, such as a query or JSON, counts where all of it is quoted.
    """
    try:
        gold = classify_reference(reference)
    except UnreadableReference:
        written = _written(reference.strip())
        quoted, known = _plain(tidy(critique)), _plain(tidy(f"{question}\n{response}"))
        return written.search(quoted) is not None and written.search(known) is None
    if _states(critique, gold) or _states(parse_critique(critique).explanation, gold):
        return True
    if isinstance(gold.answer, Choice | YesNo):
        return False
    return _holds(critique, gold) and not _holds(f"{question}\n{response}", gold)


def _states(text: str, gold: Reference) -> bool:
    if not text:
        return False
    stated = extract_answer(text, gold)
    return not isinstance(stated, Unread) and _same(gold.answer, stated)


def _same(gold: Answer, stated: Answer) -> bool:
    # Formulas are compared as text: sympy, which could compare their values, may not terminate.
    return gold == stated if isinstance(gold, Symbolic) else compare(gold, stated) is True


def _holds(text: str, gold: Reference) -> bool:
    text = tidy(text)
    if isinstance(gold.answer, Number):
        return gold.answer.value in values_in(unlatex(text))
    return _written(gold.text).search(_plain(text)) is not None


@lru_cache(maxsize=1024)
def _written(gold: str) -> re.Pattern[str]:
    """A pattern for the gold as a whole word, with any spacing."""
    word = r"\s*".join(map(re.escape, "".join(_plain(tidy(gold)).split())))
    return re.compile(rf"(?<![A-Za-z0-9]){word}(?![A-Za-z0-9])", re.IGNORECASE)


def _plain(text: str) -> str:
    return SIZES.sub("", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))
