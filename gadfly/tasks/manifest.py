"""The contents of `task.toml`: name, prompts, the form of an answer, and the grader.

Every field is checked when a task is loaded. A message says which file and field are wrong and what to do.
"""

import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import croniter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from gadfly.errors import BadSettings
from gadfly.fields import problems_of
from gadfly.grading import Grade
from gadfly.training import TrainConfig

MANIFEST = "task.toml"

_MODULE = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


class _ManifestShape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Form(StrEnum):
    """Where a response states its answer."""

    WHOLE = "whole"  # all of it
    LAST_LINE = "last_line"
    AFTER = "after"  # the rest of the last line that contains `marker`
    TAG = "tag"  # inside the last <marker>...</marker>
    FENCED = "fenced"  # the last closed block of code, of `language` if it is given
    JSON = "json"  # the last complete JSON object or list


class AnswerForm(_ManifestShape):
    """Where a response states its answer. A response without it, or cut before its end, has no answer."""

    form: Form = Form.WHOLE
    marker: str = ""
    language: str = ""

    @model_validator(mode="after")
    def _has_what_its_form_needs(self) -> Self:
        if (self.form in (Form.AFTER, Form.TAG)) != bool(self.marker.strip()):
            raise ValueError('marker is for the forms "after" and "tag", which need it, as in marker = "Answer:"')
        if self.language and self.form is not Form.FENCED:
            raise ValueError('language is for the form "fenced"')
        return self


class _Scored(_ManifestShape):
    """A grader that may give a score: right from `threshold` on, wrong below `wrong_below`, no answer between them."""

    threshold: float | None = None
    wrong_below: float | None = None

    @model_validator(mode="after")
    def _is_a_scale(self) -> Self:
        if self.wrong_below is not None and (self.threshold is None or self.wrong_below > self.threshold):
            raise ValueError("wrong_below needs a threshold that is not smaller")
        return self

    def grade_of(self, value: object) -> Grade:
        """The grade for a grader's result: true, false, null for no answer, or a score where there is a threshold.

        Raises:
            TypeError: it is something else.
        """
        match value:
            case None:
                return Grade.NO_ANSWER
            case bool() if self.threshold is None:
                return Grade.RIGHT if value else Grade.WRONG
            case int() | float() if self.threshold is not None:
                if value >= self.threshold:
                    return Grade.RIGHT
                lowest = self.threshold if self.wrong_below is None else self.wrong_below
                return Grade.WRONG if value < lowest else Grade.NO_ANSWER
        expected = "true, false or null" if self.threshold is None else "a number or null"
        raise TypeError(f"the grader returned {value!r}; it must return {expected}")


class MathGrader(_ManifestShape):
    """The rules for numbers, choices, expressions and short texts (`gadfly.grading`)."""

    kind: Literal["math"]


class ExactGrader(_ManifestShape):
    """The answer is the reference, after both are normalised."""

    kind: Literal["exact"]
    ignore_case: bool = True
    ignore_space: bool = True  # runs of white space are one space, none at the ends
    ignore_punctuation: bool = False  # at the ends, and quotation marks around the answer
    separator: str = ""  # between several right answers in one reference
    answers: tuple[str, ...] = ()  # all answers that there are, if they are few: any other text is no answer

    @field_validator("answers")
    @classmethod
    def _are_several(cls, answers: tuple[str, ...]) -> tuple[str, ...]:
        if len(answers) == 1 or not all(answer.strip() for answer in answers):
            raise ValueError("list at least two answers, none of them empty")
        return answers


class ChoiceGrader(_ManifestShape):
    """The answer is a letter. Without an answer form, the letter is found as the rules for mathematics find it."""

    kind: Literal["choice"]
    choices: int = Field(4, ge=2, le=10)


class RegexGrader(_ManifestShape):
    """The reference is a regular expression that the answer matches."""

    kind: Literal["regex"]
    match: Literal["full", "search"] = "full"
    ignore_case: bool = False


class FieldComparison(StrEnum):
    """When two values of a JSON field are equal."""

    EXACT = "exact"
    TEXT = "text"  # texts without regard to case and white space
    NUMBER = "number"  # numbers, also in text, within `tolerance`
    UNORDERED = "unordered"  # lists in any order


class JsonGrader(_ManifestShape):
    """The answer is JSON, compared with the reference as a whole or field by field.

    An answer that violates the schema is wrong. A field that the reference lacks must be missing or null.
    """

    kind: Literal["json"]
    schema_file: str = Field("", alias="schema")
    fields: dict[str, FieldComparison] = Field(default_factory=dict)  # empty: the whole value is compared
    tolerance: float = Field(1e-6, ge=0)  # relative, of numbers
    threshold: float = Field(1.0, gt=0, le=1)  # share of equal fields from which an answer is right


class PythonGrader(_Scored):
    """A function of the task's own: `grade(answer, reference, question)` gives true, false, None, or a score.

    `check(reference)` raises ValueError with a sentence for the sender of a reference that it cannot use.
    """

    kind: Literal["python"]
    entry: str = Field(pattern=_MODULE)
    check: str | None = Field(None, pattern=_MODULE)


class SqlGrader(_ManifestShape):
    """The answer is an SQL query that selects the same rows as the reference, on every one of the databases."""

    kind: Literal["sql"]
    databases: tuple[str, ...] = Field(min_length=1)  # SQLite scripts of one schema with different rows


class _Remote(_Scored):
    timeout_s: float = Field(60.0, gt=0)
    retries: int = Field(4, ge=0, le=20)
    concurrency: int = Field(8, ge=1, le=256)


class HttpGrader(_Remote):
    """An HTTP service grades, batch by batch. Its address is `GADFLY_GRADER_URL`, its key `GADFLY_GRADER_KEY`."""

    kind: Literal["http"]
    batch: int = Field(64, ge=1, le=1024)


class JudgeGrader(_Remote):
    """A model grades by a rubric, behind the OpenAI endpoint `GADFLY_GRADER_URL` with the key `GADFLY_GRADER_KEY`."""

    kind: Literal["judge"]
    model: str = Field(min_length=1)
    rubric: str
    max_tokens: int = Field(512, ge=1)


GraderSpec = Annotated[
    MathGrader
    | ExactGrader
    | ChoiceGrader
    | RegexGrader
    | JsonGrader
    | PythonGrader
    | SqlGrader
    | HttpGrader
    | JudgeGrader,
    Field(discriminator="kind"),
]


class Schedule(_ManifestShape):
    """When a task is trained without a request. None: as the settings of the deployment say."""

    cron: str | None = None  # in cron syntax; "": at no time
    after_labels: int | None = Field(None, ge=0)  # new labels of the task; 0: never

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, value: str | None) -> str | None:
        if value and not croniter.croniter.is_valid(value):
            raise ValueError(f'{value!r} is not in cron syntax: write minute, hour, day, month and weekday, as in '
                             '"0 3 * * *", or "" for no time')  # fmt: skip
        return value


def _with_none(value: Any) -> Any:
    """TOML has no null, so that "none" stands for it. No training option has this text as a value."""
    if isinstance(value, dict):
        return {name: _with_none(inner) for name, inner in value.items()}
    return None if value == "none" else value


_OWN_READING = ("math", "choice")  # kinds that can find the answer in a response themselves


class Manifest(_ManifestShape):
    """`task.toml` of a task."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")
    description: str = Field(min_length=1)
    prompts: str | None = None  # a file of the folder, or a packaged set; None: that of GADFLY_PROMPTS
    answer: AnswerForm | None = None
    grader: GraderSpec
    training: Annotated[TrainConfig, BeforeValidator(_with_none)] = TrainConfig()  # its fields that are set
    schedule: Schedule = Schedule()

    @property
    def training_options(self) -> dict[str, Any]:
        """The options of runs that the task sets itself, those of a group as an object."""
        return self.training.model_dump(mode="json", exclude_unset=True)

    @model_validator(mode="after")
    def _form_fits(self) -> Self:
        if self.answer is None and self.grader.kind not in _OWN_READING:
            raise ValueError(
                f'[answer] is missing: a grader of kind "{self.grader.kind}" needs the form of an answer, one of '
                f"{', '.join(Form)}"
            )
        if self.answer is not None and self.grader.kind == "math":
            raise ValueError('[answer] is not for a grader of kind "math", which finds the answer itself: remove it')
        if self.grader.kind == "json" and self.answer is not None and self.answer.form is Form.LAST_LINE:
            raise ValueError('[answer]: JSON may have several lines; use form = "json", "fenced" or "whole"')
        return self

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest in a folder.

        Raises:
            BadSettings: it is missing or invalid; the message names file and field.
        """
        path = folder / MANIFEST
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BadSettings(f"{folder} is not a task: it has no file {MANIFEST}") from None
        except OSError as error:
            raise BadSettings(f"{path} cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadSettings(f"{path} is not TOML: {error}") from None
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise BadSettings(f"{path}: {problems_of(error, union='grader')}") from None
