"""Which grader a task has: the only place that picks it, for serving, import, training and evaluation alike."""

import sys
from collections.abc import Callable

from gadfly.errors import BadSettings
from gadfly.grading import Grader, GradingLanes, TaskGrader
from gadfly.settings import Settings
from gadfly.tasks.judge import Judge
from gadfly.tasks.manifest import HttpGrader, JudgeGrader, MathGrader
from gadfly.tasks.remote import RemoteGrader
from gadfly.tasks.task import Task


def open_grader(
    task: Task,
    settings: Settings,
    *,
    patience_s: float | None = None,
    on_failure: Callable[[str], None] | None = None,
) -> TaskGrader:
    """The grader of a task, to be closed by the caller.

    Args:
        task: decides which grader it is.
        settings: where it runs, and its limits.
        patience_s: how long a call may wait for its turn in the grading process; None: without limit.
        on_failure: receives the reason of each row that the grader failed on, and that has no answer therefore. None:
            it is logged.

    Raises:
        BadSettings: the grader is behind an address, and GADFLY_GRADER_URL is not set.
    """
    match task.manifest.grader:
        case MathGrader():
            return GradingLanes(
                timeout_s=settings.grade_timeout_s,
                hard=settings.grade_processes,
                patience_s=patience_s,
                on_failure=on_failure,
            )
        case HttpGrader() as spec:
            return RemoteGrader(task, spec, url=_url(task, settings), key=_key(settings), ca_file=settings.ca_file)
        case JudgeGrader() as spec:
            return Judge(task, spec, url=_url(task, settings), key=_key(settings), ca_file=settings.ca_file)
        case _:
            return Grader(
                timeout_s=settings.grade_timeout_s,
                patience_s=patience_s,
                command=(sys.executable, "-m", "gadfly.tasks.child", str(task.folder)),
                version=task.grader_version,
                key=task.key,
                on_failure=on_failure,
            )


def _url(task: Task, settings: Settings) -> str:
    if not settings.grader_url:
        raise BadSettings(
            f"the task {task.name} is graded by {task.manifest.grader.kind}: set GADFLY_GRADER_URL to the address"
        )
    return settings.grader_url


def _key(settings: Settings) -> str:
    return "" if settings.grader_key is None else settings.grader_key.get_secret_value()
