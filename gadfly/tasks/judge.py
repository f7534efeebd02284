"""Grades by a model that follows a rubric, behind any OpenAI chat endpoint.

A judge is a model too: measure how well it agrees with people before you use it (`gadfly tasks try`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from gadfly.access import Access
from gadfly.concurrency import gather
from gadfly.endpoint_actor import EndpointActor, Names
from gadfly.engine_client import Sampling
from gadfly.errors import UnreadableReference
from gadfly.grading import Grade, Submission
from gadfly.tasks.answers import stated_answer
from gadfly.tasks.manifest import AnswerForm, JudgeGrader
from gadfly.tasks.rubric import fill, read_grade, read_rubric
from gadfly.tasks.task import Task

_NAMES = Names(role="grader", url="GADFLY_GRADER_URL", model="grader.model in task.toml", key="GADFLY_GRADER_KEY")


class Judge:
    """A model that grades one answer per request, greedily. As `gadfly.grading.TaskGrader`.

    A response without an answer is not sent. A reply that was cut, or does not state exactly one grade, is no answer.

    Raises:
        BadSettings: the rubric or the file with certificates cannot be used.
    """

    def __init__(
        self,
        task: Task,
        spec: JudgeGrader,
        *,
        url: str,
        key: str,
        ca_file: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.version = task.grader_version
        self.key: Callable[[str, bool], str | None] | None = task.key
        self._form = task.manifest.answer or AnswerForm()
        self._spec = spec
        self._rubric = read_rubric(spec, task.folder)
        self._model = EndpointActor(
            url,
            access=Access(key=key, model=spec.model, ca_file=ca_file),
            timeout_s=spec.timeout_s,
            concurrency=spec.concurrency,
            retries=spec.retries,
            names=_NAMES,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._model.aclose()

    async def start(self) -> None:
        """Nothing: the endpoint runs already."""

    async def grade_all(self, rows: Sequence[tuple[str, str] | Submission]) -> list[Grade | UnreadableReference]:
        """As `gadfly.grading.TaskGrader.grade_all`. Equal rows are judged once."""
        submissions = [Submission(*row) for row in rows]
        different = list(dict.fromkeys(submissions))
        outcomes = dict(zip(different, await gather(*map(self._judge, different)), strict=True))
        return [outcomes[row] for row in submissions]

    async def _judge(self, row: Submission) -> Grade | UnreadableReference:
        if not row.reference.strip():
            return UnreadableReference("The reference is empty: send the requirements of a right answer.")
        answer = stated_answer(self._form, row.response, is_cut=row.is_cut)
        if answer is None:
            return Grade.NO_ANSWER
        values = {
            "question": row.question,
            "response": row.response,
            "answer": answer,
            "reference": row.reference,
        }
        sampling = Sampling(max_tokens=self._spec.max_tokens, temperature=0.0)
        (reply,) = await self._model.chat(fill(self._rubric, values), sampling=sampling)
        return Grade.NO_ANSWER if reply.is_cut else read_grade(self._spec, reply.text)
