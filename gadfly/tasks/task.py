"""A task, loaded from its folder and checked, so that faults are found here and not under load."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from gadfly import grading, prompts
from gadfly.errors import BadSettings
from gadfly.grading import GRADER_VERSION, Rules
from gadfly.prompts import PromptSet, parse_prompt_set
from gadfly.records import TaskId
from gadfly.tasks.answers import stated_answer
from gadfly.tasks.entry_point import PythonRules
from gadfly.tasks.manifest import (
    MANIFEST,
    AnswerForm,
    ChoiceGrader,
    ExactGrader,
    HttpGrader,
    JsonGrader,
    JudgeGrader,
    Manifest,
    MathGrader,
    PythonGrader,
    RegexGrader,
    SqlGrader,
)
from gadfly.tasks.rubric import read_rubric
from gadfly.tasks.rules import AnswerRules, ChoiceRules, ExactRules, JsonRules, RegexRules, read_choice
from gadfly.tasks.sql import SqlRules, open_database

_RULES_VERSION = 1  # raised when a change of the rules in this package changes grades
_HEX = 12  # digits of a hash in a version


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A task as its folder has it.

    `sha256` is the hash of all files that the manifest names, and `grader_version` a number for that part of them which
    decides about grades.
    """

    folder: Path
    manifest: Manifest
    sha256: str
    grader_version: int
    _prompts: PromptSet | None
    _rules: AnswerRules | None  # of kinds that need no process of their own to tell equal answers

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        """The first digits of `sha256`."""
        return self.sha256[:_HEX]

    @property
    def id(self) -> TaskId:
        """The name that is stored with the questions and critics of this task."""
        return TaskId(self.name, self.version)

    @property
    def guess_rate(self) -> float | None:
        """The share of right answers that guessing gives, where the number of answers is known."""
        match self.manifest.grader:
            case ChoiceGrader(choices=choices):
                return 1 / choices
            case ExactGrader(answers=answers) if answers:
                return 1 / len(answers)
        return None

    def prompt_set(self, default: str) -> PromptSet:
        """The prompts of critic and actor; `default` names the packaged set for a task that has none of its own."""
        return prompts.load(default) if self._prompts is None else self._prompts

    def stated_answer(self, text: str) -> str | None:
        """The answer that a corrected response states, as a reference for others; None where it states none."""
        match self.manifest.grader:
            case MathGrader():
                return grading.stated_answer(text)
            case ChoiceGrader() if self.manifest.answer is None:
                return read_choice(text)
        return stated_answer(_form(self.manifest), text)

    def key(self, text: str, is_cut: bool) -> str | None:
        """The answer that a text states, in a form in which equal answers are equal; None where it states none.

        Not for tasks whose grader is of kind `math`.
        """
        if isinstance(self.manifest.grader, ChoiceGrader) and self.manifest.answer is None:
            return read_choice(text, is_cut=is_cut)
        answer = stated_answer(_form(self.manifest), text, is_cut=is_cut)
        if answer is None:
            return None
        return " ".join(answer.split()) if self._rules is None else self._rules.key(answer)


def available() -> tuple[str, ...]:
    """The names of the built-in tasks."""
    return tuple(sorted(entry.name for entry in _builtin().iterdir() if (entry / MANIFEST).is_file()))


def load_task(name: str) -> Task:
    """The built-in task of this name, or the task in this folder.

    Raises:
        BadSettings: there is no such task, or a file of it is missing or invalid; the message names file and field.
    """
    if name in available():
        return _load(_builtin() / name)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise BadSettings(
            f"there is no task {name!r}: the built-in tasks are {', '.join(available())}, and any other task is a "
            f"folder with a file {MANIFEST}"
        )
    task = _load(folder.resolve())
    if task.name in available():
        raise BadSettings(
            f"{folder / MANIFEST}: name: {task.name!r} is the name of a built-in task: choose another, as in "
            f'name = "my-{task.name}"'
        )
    return task


def load_rules(manifest: Manifest, folder: Path, *, limit_s: float) -> Rules:
    """The rules of a grader that runs in the grading process, with `limit_s` for one answer.

    Raises:
        BadSettings: a file of the task is missing or invalid.
    """
    match manifest.grader:
        case PythonGrader() as spec:
            return PythonRules(spec, _form(manifest), folder)
        case SqlGrader() as spec:
            # For the queries of answer and reference on each database, with time left over to compare their rows.
            return SqlRules(spec, _form(manifest), folder, limit_s=limit_s / (3 * len(spec.databases)))
    rules = _plain_rules(manifest, folder)
    assert rules is not None, manifest.grader.kind
    return rules


def _plain_rules(manifest: Manifest, folder: Path) -> AnswerRules | None:
    """The rules of kinds whose comparison of two answers is plain text processing; None for the others."""
    match manifest.grader:
        case ExactGrader() as spec:
            return ExactRules(spec, _form(manifest))
        case ChoiceGrader() as spec:
            return ChoiceRules(spec, manifest.answer)
        case RegexGrader() as spec:
            return RegexRules(spec, _form(manifest))
        case JsonGrader() as spec:
            return JsonRules(spec, _form(manifest), folder)
    return None


def _form(manifest: Manifest) -> AnswerForm:
    return manifest.answer or AnswerForm()


def _builtin() -> Path:
    with as_file(files("gadfly.tasks").joinpath("builtin")) as folder:  # a wheel is installed unpacked
        return folder


def _load(folder: Path) -> Task:
    manifest = Manifest.read(folder)
    own_prompts = _read_prompts(manifest, folder)
    grader_files = {name: _read(folder, field, name) for field, name in _grader_files(manifest, folder)}
    _check_grader(manifest, folder)
    rules = _plain_rules(manifest, folder)
    all_files = grader_files | {MANIFEST: _read(folder, "", MANIFEST)}
    if own_prompts is not None and manifest.prompts is not None and "@" not in manifest.prompts:
        all_files[manifest.prompts] = _read(folder, "prompts", manifest.prompts)
    return Task(
        folder=folder,
        manifest=manifest,
        sha256=_hash(all_files),
        grader_version=_grader_version(manifest, grader_files),
        _prompts=own_prompts,
        _rules=rules,
    )


def _read_prompts(manifest: Manifest, folder: Path) -> PromptSet | None:
    name = manifest.prompts
    if name is None:
        return None
    if "@" in name:
        try:
            return prompts.load(name)
        except BadSettings as error:
            raise BadSettings(f"{folder / MANIFEST}: prompts: {error}") from None
    content = _read(folder, "prompts", name)
    own_name = f"{manifest.name}@{hashlib.sha256(content).hexdigest()[:_HEX]}"
    return parse_prompt_set(content, name=own_name, where=str(folder / name))


def _grader_files(manifest: Manifest, folder: Path) -> Iterator[tuple[str, str]]:
    """The field and name of each file of the folder that decides about grades."""
    match manifest.grader:
        case JsonGrader(schema_file=name) if name:
            yield "grader.schema", name
        case SqlGrader(databases=names):
            yield from (("grader.databases", name) for name in names)
        case JudgeGrader(rubric=name):
            yield "grader.rubric", name
        case PythonGrader():  # which of them the entry point imports is not known
            yield from (("grader.entry", str(path.relative_to(folder))) for path in sorted(folder.rglob("*.py")))


def _check_grader(manifest: Manifest, folder: Path) -> None:
    """Raises BadSettings for faults of the grader's files. Functions of Python are loaded in their own process only."""
    match manifest.grader:
        case SqlGrader(databases=names):
            for name in names:
                open_database(folder / name).close()
        case JudgeGrader() as spec:
            read_rubric(spec, folder)


def _read(folder: Path, field: str, name: str) -> bytes:
    path = folder / name
    where = f"{folder / MANIFEST}: {field} = {name!r}"
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise BadSettings(f"{where}: must be a file inside the task's folder, so that the folder is the whole task")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadSettings(f"{where}: there is no such file in {folder}") from None
    except OSError as error:
        raise BadSettings(f"{where}: the file cannot be read: {error.strerror}") from None


def _hash(contents: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(contents.items()):
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _grader_version(manifest: Manifest, contents: dict[str, bytes]) -> int:
    if isinstance(manifest.grader, MathGrader):
        return GRADER_VERSION
    # Not how often it is asked and how long it may take, which changes no grade.
    spec = manifest.grader.model_dump(mode="json", exclude={"timeout_s", "retries", "concurrency", "batch"})
    form = None if manifest.answer is None else manifest.answer.model_dump(mode="json")
    parts = json.dumps([_RULES_VERSION, spec, form], sort_keys=True).encode()
    if isinstance(manifest.grader, HttpGrader):
        parts += manifest.name.encode()  # its rules are elsewhere
    return int(_hash({**contents, "": parts})[:7], 16) + GRADER_VERSION + 1  # fits an integer of Postgres
