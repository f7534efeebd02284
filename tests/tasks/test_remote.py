"""A grader behind HTTP: its requests, its replies, and that its failures are no grades."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from gadfly.errors import BadSettings, EngineError, EngineRefused, EngineTimeout, GraderUnavailable, UnreadableReference
from gadfly.grading import Grade, Submission
from gadfly.settings import Settings
from gadfly.tasks import load_task, open_grader
from gadfly.tasks.manifest import HttpGrader
from gadfly.tasks.remote import RemoteGrader
from tests.support.tasks import write_task


class Service:
    """A grader that calls an answer right if it is the reference, and keeps every body."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.failures: list[httpx.Response | Exception] = []
        self.at_once = self.most_at_once = 0

    async def answer(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer secret"
        body = orjson.loads(request.content)
        self.bodies.append(body)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.001)
        self.at_once -= 1
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return failure
        grades = [
            {"error": "Send a word."}
            if row["reference"] == "17"
            else ("right" if row["answer"] == row["reference"] else "wrong")
            for row in body["rows"]
        ]
        return httpx.Response(200, json={"grades": grades})


def opened(folder: Path, service: Service, options: str = "") -> RemoteGrader:
    task = load_task(str(write_task(folder, f'kind = "http"\n{options}', answer='form = "after"\nmarker = "Answer:"')))
    assert isinstance(task.manifest.grader, HttpGrader)
    return RemoteGrader(
        task,
        task.manifest.grader,
        url="http://grader:1/grade",
        key="secret",
        longest_wait_s=0.01,
        transport=httpx.MockTransport(service.answer),
    )


async def test_rows_are_graded_in_batches_and_in_order(tmp_path: Path) -> None:
    service = Service()
    async with opened(tmp_path, service, "batch = 2\nconcurrency = 2") as grader:
        rows = [
            Submission("Answer: a\n", "a", question="Q"),
            Submission("no answer", "a"),
            Submission("Answer: b\n", "a"),
            Submission("Answer: a", "a", is_cut=True),
            Submission("Answer: a\n", "17"),
        ]
        right, nothing, wrong, cut, refused = await grader.grade_all(rows)
    assert (right, nothing, wrong, cut) == (Grade.RIGHT, Grade.NO_ANSWER, Grade.WRONG, Grade.NO_ANSWER)
    assert isinstance(refused, UnreadableReference)
    assert str(refused) == "Send a word."
    assert sorted(len(body["rows"]) for body in service.bodies) == [1, 2]
    first = next(body for body in service.bodies if len(body["rows"]) == 2)
    assert first["task"] == "test"
    assert first["rows"][0] == {"question": "Q", "response": "Answer: a\n", "answer": "a", "reference": "a"}


async def test_no_more_requests_than_allowed_are_in_flight(tmp_path: Path) -> None:
    service = Service()
    async with opened(tmp_path, service, "batch = 1\nconcurrency = 3") as grader:
        assert await grader.grade_all([("Answer: a\n", "a")] * 12) == [Grade.RIGHT] * 12
    assert service.most_at_once == 3


async def test_a_service_that_is_unavailable_for_a_while_is_asked_again(tmp_path: Path) -> None:
    service = Service()
    service.failures = [httpx.Response(503), httpx.Response(429), httpx.ConnectError("refused"), httpx.ReadError("cut")]
    async with opened(tmp_path, service) as grader:
        assert await grader.grade_all([("Answer: a\n", "a")]) == [Grade.RIGHT]
    assert len(service.bodies) == 5


@pytest.mark.parametrize(
    ("failure", "error", "message", "requests"),
    [
        (httpx.Response(503, text="full"), GraderUnavailable, "answered with status 503: full", 3),
        (httpx.ConnectError("refused"), GraderUnavailable, "no grader answers at", 3),
        (httpx.ReadTimeout("slow"), EngineTimeout, "raise grader.timeout_s or lower grader.batch", 1),
        (httpx.Response(401), EngineRefused, "GADFLY_GRADER_KEY", 1),
        (httpx.Response(404, text="no route"), EngineError, "answered with status 404: no route", 1),
        (httpx.Response(200, text="right"), EngineError, "gave no grades", 1),
        (httpx.Response(200, json={"grade": []}), EngineError, "`grades` is missing", 1),
        (httpx.Response(200, json={"grades": []}), EngineError, "1 rows were sent", 1),
        (httpx.Response(200, json={"grades": ["good"]}), EngineError, "the grader returned 'good'", 1),
        (httpx.Response(200, json={"grades": [0.5]}), EngineError, "must return true, false or null", 1),
    ],
)
async def test_a_failure_of_the_service_is_an_error_and_no_grade(
    failure: httpx.Response | Exception, error: type[Exception], message: str, requests: int, tmp_path: Path
) -> None:
    service = Service()
    service.failures = [failure] * 3
    async with opened(tmp_path, service, "retries = 2") as grader:
        with pytest.raises(error, match=message.replace("(", r"\(")):
            await grader.grade_all([("Answer: a\n", "a")])
    assert len(service.bodies) == requests


async def test_scores_need_a_threshold_and_get_one(tmp_path: Path) -> None:
    service = Service()
    service.failures = [httpx.Response(200, json={"grades": [0.9, 0.5, 0, None]})]
    async with opened(tmp_path, service, "threshold = 0.8\nwrong_below = 0.3") as grader:
        graded = await grader.grade_all([(f"Answer: {name}\n", "a") for name in "abcd"])
    assert graded == [Grade.RIGHT, Grade.NO_ANSWER, Grade.WRONG, Grade.NO_ANSWER]


def test_the_address_comes_from_the_settings(tmp_path: Path) -> None:
    task = load_task(str(write_task(tmp_path, 'kind = "http"')))
    with pytest.raises(BadSettings, match="set GADFLY_GRADER_URL"):
        open_grader(task, Settings())
    assert isinstance(open_grader(task, Settings(grader_url="http://grader:1")), RemoteGrader)
