"""Grades responses against reference answers.

The rules for mathematics, and those of other tasks that run here, run in a child process that is killed at its limits.
"""

from gadfly.grading.kinds import stated_answer
from gadfly.grading.lanes import GradingLanes
from gadfly.grading.process import (
    GRADER_VERSION,
    Grade,
    Grader,
    Rules,
    Submission,
    extract_answer,
    grade,
    grade_many,
    read_reference,
    run_child,
)
from gadfly.grading.task_grader import TaskGrader, grade_one
from gadfly.grading.turns import grading_for
from gadfly.grading.voting import group_by_answer

__all__ = [
    "GRADER_VERSION",
    "Grade",
    "Grader",
    "GradingLanes",
    "Rules",
    "Submission",
    "TaskGrader",
    "extract_answer",
    "grade",
    "grade_many",
    "grade_one",
    "grading_for",
    "group_by_answer",
    "read_reference",
    "run_child",
    "stated_answer",
]
