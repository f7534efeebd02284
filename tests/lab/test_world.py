"""Answers are right or wrong as intended, and the pipeline can read the texts."""

import random

import pytest

from gadfly.lab import tokens, world
from gadfly.lab.world import Care, Equation, Judgement, LabSplit, Operation, WordProblem
from gadfly.verdict import Verdict, parse_critique

TOM = WordProblem(text="", start=37, operations=(Operation("+", 25), Operation("-", 14)))
WRONG = [Equation(37, "+", 25, 72), Equation(72, "-", 14, 58)]


def test_an_answer_continues_from_its_error() -> None:
    assert TOM.answer == 48
    assert world.solution(world.solve(TOM)) == "37 + 25 = 62. 62 - 14 = 48. The answer is 48."
    assert world.solution(WRONG) == "37 + 25 = 72. 72 - 14 = 58. The answer is 58."


def test_a_perfect_critic_names_an_error_once_and_the_actor_corrects_the_steps_after_it() -> None:
    judgements = world.judge(random.Random(0), WRONG, world.PERFECT)
    parsed = parse_critique(world.critique(judgements))
    assert parsed.verdict is Verdict.INCORRECT
    assert [(step.text, step.verdict, step.explanation) for step in parsed.steps] == [
        ("37 + 25 = 72.", Verdict.INCORRECT, "37 + 25 = 62."),
        ("72 - 14 = 58.", Verdict.CORRECT, "72 - 14 = 58."),
    ]
    assert world.solution(world.refine(TOM, judgements)) == world.solution(world.solve(TOM))


def test_the_actor_follows_a_wrong_critique_too() -> None:
    right = world.solve(TOM)
    misled = [Judgement(right[0], Equation(37, "+", 25, 63)), Judgement(right[1], right[1])]
    assert world.solution(world.refine(TOM, misled)) == "37 + 25 = 63. 63 - 14 = 49. The answer is 49."


def test_a_critic_that_overlooks_everything_calls_everything_correct() -> None:
    judgements = world.judge(random.Random(0), WRONG, Care(overlooks=1.0, overlooks_far=1.0, suspects=0.0))
    assert parse_critique(world.critique(judgements)).verdict is Verdict.CORRECT


def test_a_critic_that_distrusts_large_numbers_recomputes_them_rightly_and_calls_them_wrong() -> None:
    right = [Equation(37, "+", 25, 62), Equation(62, "-", 14, 48)]
    distrustful = Care(overlooks=0.0, overlooks_far=0.0, suspects=0.0, distrusts=1.0)
    judgements = world.judge(random.Random(0), right, distrustful)
    parsed = parse_critique(world.critique(judgements))
    assert [step.verdict for step in parsed.steps] == [Verdict.INCORRECT, Verdict.CORRECT]
    assert parsed.verdict is Verdict.INCORRECT
    assert world.refine(TOM, judgements) == right, "the actor takes the critique's results, which are right"


def test_near_numbers_are_within_the_written_range() -> None:
    rng = random.Random(0)
    for value in (1, 9, 100, world.LARGEST_WRITTEN):
        found = {world.near(rng, value) for _ in range(200)}
        assert value not in found
        assert all(0 < each <= world.LARGEST_WRITTEN for each in found)


@pytest.mark.parametrize("split", list(LabSplit))
def test_questions_stay_within_their_split(split: LabSplit) -> None:
    within = world.RANGES[split]
    found = world.problems(split, 300, seed=1)
    assert len({each.text for each in found}) == 300
    assert [each.text for each in found] == [each.text for each in world.problems(split, 300, seed=1)]
    for each in found:
        values = [each.start, *(step.result for step in world.solve(each))]
        assert within.steps[0] <= len(each.operations) <= within.steps[1]
        assert all(0 < value <= within.largest for value in values)
        assert str(each.start) in each.text
        assert all(str(operation.operand) in each.text for operation in each.operations)


def test_texts_survive_the_tokenizer_and_verdict_words_are_single_tokens() -> None:
    tokenizer = tokens.tokenizer()
    rng = random.Random(2)
    for _ in range(50):
        one = world.problem(rng)
        answer = world.slip(rng, one, share=0.3)
        text = world.critique(world.judge(rng, answer, Care(overlooks=0.3, overlooks_far=0.3, suspects=0.3)))
        for each in (one.text, world.solution(answer), text):
            assert tokenizer.decode(tokenizer.encode(each)) == each
    for word in (" Correct", " Wrong"):
        field = "\nCorrectness of the final answer:"
        assert tokenizer.encode(field + word) == [*tokenizer.encode(field), *tokenizer.encode(word)]
        assert len(tokenizer.encode(word)) == 1


def test_numbers_stay_positive_after_an_error_and_errors_are_common() -> None:
    rng = random.Random(4)
    wrong = 0
    for _ in range(3000):
        one = world.problem(rng)
        answer = world.slip(rng, one, share=0.5)
        assert all(step.left > 0 and step.result > 0 for step in answer)
        wrong += answer[-1].result != one.answer
        judgements = world.judge(rng, answer, Care(overlooks=0.3, overlooks_far=0.3, suspects=0.3, errs=0.5))
        assert len(world.refine(one, judgements)) == len(answer)
    assert 0.5 < wrong / 3000 < 0.9
