"""Whether the words before an answer deny it, bound it, or make it a part of something larger."""

import re

_MAX_CLAUSE_CHARS = 2_000

# Words and signs that make the number after them a bound, a part of a sum, or not an answer.
DENIED_BEFORE = re.compile(
    r"""\b(?:not|never|cannot|neither|either|without|except|instead|rather|wrong|incorrect|unless|if|doubt|unsure)\b
    |n't\b|\banything\ but\b|\bother\ than\b|[不没非未]|\b(?:nicht|keine?|ne|pas|não|не)\b|\b(?:no|non)\ (?:es|son
        |è|sono)\b|[√<>≤≥±≠]|[+*/×÷^]\s?\(?[$£€]?$|[-—⁻][\s({\[$}]{0,9}$
    |\b(?:than|least|most|between|over|under|above|below|up\ to|exceeds?|within|almost|nearly|modulo?|minus
        |all\ but|said|says?|claim(?:s|ed)?|guess(?:ed|es)?|pages?|chapter|figure|table|equation|question
        |problem|exercise
        |number\ (?:after|before)|sin|cos|tan|ln)(?:\ or\ equal\ to)?\s{0,9}\(?[$£€]?$
    # operations on the number, unless a verb stands between: the sum is 18
    |\b(?:hal(?:f|ves)|thirds?|quarters?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|twice|thrice
        |doubled?|triple|squared?|squares|cubed?|root|logarithm|log|sum|product|difference|ratio|times|plus|factorial
        |opposite|reciprocal|inverse|negative)\b(?!.*?(?:\b(?:is|are|was|were|equals?|makes?|gives?)\b|=))""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_CLAUSE = re.compile(r"[,.;:\n]|\b(?:so|(?<!all )(?<!anything )but|then|therefore|thus|hence)\b", re.IGNORECASE)


def last_clause(text: str) -> str:
    return _CLAUSE.split(text[-_MAX_CLAUSE_CHARS:])[-1]


_VERB = re.compile(
    r"(?<![<>!≠])=|≈|\b(?:is|are|was|were|equals|(?<!or )equal|be|measures?|gives?|yields?|gets?|becomes?"
    r"|makes?|obtains?|(?:has|have)\b"
    r"(?!\s+(?:not|never|no)\b))\b(?!n't)",
    re.IGNORECASE,
)
# A denial of the whole sentence, before its verb. A negation elsewhere belongs to the question.
_SENTENCE_DENIED = re.compile(
    r"""\b(?:not|never|n't|hardly|cannot|would|could|might|may)\s+(?:[a-z]+\s+)?(?:be|equal|give|get|measure|make|yield|become)\s*$
    |\bcan't\s+(?:be|equal)\s*$|n't\s+(?:be|equal|give|make|yield|measure)\s*$
    |(?:\b(?:not|never|hardly)|n't)\s+(?:[a-z]+\s+)?(?:think|believe|say|claim|agree|expect|accept|see|mean|the\ case
        |(?:true|correct|right|clear|certain|sure|possible)\ that)\b
    |\bdoubts?\b|\b(?:mistake|pitfall|misconception|fallacy|common\ error)\b|\b(?:false|untrue|impossible
        |wrong)\ (?:that|to)\b|\bwhether\b|\b(?:cannot|can't|could\ not)\ be\ that\b|\bno\ (?:one|way|reason)\b
        |\bnobody\ (?:gets?|would|could|says?|claims?|thinks?)\b
    |\b(?:wrong|incorrect|false|mistaken|rejected|naive|tempting)\ (?:final\ )?(?:answer|value|result|option
        |choice|guess)\b
    |^\W*(?:if|unless|suppose|assum(?:e|ing)|whether|were)\b""",
    re.VERBOSE | re.IGNORECASE,
)


def is_denied(before: str) -> bool:
    """Whether the words before an answer, in its sentence, deny it, bound it or make it a part of a sum.

    A negation before the verb belongs to the question (`the number that is not prime is 4`), unless it denies the whole
    sentence (`I do not think that it is 4`).
    """
    clause = last_clause(before)
    verbs = list(_VERB.finditer(clause))
    if not verbs:
        return bool(DENIED_BEFORE.search(clause + " "))
    end = verbs[-1].end()
    return bool(DENIED_BEFORE.search(clause[end:] + " ")) or bool(_SENTENCE_DENIED.search(clause[:end]))
