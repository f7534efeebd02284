"""Shapes of /tasks."""

from typing import Any

from pydantic import Field, JsonValue

from gadfly.service.wire.common import Wire


class VerdictWordsView(Wire):
    """The words of a critique's verdicts."""

    correct: str
    incorrect: str


class TaskScheduleView(Wire):
    """When a task is trained without a request."""

    cron: str = Field(description="In cron syntax; empty: at no time.")
    after_labels: int = Field(description="After so many new labels of the task; 0: never.")
    own: list[str] = Field(
        description="Which of these the task sets itself (its table [schedule]); the others are settings."
    )


class TaskView(Wire):
    """One task: what its critic judges, and how an answer is graded."""

    name: str
    version: str = Field(description="The version of the task's files.")
    description: str
    is_default: bool = Field(description="Whether it is the task of requests that name none.")
    prompt_set: str
    verdict_words: VerdictWordsView
    answer: dict[str, Any] | None = Field(description="The form of an answer; null: the grader finds the answer.")
    grader: dict[str, Any] = Field(description="The kind of the grader with its options.")
    grader_version: int
    guess_rate: float | None = Field(description="Share of right answers by guessing; null where it is not known.")
    live_critic: int | None = Field(description="The version that answers by default.")
    training: dict[str, JsonValue] = Field(
        default_factory=dict, description="Training options that the task sets itself (its table [training])."
    )
    schedule: TaskScheduleView
