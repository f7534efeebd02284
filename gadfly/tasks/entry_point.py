"""Rules that a task brings as functions of Python.

The functions are the operator's code and run with the operator's rights, in the grading process, under its limits of
time and memory. A function must not evaluate an answer: that is a stranger's text.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gadfly.errors import BadSettings
from gadfly.grading import Grade, Submission
from gadfly.tasks.manifest import MANIFEST, AnswerForm, PythonGrader
from gadfly.tasks.rules import AnswerRules


class PythonRules(AnswerRules):
    """The functions that a manifest names.

    Raises:
        BadSettings: a module or function cannot be loaded, or takes other arguments.
    """

    def __init__(self, spec: PythonGrader, form: AnswerForm, folder: Path) -> None:
        super().__init__(form)
        self._spec = spec
        self._grade = _load(folder, "grader.entry", spec.entry, ("answer", "reference", "question"))
        self._check = None if spec.check is None else _load(folder, "grader.check", spec.check, ("reference",))

    def fault(self, reference: str) -> str:
        if self._check is not None:
            try:
                self._check(reference)
            except ValueError as error:
                return str(error) or f"The reference {reference[:60]!r} cannot be used; send another one."
        return ""

    def compare(self, answer: str, submission: Submission) -> Grade:
        return self._spec.grade_of(self._grade(answer, submission.reference, submission.question))


def _load(folder: Path, field: str, entry: str, arguments: tuple[str, ...]) -> Callable[..., Any]:
    where = f"{folder / MANIFEST}: {field} = {entry!r}"
    module_name, _, name = entry.partition(":")
    try:
        found = getattr(_module(folder, module_name), name)
    except AttributeError:
        raise BadSettings(f"{where}: the module {module_name} has no function {name}") from None
    except ModuleNotFoundError as error:
        raise BadSettings(f"{where}: there is no module {error.name}, in {folder} or among the packages") from None
    except Exception as error:  # the module's own code may raise anything
        raise BadSettings(f"{where}: {module_name} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        inspect.signature(found).bind(*arguments)
    except TypeError as error:
        raise BadSettings(f"{where}: the function is called with ({', '.join(arguments)}): {error}") from None
    function: Callable[..., Any] = found
    return function


def _module(folder: Path, name: str) -> Any:
    """A module of the task's folder, which goes before one of the same name among the packages."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # for its own imports
    path = folder.joinpath(*name.split(".")).with_suffix(".py")
    if not path.is_file():
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
