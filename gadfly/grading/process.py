"""Grades responses against references, in a child process that is killed at its limit.

`gadfly.grading.answers` decides which answer a response states, `gadfly.grading.kinds` when two answers are the same.
This module runs those rules on text from outside. sympy can run without end, or use all memory, on a short expression;
only ending its process stops it (a thread would run on).

    async with Grader(timeout_s=settings.grade_timeout_s) as grader:
        await grader.grade("So she makes 9 * 2 = $18. The answer is 18", "18")  # Grade.RIGHT
"""

import asyncio
import json
import logging
import os
import resource
import signal
import sys
import traceback
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Protocol, Self

from gadfly.errors import TooBusy, UnreadableReference
from gadfly.grading.answers import extract_answer, find_answer
from gadfly.grading.kinds import (
    MAX_REFERENCE_CHARS,
    Reference,
    compare,
    is_sympy_loaded,
    load_sympy,
    needs_sympy,
    read_reference,
)
from gadfly.grading.numbers import Unread
from gadfly.grading.text import MAX_RESPONSE_CHARS
from gadfly.grading.turns import Turns

__all__ = [
    "GRADER_VERSION",
    "Grade",
    "Grader",
    "Rules",
    "Submission",
    "extract_answer",
    "grade",
    "grade_many",
    "read_reference",
    "run_child",
]

GRADER_VERSION = 2
"""The version of the rules, which is stored with a grade. Raised when a change of the rules changes grades."""


_log = logging.getLogger(__name__)

_START_LIMIT_S = 60.0  # for the child to start and to import sympy, which does not count against an answer
_WALL_FACTOR = 5.0  # the limit is CPU time; this bounds a child that gets no processor, or waits
_MEMORY_BYTES = 2 * 2**30
_BATCH_ROWS = 256
_CACHED_REFERENCES = 4096
WORKER_COMMAND = (sys.executable, "-m", "gadfly.grading")


class Grade(StrEnum):
    """The correctness of a response against its reference. Only RIGHT and WRONG are labels; see `label`."""

    RIGHT = "right"
    WRONG = "wrong"  # it states another answer
    NO_ANSWER = "no_answer"  # it states no answer, more than one, or one that no rule can compare

    @property
    def label(self) -> bool | None:
        """Whether the response is right; None where the grade cannot tell."""
        return None if self is Grade.NO_ANSWER else self is Grade.RIGHT


class Submission(NamedTuple):
    """A text to grade. One that is cut, by its token limit, has an answer only where it was stated before the cut."""

    response: str
    reference: str
    is_cut: bool = False
    question: str = ""


def grade(response: str, reference: Reference, *, is_cut: bool = False) -> Grade:
    """The grade of `response`, in this process. Only for trusted text, since sympy may take arbitrarily long."""
    answer, is_sure = find_answer(response, reference, is_cut=is_cut)
    if isinstance(answer, Unread):
        return Grade.NO_ANSWER
    match compare(reference.answer, answer):
        case None:
            return Grade.NO_ANSWER
        case True:
            return Grade.RIGHT
        case False:
            return Grade.WRONG if is_sure else Grade.NO_ANSWER


class Rules(Protocol):
    """What a child grades by. All of it runs in the child, under its limits of time and memory."""

    def problem(self, reference: str) -> str:
        """Why no answer can be compared with `reference`, as a sentence for its sender; empty if one can."""

    def grade(self, submission: Submission) -> Grade:
        """The grade of a response whose reference has no problem."""

    def preparation(self, reference: str) -> Callable[[], object] | None:
        """What must be done once before `reference` is read, and does not count against its time; None: nothing."""


_Row = tuple[str | None, str, bool, str]  # a submission; without a response, its reference is to be checked


class _Died(Exception):
    """The child ended before it answered."""


def _log_failure(reason: str) -> None:
    _log.error("a row could not be graded:\n%s", reason)


class Grader:
    """Grades in one child process, started on first need and again after it was killed. Used from one event loop.

    Any number of calls may wait; they are answered one at a time, in turn between the callers (`gadfly.grading.turns`).

    Args:
        timeout_s: CPU seconds of one comparison, after which the child is killed; CPU time, so that a busy machine does
            not make an answer wrong. Importing sympy, once per child, is not counted. A response that exceeds the limit
            is NO_ANSWER; a reference that alone exceeds it is unreadable.
        patience_s: how long a call may wait for its turn; None: without limit.
        command: the command that starts the child: the grader of another task, or in tests a faulty one.
        version: the version of the child's rules.
        key: the answer that a text states, cut or not, in a form in which equal answers are equal; None where it states
            none. Without `key`, two texts are compared by grading one against the other.
        on_failure: receives the reason of each row that the rules failed on, and that has no answer therefore. None:
            it is logged.
        batch_rows: rows of one call that are graded before the next call gets its turn.
    """

    def __init__(
        self,
        *,
        timeout_s: float,
        patience_s: float | None = None,
        command: Sequence[str] = WORKER_COMMAND,
        version: int = GRADER_VERSION,
        key: Callable[[str, bool], str | None] | None = None,
        on_failure: Callable[[str], None] | None = None,
        batch_rows: int = _BATCH_ROWS,
    ) -> None:
        self.version = version
        self._batch_rows = batch_rows
        self.key = key
        self._on_failure = on_failure or _log_failure
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._command = (*command, str(timeout_s))
        self._turns = Turns()
        self._child: asyncio.subprocess.Process | None = None
        self._is_closed = False
        self._references: OrderedDict[str, str] = OrderedDict()  # text -> why it is unreadable, empty if it is readable

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the child. Waiting calls raise RuntimeError."""
        self._is_closed = True
        async with self._turns:
            await self._kill()

    async def start(self) -> None:
        """Starts the child, so that the first caller does not wait for its imports.

        Raises:
            RuntimeError: the child does not start; the reason is on standard error.
        """
        async with self._turn():
            await self._living_child()

    async def grade(self, response: str, reference: str, *, is_cut: bool = False, question: str = "") -> Grade:
        """The grade of `response`; `is_cut`: its token limit ended it.

        Raises:
            UnreadableReference: no answer can be read from the reference.
            TooBusy: the call waited longer than `patience_s`, as in every method here.
        """
        await self.check_reference(reference)
        [outcome] = await self._ask([Submission(response, reference, is_cut, question)])
        return Grade.NO_ANSWER if outcome is None else Grade(outcome)

    async def check_reference(self, reference: str) -> None:
        """Checks that `reference` can be graded against.

        Raises:
            UnreadableReference: it cannot; the message is a sentence for its sender.
        """
        problem = (await self._check([reference]))[reference]
        if problem:
            raise UnreadableReference(problem)

    async def grade_all(self, rows: Sequence[tuple[str, str] | Submission]) -> list[Grade | UnreadableReference]:
        """The outcome of each (response, reference), in order. Other callers get their turn between batches."""
        submissions = [Submission(*row) for row in rows]
        problems = await self._check(list(dict.fromkeys(row.reference for row in submissions)))
        readable = [row for row in submissions if not problems[row.reference]]
        outcomes: list[str | None] = []
        for start in range(0, len(readable), self._batch_rows):
            outcomes += await self._ask(readable[start : start + self._batch_rows])
        grades = (Grade.NO_ANSWER if outcome is None else Grade(outcome) for outcome in outcomes)
        return [
            UnreadableReference(problems[row.reference]) if problems[row.reference] else next(grades)
            for row in submissions
        ]

    async def _check(self, references: Sequence[str]) -> dict[str, str]:
        """Why each reference is unreadable; empty for a readable one."""
        problems = {text: self._references[text] for text in references if text in self._references}
        for text in problems:
            self._references.move_to_end(text)
        new = [text for text in references if text not in problems]
        for start in range(0, len(new), self._batch_rows):
            batch = new[start : start + self._batch_rows]
            outcomes = await self._ask([(None, text, False, "") for text in batch])
            for text, outcome in zip(batch, outcomes, strict=True):
                if outcome is None:  # not cached: a busy machine may be the reason
                    problems[text] = (
                        f"The reference {text[:60]!r} cannot be read within {self._timeout_s:g} s; send a simpler one."
                    )
                    continue
                problems[text] = outcome
                if len(text) <= MAX_REFERENCE_CHARS:
                    self._references[text] = outcome
        while len(self._references) > _CACHED_REFERENCES:
            self._references.popitem(last=False)
        return problems

    async def _ask(self, rows: Sequence[_Row]) -> list[str | None]:
        """The child's outcome per row, None where the row killed it. A row without a response checks its reference."""
        outcomes: list[str | None] = []
        async with self._turn():
            has_died = False
            while len(outcomes) < len(rows):
                try:
                    child = await self._living_child()
                    await self._send(child, rows[len(outcomes) :])
                    while len(outcomes) < len(rows):
                        outcomes.append(await self._receive(child))
                        has_died = False
                except TimeoutError:
                    outcomes.append(None)
                    await self._kill()
                except _Died:
                    # One death may have an outside cause (low memory, an operator), two are due to the row.
                    if has_died:
                        outcomes.append(None)
                    has_died = not has_died
                    await self._kill()
                except (
                    BaseException
                ):  # cancelled halfway: the outstanding answers must not be taken for those of the next call
                    await self._kill()
                    raise
        return outcomes

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout(self._patience_s):
                await self._turns.acquire()
        except TimeoutError:
            raise TooBusy("too many answers are waiting to be graded", retry_after_s=5.0) from None
        try:
            yield
        finally:
            self._turns.release()

    async def _living_child(self) -> asyncio.subprocess.Process:
        if self._is_closed:
            raise RuntimeError("the grader is closed")
        if self._child is not None and self._child.returncode is not None:
            await self._kill()
        if self._child is None:
            # Not a fork: this process has threads and connections. The folder is the one in which -m finds the package.
            self._child = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                cwd=Path(__file__).parents[2],
            )
            try:
                ready = await self._message(self._child, _START_LIMIT_S)
            except (_Died, TimeoutError):
                await self._kill()
                raise RuntimeError("the grading process does not start; the reason is on standard error") from None
            assert ready == {"ready": True}
        return self._child

    async def _send(self, child: asyncio.subprocess.Process, rows: Sequence[_Row]) -> None:
        assert child.stdin is not None
        cut = [
            (
                None if response is None else response[-MAX_RESPONSE_CHARS - 1 :],
                reference[: MAX_REFERENCE_CHARS + 1],
                is_cut,
                question,
            )
            for response, reference, is_cut, question in rows
        ]
        try:
            child.stdin.write(json.dumps(cut).encode() + b"\n")
            await child.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise _Died from None

    async def _receive(self, child: asyncio.subprocess.Process) -> str:
        message = await self._message(child, _WALL_FACTOR * self._timeout_s)
        if "loading" in message:
            try:
                loaded = await self._message(child, _START_LIMIT_S)
            except (_Died, TimeoutError):
                raise RuntimeError("math-verify cannot be loaded; the reason is on standard error") from None
            if "failed" in loaded:
                raise RuntimeError(f"math-verify cannot be loaded:\n{loaded['failed']}")
            message = await self._message(child, _WALL_FACTOR * self._timeout_s)
        if "failed" in message:
            self._on_failure(message["failed"])
        return str(message["outcome"])

    async def _message(self, child: asyncio.subprocess.Process, limit_s: float) -> dict[str, Any]:
        assert child.stdout is not None
        async with asyncio.timeout(limit_s):
            line = await child.stdout.readline()
        if not line.endswith(b"\n"):
            if await child.wait() == -signal.SIGPROF:
                raise TimeoutError
            raise _Died
        message: dict[str, Any] = json.loads(line)
        return message

    async def _kill(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if child.returncode is None:
            try:
                child.kill()
            except ProcessLookupError:
                pass
        if child.stdin is not None:
            child.stdin.close()
        await child.wait()


def grade_many(rows: Sequence[tuple[str, str] | Submission], *, timeout_s: float) -> list[Grade | UnreadableReference]:
    """The outcome of each (response, reference), in order, for command lines without an event loop.

    An unreadable reference is returned in its row's place, so that one bad row does not hide the others.
    """

    async def run() -> list[Grade | UnreadableReference]:
        async with Grader(timeout_s=timeout_s) as grader:
            return await grader.grade_all(rows)

    return asyncio.run(run())


# --- the child ---


class MathRules:
    """The rules of `gadfly.grading.answers` and `gadfly.grading.kinds`."""

    def problem(self, reference: str) -> str:
        try:
            read_reference(reference)
        except UnreadableReference as problem:
            return str(problem)
        return ""

    def grade(self, submission: Submission) -> Grade:
        return grade(submission.response, read_reference(submission.reference), is_cut=submission.is_cut)

    def preparation(self, reference: str) -> Callable[[], object] | None:
        if is_sympy_loaded() or not needs_sympy(reference):
            return None
        return lambda: load_sympy().warm_up()


def _outcome(rules: Rules, response: str | None, reference: str, is_cut: bool, question: str) -> str:
    if response is None:
        return rules.problem(reference)
    return rules.grade(Submission(response, reference, is_cut, question))


def _unreadable(reference: str) -> str:
    return f"The reference {reference[:60]!r} cannot be read; send a simpler one."


def _serve(requests: IO[str], replies: IO[str], timeout_s: float, load: Callable[[], Rules]) -> None:
    """Answers every line of rows with one line a row, until the parent closes the pipe or dies."""

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    rules = load()
    reply({"ready": True})
    for line in requests:
        for response, reference, is_cut, question in json.loads(line):
            try:
                if (prepare := rules.preparation(reference)) is not None:
                    reply({"loading": True})
                    prepare()
                    reply({"loaded": True})
                # The kernel ends the process after this much CPU time, which requires neither Python, nor the
                # interpreter lock, nor a living parent.
                signal.setitimer(signal.ITIMER_PROF, timeout_s)
                message = {"outcome": _outcome(rules, response, reference, is_cut, question)}
            except MemoryError:
                os._exit(1)  # the state of this process is unknown now
            except Exception:  # a bug, but one row's: it must not stop a service, or an import of thousands
                outcome = Grade.NO_ANSWER if response is not None else _unreadable(reference)
                message = {"outcome": outcome, "failed": traceback.format_exc()}
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            reply(message)


def main() -> None:
    """The child that grades by the rules of mathematics: `python -m gadfly.grading LIMIT_S`."""
    run_child(MathRules, timeout_s=float(sys.argv[1]))


def run_child(load: Callable[[], Rules], *, timeout_s: float) -> None:
    """Serve the rules that `load` gives on standard input and output, until the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C; its closed pipe ends this process
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    # A library that prints must not write into the replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with replies, os.fdopen(os.dup(sys.stdin.fileno()), encoding="ascii") as requests:
        try:
            _serve(requests, replies, timeout_s, load)
        except BrokenPipeError:
            os._exit(0)  # the parent died
