"""A model that grades by a rubric: its prompt, and the reading of its reply."""

from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from gadfly.errors import EngineRefused, UnreadableReference
from gadfly.grading import Grade, Submission
from gadfly.tasks import load_task
from gadfly.tasks.judge import Judge
from gadfly.tasks.manifest import JudgeGrader
from gadfly.tasks.rubric import read_grade
from tests.support.tasks import write_task

RIGHT, WRONG, NO_ANSWER = Grade.RIGHT, Grade.WRONG, Grade.NO_ANSWER
RUBRIC = (
    "Q {question} A {answer} of {response} R {reference}. End with Grade: right, wrong or no answer. Score: 0 to 5."
)
PLAIN = JudgeGrader(kind="judge", model="m", rubric="r")
SCORED = JudgeGrader(kind="judge", model="m", rubric="r", threshold=4, wrong_below=2)

REPLIES = [  # the judge, its reply, grade, why this row exists
    (PLAIN, "It names the town.\nGrade: right", RIGHT, "plain"),
    (PLAIN, "**Grade:** Wrong.", WRONG, "with marks"),
    (PLAIN, "Grade: no answer", NO_ANSWER, "no answer"),
    (PLAIN, "Grade: right\nOn second thoughts:\nGrade: wrong", NO_ANSWER, "two grades are none"),
    (PLAIN, "Right", NO_ANSWER, "not stated as asked"),
    (PLAIN, "Grade: mostly right", NO_ANSWER, "hedged"),
    (PLAIN, "The Grade: right would be too kind", NO_ANSWER, "inside a sentence"),
    (SCORED, "Score: 4", RIGHT, "at the threshold"),
    (SCORED, "Score: 4.5/5", RIGHT, "with its scale"),
    (SCORED, "Score: 3 out of 5", NO_ANSWER, "between both limits"),
    (SCORED, "Score: 1", WRONG, "below"),
    (SCORED, "Score: high", NO_ANSWER, "no number"),
    (SCORED, "Grade: right", NO_ANSWER, "the other field"),
]


@pytest.mark.parametrize(("spec", "reply", "expected", "reason"), REPLIES, ids=[row[3] for row in REPLIES])
def test_reply(spec: JudgeGrader, reply: str, expected: Grade, reason: str) -> None:
    assert read_grade(spec, reply) is expected, reason


def opened(folder: Path, bodies: list[dict[str, Any]], status: int = 200, finish_reason: str = "stop") -> Judge:
    spec = 'kind = "judge"\nmodel = "gpt"\nrubric = "rubric.txt"\nretries = 0'
    task = load_task(str(write_task(folder, spec, answer='form = "last_line"', files={"rubric.txt": RUBRIC})))
    assert isinstance(task.manifest.grader, JudgeGrader)

    def answer(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/chat/completions"):
            return httpx.Response(404)
        assert request.headers["authorization"] == "Bearer secret"
        bodies.append(orjson.loads(request.content))
        said = "Grade: right" if "A Rome" in bodies[-1]["messages"][0]["content"] else "Grade: wrong"
        choice = {"index": 0, "message": {"content": said}, "finish_reason": finish_reason}
        return httpx.Response(status, json={"choices": [choice], "usage": {}})

    return Judge(
        task, task.manifest.grader, url="http://judge:1/v1", key="secret", transport=httpx.MockTransport(answer)
    )


async def test_each_different_answer_is_judged_once_and_greedily(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []
    async with opened(tmp_path, bodies) as judge:
        rows = [
            Submission("It is old.\nRome", "Rome", question="Which {reference}?"),
            Submission("Paris", "Rome"),
            Submission("Paris", "Rome"),
            Submission("Rome", "Rome", is_cut=True),
            Submission("Rome", " "),
        ]
        right, wrong, again, cut, refused = await judge.grade_all(rows)
    assert (right, wrong, again, cut) == (RIGHT, WRONG, WRONG, NO_ANSWER)
    assert isinstance(refused, UnreadableReference)
    assert len(bodies) == 2
    first = next(body for body in bodies if "Rome of" in body["messages"][0]["content"])
    assert first["model"] == "gpt"
    assert first["temperature"] == 0.0
    # The name of a slot in a caller's text stays text.
    assert first["messages"][0]["content"].startswith("Q Which {reference}? A Rome of It is old.\nRome R Rome.")


async def test_a_reply_that_was_cut_is_no_grade(tmp_path: Path) -> None:
    async with opened(tmp_path, [], finish_reason="length") as judge:
        assert await judge.grade_all([("Rome", "Rome")]) == [NO_ANSWER]


async def test_a_judge_that_refuses_names_the_graders_settings(tmp_path: Path) -> None:
    async with opened(tmp_path, [], status=401) as judge:
        with pytest.raises(EngineRefused, match=r"the grader at .* refuses the key in GADFLY_GRADER_KEY"):
            await judge.grade_all([("Rome", "Rome")])
    async with opened(tmp_path, [], status=404) as judge:
        with pytest.raises(EngineRefused, match=r"does not serve gpt: check grader\.model in task\.toml"):
            await judge.grade_all([("Rome", "Rome")])
