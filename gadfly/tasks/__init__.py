"""Tasks: the kinds of answers that a deployment's critic judges, as folders of files.

A task is a name, a version by content, prompts with their verdict words, the form of an answer, and a grader. Built-in
tasks are in `builtin/`; a folder that a user writes has the same files.

    task = load_task("sql")
    async with open_grader(task, settings) as grader:
        await grader.grade_all([Submission(response, reference)])
"""

from gadfly.tasks.graders import open_grader
from gadfly.tasks.task import DEFAULT_TASK, Task, available, load_task

__all__ = ["DEFAULT_TASK", "Task", "available", "load_task", "open_grader"]
