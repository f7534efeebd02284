"""The answer that a response states, by form; in doubt there is none."""

import time

import pytest

from gadfly.tasks.answers import example_of, stated_answer
from gadfly.tasks.manifest import AnswerForm, Form

WHOLE = AnswerForm()
LAST_LINE = AnswerForm(form=Form.LAST_LINE)
AFTER = AnswerForm(form=Form.AFTER, marker="Answer:")
TAG = AnswerForm(form=Form.TAG, marker="answer")
SQL = AnswerForm(form=Form.FENCED, language="sql")
JSON = AnswerForm(form=Form.JSON)

CASES = [  # form, response, answer, why this row exists
    (WHOLE, "  Rome\n", "Rome", "outer space is no part of it"),
    (WHOLE, "   ", None, "nothing"),
    (WHOLE, "<think>Paris?</think>Rome", "Rome", "thoughts are no answer"),
    (WHOLE, "<think>Paris?", None, "thoughts that do not end"),
    (WHOLE, "Rome<|im_end|>\n<|im_start|>user\nAnd Spain?", "Rome", "the model's own turn alone"),
    (LAST_LINE, "It is an old town.\nRome\n\n", "Rome", "the last line with text"),
    (AFTER, "Answer: Paris\nNo.\nanswer: Rome", "Rome", "the last one, in any case"),
    (AFTER, "Rome", None, "no marker"),
    (AFTER, "Answer:\nRome", None, "nothing on its line"),
    (TAG, "<answer>Paris</answer> no, <Answer>\nRome</answer>", "Rome", "the last one"),
    (TAG, "<answer>Paris</answer> no, <answer>Ro", None, "an open tag may correct what was closed"),
    (TAG, "Rome</answer>", None, "never opened"),
    (SQL, "```sql\nSELECT 1\n```\nor\n```SQL\nSELECT 2\n```", "SELECT 2", "the last block"),
    (SQL, "```\nSELECT 1\n```", "SELECT 1", "a block of no language"),
    (SQL, "```sql\nSELECT 1\n```\n```python\nprint(1)\n```", "SELECT 1", "a block of another language"),
    (SQL, "```sql\nSELECT 1\n```\nbetter:\n```sql\nSELECT", None, "an open block may correct what was closed"),
    (SQL, "SELECT 1", None, "no block"),
    (JSON, 'Here: {"a": [1, {"b": 2}]} as asked', '{"a": [1, {"b": 2}]}', "inside a sentence"),
    (JSON, '```json\n{"a": 1}\n```', '{"a": 1}', "inside a block"),
    (JSON, '{"a": 1} no, {"a": 2}', '{"a": 2}', "the last one"),
    (JSON, '{"a": {"b": 1}, "c": ', None, "what a broken object contains is not the answer"),
    (JSON, '[{"a": 1}, {"a"', None, "what a broken list contains is not the answer"),
    (JSON, 'As said [1], {"a": 1}', '{"a": 1}', "a footnote is no answer where another one follows"),
    (JSON, "no JSON", None, "nothing"),
]
CUT = [  # form, response that a token limit ended, answer
    (WHOLE, "Rome", None),
    (WHOLE, "Rome<|im_end|>", "Rome"),
    (LAST_LINE, "Rome", None),
    (AFTER, "Answer: Ro", None),
    (AFTER, "Answer: Rome\nBeca", "Rome"),
    (TAG, "<answer>Rome</answer> beca", "Rome"),
    (SQL, "```sql\nSELECT 1\n```\nThis", "SELECT 1"),
    (JSON, '{"a": 1}', '{"a": 1}'),
]


@pytest.mark.parametrize(("form", "response", "answer", "reason"), CASES, ids=[row[3] for row in CASES])
def test_form(form: AnswerForm, response: str, answer: str | None, reason: str) -> None:
    assert stated_answer(form, response) == answer, reason


@pytest.mark.parametrize(("form", "response", "answer"), CUT)
def test_cut(form: AnswerForm, response: str, answer: str | None) -> None:
    assert stated_answer(form, response, is_cut=True) == answer


@pytest.mark.parametrize("form", [WHOLE, LAST_LINE, AFTER, TAG, SQL, JSON])
@pytest.mark.parametrize("piece", ["{", '{"a":', "[", "```\n", "<answer>", "Answer:", " ", "a\n"])
def test_no_text_takes_long(form: AnswerForm, piece: str) -> None:
    started = time.process_time()
    stated_answer(form, piece * 100_000)
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize("form", [WHOLE, LAST_LINE, AFTER, TAG, SQL, JSON])
def test_the_example_of_a_form_states_an_answer(form: AnswerForm) -> None:
    assert "42" in (stated_answer(form, example_of(form)) or "")
