"""The verdicts of a critique and of its steps, as stated in the text.

The shape of a critique is that of Critique-RL's released prompts (arXiv 2510.24320): per step a step sentence, its
correctness and an explanation; then once the correctness of the final answer and an explanation. Only the final verdict
counts, and only when there is exactly one: two verdicts are hedging, which must not be rewarded.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache


class Verdict(StrEnum):
    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNPARSED = "unparsed"


class VerdictSource(StrEnum):
    """The source of a reported verdict."""

    STATED = "stated"  # the critique has exactly one final verdict line
    READ = "read"  # it has not, and the likelier of the two verdict tokens was read from the engine
    NONE = "none"  # neither: the verdict is UNPARSED


VERDICT_FIELD = "Correctness of the final answer"
STEP_FIELD = "Step sentence"
STEP_VERDICT_FIELD = "Correctness of the step"
EXPLANATION_FIELD = "Explanation"

_MEANING = {
    "correct": Verdict.CORRECT,
    "right": Verdict.CORRECT,
    "wrong": Verdict.INCORRECT,
    "incorrect": Verdict.INCORRECT,
}


def _field(name: str) -> str:
    # Bounded repeats: a line of 50,000 asterisks must not take quadratic time.
    words = r"[ \t]+".join(map(re.escape, name.split()))
    return rf"[ \t]{{0,40}}(?:[-*#>][ \t]{{0,8}}){{0,8}}{words}[ \t]{{0,8}}\*{{0,3}}[ \t]{{0,8}}:[ \t]*\*{{0,3}}[ \t]*"


# Any line that starts with the verdict field: a second one counts even if it names no verdict.
_VERDICT_LINE = re.compile(rf"^{_field(VERDICT_FIELD)}(?P<word>[^\n]*)$", re.IGNORECASE | re.MULTILINE)
_FIELD_LINE = re.compile(
    rf"^(?:(?P<step>{_field(STEP_FIELD)})|(?P<judged>{_field(STEP_VERDICT_FIELD)})"
    rf"|(?P<final>{_field(VERDICT_FIELD)})|(?P<explained>{_field(EXPLANATION_FIELD)}))",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Step:
    """One judged step. `text`, `verdict_text` and `explanation` are exact slices of the critique, outer space cut."""

    text: str
    verdict: Verdict
    explanation: str


@dataclass(frozen=True, slots=True)
class ParsedCritique:
    """A parsed critique.

    `verdict_end` is the offset after the verdict field's colon in the only final verdict line, None without one: the
    critique up to there is the context for the probability of either verdict.
    """

    steps: tuple[Step, ...]
    verdict: Verdict
    explanation: str
    verdict_end: int | None


@dataclass(frozen=True, slots=True)
class VerdictWords:
    """The two words or phrases that name the verdicts of a prompt set.

    Where both are of the usual ones (Correct, Right, Wrong, Incorrect), all four are read; else these two alone.
    """

    correct: str
    incorrect: str

    @property
    def are_usual(self) -> bool:
        return _MEANING.get(_plain(self.correct)) is Verdict.CORRECT and (
            _MEANING.get(_plain(self.incorrect)) is Verdict.INCORRECT
        )

    def read(self, text: str) -> Verdict:
        """The verdict named by the rest of a verdict line. Case, marks and white space around it are ignored."""
        word = _plain(text)
        if self.are_usual:
            return _MEANING.get(word, Verdict.UNPARSED)
        if word == _plain(self.correct):
            return Verdict.CORRECT
        return Verdict.INCORRECT if word == _plain(self.incorrect) else Verdict.UNPARSED

    @property
    def problem(self) -> str | None:
        """Why the two cannot be told apart in a critique, with what to do; None if they can."""
        for word in (self.correct, self.incorrect):
            if not _plain(word) or "\n" in word or len(word) > _LONGEST_WORD:
                return (
                    f"{word!r} is no verdict word: use a word or phrase of at most {_LONGEST_WORD} letters on one line"
                )
        if _plain(self.correct) == _plain(self.incorrect):
            return f"both verdicts have the word {self.correct!r}: use two words"
        for word, verdict in ((self.correct, Verdict.CORRECT), (self.incorrect, Verdict.INCORRECT)):
            if _MEANING.get(_plain(word), verdict) is not verdict:
                return f"{word!r} as the word for {verdict} says the opposite of what it means: exchange the two"
        return None


_LONGEST_WORD = 60
USUAL_WORDS = VerdictWords("Correct", "Incorrect")


def _plain(text: str) -> str:
    return " ".join(text.strip().strip("*_`\"'.!()[]").casefold().split())


def count_verdicts(text: str) -> int:
    """The number of final verdict lines in a critique. One that names no verdict counts: more than one is hedging."""
    return len(_VERDICT_LINE.findall(text))


@lru_cache(maxsize=256)  # each critique is read twice: for its verdict, and for the answer to its caller
def parse_critique(text: str, words: VerdictWords = USUAL_WORDS) -> ParsedCritique:
    """Read steps and the final verdict of a critique, whose verdicts have these words.

    A text without exactly one final verdict line that names exactly one verdict is `Verdict.UNPARSED`; steps are read
    regardless, as far as they follow the format.
    """
    fields = list(_FIELD_LINE.finditer(text))
    ends = [*(match.start() for match in fields), len(text)][1:]
    steps: list[Step] = []
    sentence: str | None = None
    judged = Verdict.UNPARSED
    explanation = ""
    final_explanation = ""
    in_final = False

    def close_step() -> None:
        nonlocal sentence, judged, explanation
        if sentence is not None:
            steps.append(Step(text=sentence, verdict=judged, explanation=explanation))
        sentence, judged, explanation = None, Verdict.UNPARSED, ""

    for match, end in zip(fields, ends, strict=True):
        value = text[match.end() : end].strip()
        match match.lastgroup:
            case "step":
                close_step()
                sentence, in_final = value, False
            case "judged":
                judged = words.read(value.partition("\n")[0])
            case "final":
                close_step()
                in_final = True
            case "explained":
                if in_final:
                    final_explanation = value
                else:
                    explanation = value
    close_step()

    lines = list(_VERDICT_LINE.finditer(text))
    only = lines[0] if len(lines) == 1 else None
    verdict = words.read(only["word"]) if only else Verdict.UNPARSED
    return ParsedCritique(
        steps=tuple(steps),
        verdict=verdict,
        explanation=final_explanation,
        verdict_end=text.index(":", only.start()) + 1 if only and verdict is not Verdict.UNPARSED else None,
    )
