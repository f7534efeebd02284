"""Warnings about a task whose files fit together."""

from gadfly.errors import BadSettings
from gadfly.grading import Submission
from gadfly.prompts import PromptSet
from gadfly.settings import Settings
from gadfly.tasks.answers import example_of
from gadfly.tasks.graders import open_grader
from gadfly.tasks.manifest import AnswerForm, HttpGrader, JudgeGrader
from gadfly.tasks.task import Task
from gadfly.verdict import EXPLANATION_FIELD, STEP_FIELD, STEP_VERDICT_FIELD, VERDICT_FIELD


def notes_about(prompts: PromptSet) -> list[str]:
    """What a prompt set does that is rarely intended, each as a sentence."""
    prompt = prompts.critique(question="", response="")
    text = "\n".join([*(message.content for message in prompt.messages), prompt.opener])
    missing = [
        field for field in (STEP_FIELD, STEP_VERDICT_FIELD, EXPLANATION_FIELD, VERDICT_FIELD) if field not in text
    ]
    notes = []
    if missing:
        notes.append(
            f"the critique prompt does not show {' and '.join(repr(name + ':') for name in missing)}, which are read "
            "from a critique: only a model that was trained on this format will write them"
        )
    if prompts.correct not in text or prompts.incorrect not in text:
        notes.append(f"the critique prompt does not show both verdict words, {prompts.correct} and {prompts.incorrect}")
    return notes


async def start_grader(task: Task, settings: Settings) -> None:
    """Start a task's grader; one behind an address is asked for one grade.

    Raises:
        BadSettings: it does not start; the reason is on standard error. Also as `open_grader`.
        EngineError: its address does not answer as it should.
    """
    async with open_grader(task, settings) as grader:
        try:
            await grader.start()
        except RuntimeError as error:
            raise BadSettings(f"the grader of {task.name} does not start: {error}") from None
        if isinstance(task.manifest.grader, HttpGrader | JudgeGrader):
            response = example_of(task.manifest.answer or AnswerForm())
            await grader.grade_all([Submission(response, "42", question="What is 6 * 7?")])
