"""Grades responses against reference answers, in a child process that is killed at its time limit."""

from gadfly.grading.kinds import stated_answer
from gadfly.grading.process import (
    GRADER_VERSION,
    Grade,
    Grader,
    Submission,
    extract_answer,
    grade,
    grade_many,
    read_reference,
)
from gadfly.grading.voting import group_by_answer

__all__ = [
    "GRADER_VERSION",
    "Grade",
    "Grader",
    "Submission",
    "extract_answer",
    "grade",
    "grade_many",
    "group_by_answer",
    "read_reference",
    "stated_answer",
]
