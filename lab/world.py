"""Word problems of chained arithmetic, with answers, critiques and refinements. All are generated from a seed, and each
is right, or wrong in a known way.

    question    Tom has 37 pens. He buys 25 more. He gives away 14. How many pens does he have?
    answer      37 + 25 = 72. 72 - 14 = 58. The answer is 58.
    critique    Step sentence: 37 + 25 = 72.
                Explanation: 37 + 25 = 62.
                Correctness of the step: Wrong
                ...
                Correctness of the final answer: Wrong
    refinement  37 + 25 = 62. 62 - 14 = 48. The answer is 48.

A critique recomputes each step before it judges it: without that, a critic could not reason about its verdict, and
reinforcement would have nothing to strengthen. A step is judged by itself, so a propagated error is named once.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

LARGEST_WRITTEN = 199
"""The largest number in any text, right or wrong."""

LARGE = 55
"""From this number on, a critic that distrusts large numbers may call them wrong."""

_NAMES = (("Tom", "He", "he"), ("Anna", "She", "she"), ("Ben", "He", "he"), ("Mia", "She", "she"))
_THINGS = ("pens", "coins", "eggs", "cards", "books", "stones", "apples", "stamps")
_VERBS = {
    "+": ("buys {n} more", "finds {n} more", "is given {n} more"),
    "-": ("gives away {n}", "loses {n}", "sells {n}"),
    "*": ("then has {n} times as many",),
}


_OPERATION = re.compile(
    r"(?:buys|finds|is given) (?P<plus>\d+) more|(?:gives away|loses|sells) (?P<minus>\d+)"
    r"|then has (?P<times>\d+) times as many"
)
_START = re.compile(r" has (\d+) \w+\.")
_EQUATION = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)\.")


class LabSplit(StrEnum):
    """The origin of a question. The last two are outside the domain of training."""

    IN_DOMAIN = "in_domain"
    LONGER = "longer"  # more steps
    LARGER = "larger"  # larger numbers


@dataclass(frozen=True, slots=True)
class Range:
    """The ranges of a split's questions; all bounds are inclusive."""

    steps: tuple[int, int]
    start: tuple[int, int]
    operand: tuple[int, int]
    largest: int  # largest intermediate value


RANGES = {
    LabSplit.IN_DOMAIN: Range(steps=(2, 3), start=(5, 60), operand=(2, 12), largest=99),
    LabSplit.LONGER: Range(steps=(4, 5), start=(5, 60), operand=(2, 12), largest=99),
    LabSplit.LARGER: Range(steps=(2, 3), start=(5, 60), operand=(13, 25), largest=99),
}


@dataclass(frozen=True, slots=True)
class Operation:
    sign: str
    operand: int

    def apply(self, value: int) -> int:
        match self.sign:
            case "+":
                return value + self.operand
            case "-":
                return value - self.operand
            case "*":
                return value * self.operand
        raise ValueError(self.sign)


@dataclass(frozen=True, slots=True)
class WordProblem:
    """A question and its computation."""

    text: str
    start: int
    operations: tuple[Operation, ...]

    @property
    def answer(self) -> int:
        value = self.start
        for operation in self.operations:
            value = operation.apply(value)
        return value


@dataclass(frozen=True, slots=True)
class Equation:
    """One step of an answer, right or wrong."""

    left: int
    sign: str
    right: int
    result: int

    @property
    def true_result(self) -> int:
        return Operation(self.sign, self.right).apply(self.left)

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {self.right} = {self.result}."


@dataclass(frozen=True, slots=True)
class Judgement:
    """A critique's judgement of one step, with the recomputed step.

    The step is judged correct if both agree, unless it `is_distrusted`. A critic whose verdicts do not follow from its
    numbers gives the verdict itself (`said`).
    """

    step: Equation
    again: Equation
    is_distrusted: bool = False
    said: bool | None = None  # the verdict "Correct", whatever the numbers are

    @property
    def is_correct(self) -> bool:
        return self.said if self.said is not None else self.step == self.again and not self.is_distrusted

    def __str__(self) -> str:
        word = "Correct" if self.is_correct else "Wrong"
        return f"Step sentence: {self.step}\nExplanation: {self.again}\nCorrectness of the step: {word}\n"


def problem(rng: random.Random, split: LabSplit = LabSplit.IN_DOMAIN, *, steps: int | None = None) -> WordProblem:
    """A question of this split, with `steps` steps or any number that the split allows.

    Every intermediate value is positive and at most the split's largest.
    """
    within = RANGES[split]
    name, pronoun, small = rng.choice(_NAMES)
    thing = rng.choice(_THINGS)
    value = start = rng.randint(*within.start)
    operations: list[Operation] = []
    sentences = [f"{name} has {start} {thing}."]
    for _ in range(steps or rng.randint(*within.steps)):
        operation = _operation(rng, value, within)
        value = operation.apply(value)
        operations.append(operation)
        sentences.append(f"{pronoun} {rng.choice(_VERBS[operation.sign]).format(n=operation.operand)}.")
    sentences.append(f"How many {thing} does {small} have?")
    return WordProblem(text=" ".join(sentences), start=start, operations=tuple(operations))


def read_problem(text: str) -> WordProblem:
    """The problem of which `problem` wrote the question.

    Raises:
        ValueError: the text is no such question.
    """
    start, signs = _START.search(text), {"plus": "+", "minus": "-", "times": "*"}
    operations = tuple(
        Operation(signs[name], int(operand))
        for found in _OPERATION.finditer(text)
        for name, operand in found.groupdict().items()
        if operand is not None
    )
    if start is None or not operations:
        raise ValueError(f"this is no question of the lab's world: {text}")
    return WordProblem(text=text, start=int(start[1]), operations=operations)


def read_equation(text: str) -> Equation | None:
    """The first equation in a text; None without one."""
    found = _EQUATION.search(text)
    return None if found is None else Equation(int(found[1]), found[2], int(found[3]), int(found[4]))


def problems(split: LabSplit, count: int, *, seed: int, without: Sequence[str] = ()) -> list[WordProblem]:
    """`count` different questions of a split, without those in `without`."""
    rng = random.Random(f"{split} {seed}")
    known = set(without)
    questions: list[WordProblem] = []
    while len(questions) < count:
        question = problem(rng, split)
        if question.text not in known:
            known.add(question.text)
            questions.append(question)
    return questions


def _operation(rng: random.Random, value: int, within: Range) -> Operation:
    low, high = within.operand
    possible = [
        (sign, smallest, most)
        for sign, smallest, most in (
            ("+", low, min(high, within.largest - value)),
            ("-", low, min(high, value - 1)),
            ("*", 2, min(3, within.largest // value)),
        )
        if smallest <= most
    ]
    # Sums and differences are the hard part; a few products add variety.
    sign, smallest, most = rng.choices(possible, weights=[1 if sign == "*" else 4 for sign, _, _ in possible])[0]
    return Operation(sign, rng.randint(smallest, most))


def solution(equations: Sequence[Equation]) -> str:
    """The text of an answer: its steps and its result."""
    return " ".join(map(str, equations)) + f" The answer is {equations[-1].result}."


def solve(of: WordProblem) -> list[Equation]:
    """The right answer."""
    return slip(random.Random(0), of, share=0.0)


def slip(rng: random.Random, of: WordProblem, *, share: float, wild: bool = False) -> list[Equation]:
    """An answer with an error in each step with probability `share`. Later steps continue from the wrong number.

    A wrong number is `near` the right one, or any number if `wild`. An error that would lead to a number below 1 or
    above `LARGEST_WRITTEN` is not made.
    """
    value = of.start
    equations: list[Equation] = []
    for place, operation in enumerate(of.operations):
        result = operation.apply(value)
        if rng.random() < share:
            wrong = rng.randint(1, RANGES[LabSplit.IN_DOMAIN].largest) if wild else near(rng, result)
            if _stays_writable(wrong, of.operations[place + 1 :]):
                result = wrong
        equations.append(Equation(value, operation.sign, operation.operand, result))
        value = result
    return equations


def _stays_writable(value: int, operations: Sequence[Operation]) -> bool:
    for operation in operations:
        value = operation.apply(value)
        if not 0 < value <= LARGEST_WRITTEN:
            return False
    return True


def near(rng: random.Random, value: int) -> int:
    """A typical careless error for a positive `value`: off by a few ones or tens."""
    assert value > 0, value
    while True:
        by = rng.choices((1, 2, 3, 4, 5, 10, 20, 30), weights=(6, 3, 2, 1, 1, 5, 2, 1))[0]
        wrong = value + rng.choice((by, -by))
        if 0 < wrong <= LARGEST_WRITTEN:
            return wrong


@dataclass(frozen=True, slots=True)
class Care:
    """The error rates of a critic, as probabilities for each step."""

    overlooks: float  # a wrong step that is off by less than ten is accepted
    overlooks_far: float  # the same for ten or more
    suspects: float  # a right step is recomputed to a wrong number
    errs: float = 0.0  # a wrong step is detected, and recomputed to another wrong number
    distrusts: float = 0.0  # a right step with a large number is recomputed rightly, but called wrong
    # Faults in numbers and in verdicts that are independent of each other. With either, those above are not used.
    miscounts: float = 0.0  # any step is recomputed to a wrong number
    flips: float = 0.0  # any step gets the opposite of the verdict that is right

    @property
    def is_independent(self) -> bool:
        return self.miscounts > 0 or self.flips > 0


PERFECT = Care(overlooks=0.0, overlooks_far=0.0, suspects=0.0)


def judge(rng: random.Random, equations: Sequence[Equation], care: Care) -> list[Judgement]:
    """A judgement of every step by a critic with these error rates."""
    judgements: list[Judgement] = []
    for step in equations:
        true = step.true_result
        is_distrusted = False
        if care.is_independent:
            result = near(rng, true) if rng.random() < care.miscounts else true
            said = (step.result == true) is not (rng.random() < care.flips)
            judgements.append(Judgement(step, Equation(step.left, step.sign, step.right, result), said=said))
            continue
        if step.result == true:
            result = near(rng, true) if rng.random() < care.suspects else true
            # Without distrust no random number is drawn: the committed model was trained that way.
            is_distrusted = care.distrusts > 0 and result >= LARGE and rng.random() < care.distrusts
        elif rng.random() < (care.overlooks if abs(step.result - true) < 10 else care.overlooks_far):
            result = step.result
        else:
            result = near(rng, true) if rng.random() < care.errs else true
        judgements.append(Judgement(step, Equation(step.left, step.sign, step.right, result), is_distrusted))
    return judgements


def critique(judgements: Sequence[Judgement]) -> str:
    """The text of a critique. Its verdict is Correct if every step is judged correct."""
    word = "Correct" if all(judgement.is_correct for judgement in judgements) else "Wrong"
    return "".join(map(str, judgements)) + f"Correctness of the final answer: {word}"


def refine(of: WordProblem, judgements: Sequence[Judgement]) -> list[Equation]:
    """The answer of an actor that follows its critique exactly, right or wrong.

    A step with an unchanged left number takes the critique's result. A step whose left number has changed is computed
    again, rightly.
    """
    value = of.start
    equations: list[Equation] = []
    for operation, judgement in zip(of.operations, judgements, strict=True):
        again = judgement.again
        computed = Equation(value, operation.sign, operation.operand, operation.apply(value))
        equations.append(again if again.left == value else computed)
        value = equations[-1].result
    return equations
