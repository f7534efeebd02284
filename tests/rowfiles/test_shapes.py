import json
from collections import Counter
from typing import Any

import pytest

from gadfly.errors import BadInput
from gadfly.rowfiles.rows import BadRow
from gadfly.rowfiles.shapes import FOLLOW_UP, LONG_CONVERSATION, MORE_CHOICES, NO_MAPPING, ColumnMap, fields_of

ASKED = {"role": "user", "content": "What is 3 + 4?"}
SAID = {"role": "assistant", "content": "It is 7."}
PAIR = {"question": "What is 3 + 4?", "response": "It is 7."}
COMPLETION = {"id": "c1", "object": "chat.completion", "choices": [{"index": 0, "message": SAID}]}

SHAPES: list[tuple[dict[str, Any], dict[str, Any], str]] = [  # row, its fields, why this row exists
    ({"messages": [ASKED, SAID]}, PAIR, "a file for fine-tuning"),
    ({"messages": json.dumps([ASKED, SAID])}, PAIR, "the same in a table: JSON as text"),
    (
        {"messages": [ASKED, SAID], "reference": "7", "correct": True, "metadata": {"a": 1}},
        PAIR | {"reference": "7", "correct": True, "metadata": {"a": 1}},
        "with a label",
    ),
    (
        {"messages": [{"role": "system", "content": "Be brief."}, ASKED, SAID]},
        PAIR | {"metadata": {"conversation": [{"role": "system", "content": "Be brief."}]}},
        "a system prompt is kept",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is 3 + 4?"}]}, SAID]},
        PAIR,
        "content in parts",
    ),
    ({"messages": [ASKED], "reference": "7"}, {"question": PAIR["question"], "reference": "7"}, "no answer yet"),
    (
        {
            "conversations": [{"from": "human", "value": "What is 3 + 4?"}, {"from": "gpt", "value": "It is 7."}],
            "id": 5,
        },
        PAIR | {"id": 5},
        "ShareGPT",
    ),
    ({"conversation": [{"human": "What is 3 + 4?", "assistant": "It is 7."}]}, PAIR, "turns as pairs"),
    ({"request": {"model": "m", "messages": [ASKED]}, "response": COMPLETION}, PAIR | {"model": "m"}, "a proxy's log"),
    (
        {
            "request_id": "r1",
            "call_type": "acompletion",
            "model": "m",
            "startTime": "2026-05-01 10:00:00",
            "messages": [ASKED],
            "response": COMPLETION,
            "metadata": {"user_api_key_user_email": "a@example.org"},
        },
        PAIR | {"id": "r1", "model": "m", "created_at": "2026-05-01 10:00:00"},
        "LiteLLM's spend log; its metadata names people",
    ),
    ({"messages": [ASKED], "response": "It is 7."}, PAIR, "LiteLLM, the answer as text"),
    (
        {"traceId": "t", "type": "GENERATION", "input": [ASKED], "output": SAID, "scores": [{"name": "n", "value": 1}]},
        PAIR | {"id": "t"},
        "Langfuse; a score of another name is no label",
    ),
    (
        {"input": {"messages": [ASKED]}, "output": "It is 7.", "scores": [{"name": "Correct", "value": 0}]},
        PAIR | {"correct": False},
        "a score as the label",
    ),
    (
        {"input": "What is 3 + 4?", "output": "It is 7.", "scores": json.dumps({"correctness": "correct"})},
        PAIR | {"correct": True},
        "a categorical score, in a table",
    ),
    (
        {"input": "What is 3 + 4?", "output": "It is 7.", "scores": [{"name": "correct", "value": 0.7}]},
        PAIR,
        "neither right nor wrong is no label",
    ),
    (
        {
            "input": "What is 3 + 4?",
            "output": "It is 7.",
            "scores": [{"name": "correct", "value": 1}, {"name": "accuracy", "value": 0}],
        },
        PAIR,
        "two scores that disagree are no label",
    ),
    ({"input": {"args": ["What is 3 + 4?"], "kwargs": {}}, "output": "It is 7."}, PAIR, "a decorated function"),
    (
        {"input": {"question": "What is 3 + 4?"}, "expectedOutput": "7"},
        {"question": PAIR["question"], "reference": "7"},
        "a data set of Langfuse",
    ),
    ({"input": [ASKED], "ideal": ["7"]}, {"question": PAIR["question"], "reference": ["7"]}, "an evaluation"),
    (
        {
            "input": [ASKED],
            "output": [
                {"type": "reasoning"},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It is 7."}]},
            ],
        },
        PAIR,
        "the Responses API",
    ),
    (
        {"input": "As JSON: 3 + 4?", "output": '{"answer": 7}'},
        {"question": "As JSON: 3 + 4?", "response": '{"answer": 7}'},
        "an answer that is JSON stays text",
    ),
    (
        {"body": {"model": "m", "messages": [ASKED]}, "custom_id": "b1", "response": {"body": COMPLETION}},
        PAIR | {"model": "m", "id": "b1"},
        "a batch with its answers",
    ),
    (
        {"conversations": [{"role": None, "from": "human", "content": None, "value": "What is 3 + 4?"}, SAID]},
        PAIR,
        "a table fills missing keys with null",
    ),
    (PAIR | {"__index_level_0__": 7}, PAIR, "the row numbers of a data frame"),
    (PAIR | {"messages": []}, PAIR | {"metadata": {"messages": []}}, "a flat row with a column of that name"),
]


@pytest.mark.parametrize(("row", "expected", "_"), SHAPES)
def test_the_fields_of_a_row(row: dict[str, Any], expected: dict[str, Any], _: str) -> None:
    assert fields_of(row, NO_MAPPING, Counter()) == expected


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": [SAID]}, "no turn of a user"),
    ({"messages": [{"role": "narrator", "content": "x"}]}, "unknown role: 'narrator'"),
    ({"messages": [{"content": "x"}]}, "has no role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "a part that is no text"),
    ({"messages": [{"role": "user", "content": 5}]}, "neither text nor a list"),
    ({"messages": [ASKED], "status": "failure", "response": {}}, "the logged call failed"),
    ({"input": {"a": "x", "b": "y"}, "output": "z"}, "no question can be found"),
    ({"input": "x", "output": {"score": 1}}, "no text of an answer"),
    ({"messages": [ASKED], "response": {"choices": []}}, "no text of an answer"),
    ({"input": "[" * 50_000, "output": {"a": "[" * 50_000}}, "no text of an answer"),
    ({"instruction": "x", "input": "y", "output": "z"}, "The columns are instruction, input, output"),
    ({"questions": "x", "response": "y"}, "perhaps it is 'questions'"),
    ({"question": "x", "reponse": "y", "reference": "z"}, "did you mean 'response'? Use --map reponse=response"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_rows_that_cannot_be_read(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as raised:
        fields_of(row, NO_MAPPING, Counter())
    assert reason in str(raised.value)


def test_the_last_question_of_a_conversation_counts_and_the_turns_before_it_are_kept() -> None:
    notes: Counter[str] = Counter()
    first = [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}]
    assert fields_of({"messages": [*first, ASKED, SAID]}, NO_MAPPING, notes) == {
        **PAIR,
        "metadata": {"conversation": first},
    }
    long = [{"role": "system", "content": "x" * 20_000}]
    assert fields_of({"messages": [*long, ASKED, SAID]}, NO_MAPPING, notes) == PAIR
    several = {"choices": [*COMPLETION["choices"], *COMPLETION["choices"]]}  # type: ignore[misc]
    assert fields_of({"messages": [ASKED], "response": several}, NO_MAPPING, notes) == PAIR
    assert notes == {FOLLOW_UP: 1, LONG_CONVERSATION: 1, MORE_CHOICES: 1}


def test_a_mapping_may_be_written_either_way_and_reach_inside() -> None:
    columns = ColumnMap.parse(["answer=response", "reference=gold", "metrics.correct=correct", "noise="])
    assert columns.columns == {"response": "answer", "reference": "gold", "correct": "metrics.correct"}
    row = {"question": "q", "answer": "a", "gold": "g", "noise": 1, "metrics": [{"name": "correct", "value": 1}]}
    columns.check([row])
    assert fields_of(row, columns, Counter()) == {
        "question": "q",
        "response": "a",
        "reference": "g",
        "correct": 1,
    }
    both = ColumnMap.parse(["response=reference"])  # both are fields: the column comes first
    assert both.columns == {"reference": "response"}


@pytest.mark.parametrize("pair", ["answer", "=response", "a=b", "response=answer=x"])
def test_mappings_without_a_field_are_refused(pair: str) -> None:
    if pair.startswith("response"):
        assert ColumnMap.parse([pair]).columns == {"response": "answer=x"}
        return
    with pytest.raises(BadInput, match="--map"):
        ColumnMap.parse([pair])


def test_a_field_is_mapped_once() -> None:
    with pytest.raises(BadInput, match="already mapped, to a"):
        ColumnMap.parse(["a=response", "b=response"])
