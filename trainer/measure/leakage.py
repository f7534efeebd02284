"""Does a critique give the reference answer away? Then the critic has become a second solver.

Decided by pattern work alone, in this process, within milliseconds: no sympy and no child process. So it is a lower
bound: a formula that is written in another way than the reference passes unseen.
"""

import re
from functools import lru_cache

from gadfly.grading.answers import extract_answer
from gadfly.grading.kinds import Answer, Choice, Reference, Symbolic, YesNo, classify_reference, is_same
from gadfly.grading.numbers import Number, Unread, values_in
from gadfly.grading.text import SIZES, tidy, unlatex
from gadfly.verdict import parse_critique


def leaks_gold(critique: str, *, question: str, response: str, reference: str) -> bool:
    """Whether `critique`, of `response` to `question`, holds the answer that `reference` states.

    It does when it states it as its own answer (`the answer should be 21`, at its end or in its final explanation), or
    when it holds it anywhere and neither question nor response does: what a critic quotes gives nothing away. A letter
    of a choice, yes and no only count when stated, since every text holds them.

    Raises:
        UnreadableReference: the reference states no answer.
    """
    gold = classify_reference(reference)
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
    # Two formulas are compared as they are written: whether they are equal is for sympy, which may take for ever.
    return gold == stated if isinstance(gold, Symbolic) else is_same(gold, stated)


def _holds(text: str, gold: Reference) -> bool:
    text = tidy(text)
    if isinstance(gold.answer, Number):
        return gold.answer.value in values_in(unlatex(text))
    return _written(gold.text).search(_plain(text)) is not None


@lru_cache(maxsize=1024)
def _written(gold: str) -> re.Pattern[str]:
    """The gold as a whole word, however it is spaced."""
    word = r"\s*".join(map(re.escape, "".join(_plain(tidy(gold)).split())))
    return re.compile(rf"(?<![A-Za-z0-9]){word}(?![A-Za-z0-9])", re.IGNORECASE)


def _plain(text: str) -> str:
    return SIZES.sub("", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))
