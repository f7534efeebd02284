"""Verdicts in the words of a prompt set: any two words or phrases that differ."""

import pytest

from gadfly.errors import BadSettings
from gadfly.prompts import parse_prompt_set
from gadfly.verdict import USUAL_WORDS, Verdict, VerdictWords, parse_critique
from tests.support.tasks import PROMPTS

KEEP = VerdictWords("keep", "send back")
CRITIQUE = """Step sentence: The total is 12.
Correctness of the step: {step}
Explanation: It adds up.
Correctness of the final answer: {final}
Explanation: All of it."""

READ = [  # words, text, verdict, why
    (USUAL_WORDS, "Right", Verdict.CORRECT, "the usual words have synonyms"),
    (VerdictWords("Right", "Incorrect"), "wrong", Verdict.INCORRECT, "a usual pair reads all four"),
    (KEEP, "**Keep**.", Verdict.CORRECT, "case and marks do not count"),
    (KEEP, "Send   back", Verdict.INCORRECT, "a phrase, with any white space in it"),
    (KEEP, "Correct", Verdict.UNPARSED, "other words are no verdict"),
    (KEEP, "keep or send back", Verdict.UNPARSED, "both is neither"),
    (VerdictWords("Correct", "Bad"), "right", Verdict.UNPARSED, "one usual word has no synonyms"),
    (VerdictWords("なし", "あり"), "あり。", Verdict.UNPARSED, "another script's full stop is a part of the word"),
    (VerdictWords("なし", "あり"), "あり", Verdict.INCORRECT, "another script"),
]


@pytest.mark.parametrize(("words", "text", "verdict", "why"), READ)
def test_the_words_of_a_prompt_set_are_read(words: VerdictWords, text: str, verdict: Verdict, why: str) -> None:
    assert words.read(text) is verdict, why


def test_steps_and_the_final_verdict_have_the_same_words() -> None:
    text = CRITIQUE.format(step="send back", final="keep")
    parsed = parse_critique(text, KEEP)
    assert (parsed.steps[0].verdict, parsed.verdict) == (Verdict.INCORRECT, Verdict.CORRECT)
    assert text[: parsed.verdict_end].endswith("Correctness of the final answer:")
    assert parse_critique(text).verdict is Verdict.UNPARSED
    assert parse_critique(CRITIQUE.format(step="Right", final="Wrong"), KEEP).verdict is Verdict.UNPARSED


REFUSED = [
    ("keep", " Keep. ", "both verdicts have the word"),
    ("", "no", "is no verdict word"),
    ("**", "no", "is no verdict word"),
    ("yes", "n" * 61, "is no verdict word"),
    ("Wrong", "no", "says the opposite of what it means"),
    ("keep", "correct", "says the opposite of what it means"),
]


@pytest.mark.parametrize(("correct", "incorrect", "reason"), REFUSED)
def test_words_that_cannot_be_told_apart_are_refused(correct: str, incorrect: str, reason: str) -> None:
    content = PROMPTS.replace('"Wrong"', f'"{incorrect}"').replace('"Right"', f'"{correct}"')
    with pytest.raises(BadSettings, match=reason):
        parse_prompt_set(content.encode(), name="p@1", where="prompts.toml")


def test_a_prompt_set_has_its_words() -> None:
    content = PROMPTS.replace('"Right"', '"keep"').replace('"Wrong"', '"send back"')
    assert parse_prompt_set(content.encode(), name="p@1", where="prompts.toml").words == KEEP
