"""A task tried on the rows of a file before a deployment uses it. Nothing is stored, and no critic is asked."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from gadfly.errors import BadInput, UnreadableReference
from gadfly.grading import Grade, Submission, TaskGrader
from gadfly.rowfiles.rows import BadRow, ImportRow, row_of
from gadfly.rowfiles.shapes import ColumnMap, fields_of
from gadfly.rowfiles.sources import AS_IT_IS, open_rows
from gadfly.tasks.task import Task

_BATCH_ROWS = 256
_CHARS_PER_CHAR = 48  # of a row's JSON for each character of its longest text, as in an import


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that has no grade: it cannot be read, or its reference cannot be used."""

    number: int  # the line of a text file, the row of an array or a table; counts from 1
    reason: str


@dataclass(slots=True)
class Trial:
    """The grades of a task's grader for the rows of a file."""

    rows: int = 0
    grades: Counter[Grade] = field(default_factory=Counter)
    bad_references: int = 0
    bad_rows: int = 0
    without: int = 0  # rows without a response or a reference, which only a deployment can complete
    faults: list[Fault] = field(default_factory=list)
    # Rows with a label of a person: (label, grade) -> rows.
    labelled: Counter[tuple[bool, Grade]] = field(default_factory=Counter)
    unit: str = "row"

    @property
    def accuracy(self) -> float | None:
        """The share of right answers among those graded right or wrong."""
        right, wrong = self.grades[Grade.RIGHT], self.grades[Grade.WRONG]
        return right / (right + wrong) if right + wrong else None

    @property
    def agreement(self) -> float | None:
        """The share of a person's labels that the grader gives too, among rows that it grades right or wrong."""
        told = self._told()
        return (told[True, True] + told[False, False]) / told.total() if told.total() else None

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa of labels and grades: 1 is full agreement, 0 that of chance. None where it is not defined."""
        told = self._told()
        total = told.total()
        if not total:
            return None
        right = (told[True, True] + told[True, False]) / total
        graded = (told[True, True] + told[False, True]) / total
        by_chance = right * graded + (1 - right) * (1 - graded)
        observed = (told[True, True] + told[False, False]) / total
        return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)

    def _told(self) -> Counter[tuple[bool, bool]]:
        told: Counter[tuple[bool, bool]] = Counter()
        for (label, grade), rows in self.labelled.items():
            if grade.label is not None:
                told[label, grade.label] += rows
        return told


async def try_task(
    task: Task,
    source: str,
    *,
    grader: TaskGrader,
    max_text_chars: int,
    columns: ColumnMap,
    most: int | None = None,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> Trial:
    """Grade up to `most` rows of a file, in any format that an import reads.

    Raises:
        BadInput: the file cannot be read, or has not the columns that `columns` names. Also as
            `gadfly.grading.TaskGrader.grade_all`.
    """
    trial = Trial()
    with open_rows(source, AS_IT_IS, max_row_chars=_CHARS_PER_CHAR * max_text_chars) as opened:
        trial.unit = opened.unit
        raws = islice(opened.rows, most)
        is_first = True
        while batch := list(islice(raws, _BATCH_ROWS)):
            if is_first:
                columns.check([raw.value for raw in batch if not isinstance(raw.value, BadRow)])
                is_first = False
            rows: list[tuple[int, ImportRow]] = []
            for raw in batch:
                trial.rows += 1
                try:
                    if isinstance(raw.value, BadRow):
                        raise raw.value
                    notes: Counter[str] = Counter()
                    fields = fields_of(raw.value, columns, notes)
                    rows.append((raw.number, row_of(fields, max_text_chars=max_text_chars, notes=notes)))
                except BadRow as error:
                    trial.bad_rows += 1
                    trial.faults.append(Fault(raw.number, str(error)))
            await _grade(rows, grader, trial)
            on_progress(trial.rows)
    trial.faults.sort(key=lambda fault: fault.number)
    if not trial.rows:
        raise BadInput(f"{source} has no rows")
    return trial


async def _grade(rows: list[tuple[int, ImportRow]], grader: TaskGrader, trial: Trial) -> None:
    submitted = list(_submissions(rows))
    trial.without += len(rows) - len(submitted)
    outcomes = await grader.grade_all([submission for _, _, submission in submitted])
    for (number, row, _), outcome in zip(submitted, outcomes, strict=True):
        if isinstance(outcome, UnreadableReference):
            trial.bad_references += 1
            trial.faults.append(Fault(number, str(outcome)))
            continue
        trial.grades[outcome] += 1
        if row.correct is not None:
            trial.labelled[row.correct, outcome] += 1


def _submissions(rows: list[tuple[int, ImportRow]]) -> Iterator[tuple[int, ImportRow, Submission]]:
    for number, row in rows:
        if row.reference is not None and row.response is not None:
            yield number, row, Submission(row.response, row.reference, question=row.question)
