"""Grades by an HTTP service: unit tests in a sandbox, a reward model, or a check that only another system can make.

A request is `{"task", "version", "rows": [{"question", "response", "answer", "reference"}]}`; `answer` is the part of
the response that the form of the task's answers found. The reply is `{"grades": [...]}` with one entry for each row, in
order: `right`, `wrong`, `no_answer`; a number where the task has a threshold; or `{"error": "..."}`, a sentence for the
sender of a reference that cannot be used. Anything else is an error of the service and grades nothing.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import orjson
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from gadfly.access import Access
from gadfly.concurrency import gather
from gadfly.errors import EngineError, EngineRefused, EngineTimeout, GraderUnavailable, UnreadableReference
from gadfly.grading import Grade, Submission
from gadfly.settings import without_password
from gadfly.tasks.answers import stated_answer
from gadfly.tasks.manifest import AnswerForm, HttpGrader
from gadfly.tasks.task import Task
from gadfly.transport import Broken, NotConnected, Silence, open_link, untrusted_certificate

_CONNECT_TIMEOUT_S = 10.0
_LONGEST_WAIT_S = 30.0
_RETRIED = {408, 409, 425, 429}
_BACKOFF = wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT_S)


class RemoteGrader:
    """The grader at one address. As `gadfly.grading.TaskGrader`.

    A response without an answer is not sent: it has no answer.

    Raises:
        BadSettings: the file with certificates cannot be used.
    """

    def __init__(
        self,
        task: Task,
        spec: HttpGrader,
        *,
        url: str,
        key: str,
        ca_file: Path | None = None,
        longest_wait_s: float = _LONGEST_WAIT_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.version = task.grader_version
        self.key: Callable[[str, bool], str | None] | None = task.key
        self._task = task
        self._spec = spec
        self._url = url
        self._where = without_password(url)
        self._longest_wait_s = longest_wait_s
        self._slots = asyncio.Semaphore(spec.concurrency)
        self._link = open_link(
            url,
            access=Access(key=key, ca_file=ca_file),
            silence_s=spec.timeout_s,
            connect_s=min(spec.timeout_s, _CONNECT_TIMEOUT_S),
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._link.aclose()

    async def start(self) -> None:
        """Nothing: the service runs already, and is asked when there is something to grade."""

    async def grade_all(self, rows: Sequence[tuple[str, str] | Submission]) -> list[Grade | UnreadableReference]:
        """As `gadfly.grading.TaskGrader.grade_all`."""
        form = self._task.manifest.answer or AnswerForm()
        sent: dict[int, dict[str, str]] = {}
        for place, row in enumerate(Submission(*row) for row in rows):
            answer = stated_answer(form, row.response, is_cut=row.is_cut)
            if answer is not None:
                sent[place] = {
                    "question": row.question,
                    "response": row.response,
                    "answer": answer,
                    "reference": row.reference,
                }
        places = list(sent)
        batches = [places[start : start + self._spec.batch] for start in range(0, len(places), self._spec.batch)]
        graded = await gather(*(self._grade([sent[place] for place in batch]) for batch in batches))
        outcomes: list[Grade | UnreadableReference] = [Grade.NO_ANSWER] * len(rows)
        for batch, grades in zip(batches, graded, strict=True):
            for place, grade in zip(batch, grades, strict=True):
                outcomes[place] = grade
        return outcomes

    async def _grade(self, rows: list[dict[str, str]]) -> list[Grade | UnreadableReference]:
        def wait_s(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            asked = error.retry_after_s if isinstance(error, GraderUnavailable) else 0.0
            return min(max(asked, _BACKOFF(state)), self._longest_wait_s)

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(GraderUnavailable),
            wait=wait_s,
            stop=stop_after_attempt(self._spec.retries + 1),
            reraise=True,
        )
        async with self._slots:
            content: bytes = await retrying(self._post, rows)
        return self._read(content, len(rows))

    async def _post(self, rows: list[dict[str, str]]) -> bytes:
        body = {"task": self._task.name, "version": self._task.version, "rows": rows}
        try:
            response = await self._link.post(self._url, body)
        except NotConnected as error:
            if problem := untrusted_certificate(error, self._where):
                raise EngineRefused(problem) from error
            raise GraderUnavailable(f"no grader answers at {self._where} (GADFLY_GRADER_URL)") from error
        except Silence as error:
            raise EngineTimeout(
                f"the grader at {self._where} took longer than {self._spec.timeout_s:g} s for {len(rows)} rows: raise "
                "grader.timeout_s or lower grader.batch in task.toml"
            ) from error
        except Broken as error:
            raise GraderUnavailable(f"the connection to the grader at {self._where} failed: {error}") from error
        status = response.status
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise EngineRefused(f"the grader at {self._where} refuses the key in GADFLY_GRADER_KEY, or needs one")
        if status in _RETRIED or status >= 500:
            wait = response.headers.get("retry-after", "")
            raise GraderUnavailable(
                f"the grader at {self._where} answered with status {status}: {_start_of(response.content)}",
                retry_after_s=float(wait) if wait.isdecimal() else 0.0,
            )
        if status != httpx.codes.OK:
            raise EngineError(
                f"the grader at {self._where} answered with status {status}: {_start_of(response.content)}"
            )
        return response.content

    def _read(self, content: bytes, rows: int) -> list[Grade | UnreadableReference]:
        try:
            grades = orjson.loads(content)["grades"]
            if not isinstance(grades, list) or len(grades) != rows:
                raise ValueError(f"{rows} rows were sent, and `grades` must be a list of as many")
            return [self._outcome(grade) for grade in grades]
        except (KeyError, TypeError, ValueError) as error:
            reason = "`grades` is missing" if isinstance(error, KeyError) else str(error)
            raise EngineError(f"the grader at {self._where} gave no grades: {reason}") from error

    def _outcome(self, value: Any) -> Grade | UnreadableReference:
        match value:
            case {"error": str(message)}:
                return UnreadableReference(message)
            case "right" | "wrong" | "no_answer":
                return Grade(value)
        return self._spec.grade_of(value)


def _start_of(content: bytes) -> str:
    return content[:200].decode(errors="replace").strip() or "no text"
