"""Tasks: the kinds of answers that a deployment's critics judge, as folders of files.

A task is a name, a version by content, prompts with their verdict words, the form of an answer, and a grader. Built-in
tasks are in `builtin/`; a folder that a user writes has the same files.

    task = load_task("sql")
    async with open_grader(task, settings) as grader:
        await grader.grade_all([Submission(response, reference)])
"""

from gadfly.task_names import DEFAULT_TASK
from gadfly.tasks.graders import open_grader
from gadfly.tasks.served import ServedTask, ServedTasks, load_task_named, load_tasks
from gadfly.tasks.task import Task, available, load_task

__all__ = [
    "DEFAULT_TASK",
    "ServedTask",
    "ServedTasks",
    "Task",
    "available",
    "load_task",
    "load_task_named",
    "load_tasks",
    "open_grader",
]
