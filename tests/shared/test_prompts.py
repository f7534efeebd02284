"""Prompt sets: every one there is can be filled, and a caller's text stays text."""

import pytest

from gadfly import prompts
from gadfly.errors import BadSettings
from gadfly.verdict import EXPLANATION_FIELD, STEP_FIELD, STEP_VERDICT_FIELD, VERDICT_FIELD

BARE = "bare@1"  # for models that were trained on its conversations: it holds no instructions


@pytest.mark.parametrize("name", sorted({*prompts.available()} - {BARE}))
def test_every_set_asks_for_the_fields_that_are_parsed(name: str) -> None:
    prompt = prompts.load(name).critique(question="Q?", response="R.")
    asked = "\n".join(message.content for message in prompt.messages)
    for field in (STEP_FIELD, STEP_VERDICT_FIELD, EXPLANATION_FIELD, VERDICT_FIELD):
        assert field in asked
    assert "Q?" in asked
    assert "R." in asked
    assert prompt.messages[-1].role == "user"


@pytest.mark.parametrize("name", prompts.available())
def test_every_set_shows_the_actor_its_answer_and_the_critique_from_its_first_step(name: str) -> None:
    critique = "Well, let me see.\nStep sentence: 1\nCorrectness of the final answer: Wrong"
    prompt = prompts.load(name).refine(question="Q?", response="R.", critique=critique)
    assert [message.content for message in prompt.messages if message.role == "assistant"] == ["R."]
    assert "let me see" not in prompt.messages[-1].content
    assert "Step sentence: 1\nCorrectness of the final answer: Wrong" in prompt.messages[-1].content


def test_a_critique_without_steps_is_shown_whole() -> None:
    prompt = prompts.load("critique-rl@1").refine(question="Q?", response="R.", critique="Add the loose pen.")
    assert "Add the loose pen." in prompt.messages[-1].content


@pytest.mark.parametrize("name", prompts.available())
def test_slots_in_a_callers_text_are_not_filled(name: str) -> None:
    prompt = prompts.load(name).critique(question="What is {response}?", response="{question} {0} {critique}")
    assert "What is {response}?" in prompt.messages[-1].content
    assert "{question} {0} {critique}" in prompt.messages[-1].content


def test_the_bare_set_holds_the_texts_and_nothing_else() -> None:
    bare = prompts.load(BARE)
    [message] = bare.critique(question="Q?", response="R.").messages
    assert message.content == "Question: Q?\nSolution: R."
    asked = bare.refine(question="Q?", response="R.", critique="Step sentence: C").messages
    assert [message.content for message in asked] == ["Q?", "R.", "Step sentence: C"]
    assert bare.solve(question="Q?").messages == asked[:1]


def test_critique_rl_has_no_system_message_and_no_opener_for_the_critic() -> None:
    prompt = prompts.load("critique-rl@1").critique(question="Q?", response="R.")
    assert [message.role for message in prompt.messages] == ["user"]
    assert prompt.opener == ""


def test_an_unknown_set_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadSettings, match=r"critique-rl@1, stepwise@1"):
        prompts.load("critique-rl@99")


@pytest.mark.parametrize("name", prompts.available())
def test_examples_are_turns_before_the_answer_that_is_judged(name: str) -> None:
    plain = prompts.load(name)
    examples = [prompts.Example("{response}?", "E1.", "Wrong, since 1."), prompts.Example("Q2?", "E2.", "Right.")]
    shown = plain.with_examples(examples)
    messages = shown.critique(question="Q?", response="R.").messages
    assert messages[-1] == plain.critique(question="Q?", response="R.").messages[-1]
    assert [message.role for message in messages[-5:]] == ["user", "assistant", "user", "assistant", "user"]
    assert [message.content for message in messages[-4:-2:2]] == ["Wrong, since 1."]
    assert "{response}?" in messages[-5].content, "an example's text is data: its slots are not filled"
    assert messages[:-5] == plain.critique(question="Q?", response="R.").messages[:-1]
    assert shown.refine(question="Q?", response="R.", critique="C") == plain.refine(
        question="Q?", response="R.", critique="C"
    )
    assert plain.examples == ()
