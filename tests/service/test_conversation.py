"""The question and the answer in a conversation."""

from typing import Any

import pytest

from gadfly.errors import BadInput
from gadfly.service.front.conversation import Context, read_answer, read_question, response_of
from gadfly.service.front.pieces import Trimmed

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "1 + 1?"}
ANSWER = {"role": "assistant", "content": "2"}
SECOND = {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "twice that?"}]}
CALLING = {"role": "assistant", "tool_calls": [CALL]}
TOOL = {"role": "tool", "tool_call_id": "c1", "content": "4"}

QUESTIONS: list[tuple[list[dict[str, Any]], Context, str, str]] = [  # messages, context, question, reason
    ([FIRST], Context.TURNS, "1 + 1?", "a turn alone is the question"),
    ([SYSTEM, FIRST], Context.TURNS, "1 + 1?", "system turns are left out"),
    (
        [SYSTEM, FIRST],
        Context.ALL,
        "Conversation so far:\n\nSystem: Be brief.\n\nQuestion:\n\n1 + 1?",
        "unless they are asked for",
    ),
    (
        [SYSTEM, FIRST, ANSWER, SECOND],
        Context.TURNS,
        "Conversation so far:\n\nUser: 1 + 1?\n\nAssistant: 2\n\nQuestion:\n\nAnd twice that?",
        "earlier turns are part of it",
    ),
    ([FIRST, ANSWER, SECOND], Context.NONE, "And twice that?", "unless they are not wanted"),
    (
        [FIRST, CALLING, TOOL],
        Context.TURNS,
        'Question:\n\n1 + 1?\n\nWork on it so far:\n\nAssistant: Calls add with {"a": 1}\n\nTool: 4',
        "what tools gave belongs to the question",
    ),
    ([FIRST, {"role": "user", "content": " "}], Context.TURNS, "1 + 1?", "a blank turn asks nothing"),
]


@pytest.mark.parametrize(("messages", "context", "question", "why"), QUESTIONS, ids=[row[3] for row in QUESTIONS])
def test_reads_the_question(messages: list[dict[str, Any]], context: Context, question: str, why: str) -> None:
    assert read_question(messages, context=context, max_chars=1000).question == question, why


def test_leaves_out_the_oldest_turns_where_not_all_fit() -> None:
    turns = [{"role": "user", "content": f"{number}" * 90} for number in range(1, 6)]
    question = read_question([*turns, FIRST], context=Context.TURNS, max_chars=400).question
    assert question.startswith("Conversation so far:\n\n(Earlier turns are left out.)\n\nUser: 444")
    assert "333" not in question
    assert question.endswith("Question:\n\n1 + 1?")
    for limit in range(6, 700):
        cut = read_question([*turns, FIRST, TOOL], context=Context.TURNS, max_chars=limit).question
        assert len(cut) <= limit, "the limit of a question holds with its transcript"


def test_reads_the_answer_to_judge() -> None:
    asked = read_answer([FIRST, ANSWER, SECOND], context=Context.TURNS, max_chars=1000)
    assert (asked.question, asked.response) == ("1 + 1?", "2"), "the turn after it is not judged"
    later = read_answer([FIRST, ANSWER, SECOND, ANSWER], context=Context.TURNS, max_chars=1000)
    assert later.question.endswith("Question:\n\nAnd twice that?")


@pytest.mark.parametrize("messages", [[FIRST], [ANSWER], [SYSTEM], [FIRST, CALLING]])
def test_refuses_to_judge_what_is_no_answer(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(BadInput) as refused:
        read_answer(messages, context=Context.TURNS, max_chars=1000)
    assert refused.value.field == "messages"


def test_the_last_turn_is_never_cut() -> None:
    with pytest.raises(BadInput, match="at most 5"):
        read_question([FIRST], context=Context.TURNS, max_chars=5)


def test_a_response_shows_its_tool_calls() -> None:
    assert response_of({"role": "assistant", "content": "Let me add.\n", "tool_calls": [CALL]}) == (
        'Let me add.\nCalls add with {"a": 1}'
    )
    assert response_of({"role": "assistant", "content": "\n2\n"}) == "\n2\n", "a text alone stays as it is"


@pytest.mark.parametrize("text", ["", "   ", "  a b \n c  \n", "a", "\n\na\n\nb"])
def test_trimmed_pieces_are_the_stripped_text(text: str) -> None:
    for size in (1, 2, 3):
        trimmed = Trimmed()
        pieces = [trimmed.next(text[start : start + size]) for start in range(0, len(text), size)]
        assert "".join(pieces) == text.strip()
