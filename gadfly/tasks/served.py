"""The tasks of a deployment: that of GADFLY_TASK, those of GADFLY_TASKS, and those that were added to its home."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gadfly.errors import BadSettings, NotFound
from gadfly.prompts import PromptSet
from gadfly.records import TaskId
from gadfly.settings import Settings
from gadfly.tasks.manifest import MANIFEST
from gadfly.tasks.task import Task, load_task


@dataclass(frozen=True, slots=True)
class ServedTask:
    """A task with the prompts that it has in this deployment."""

    task: Task
    prompts: PromptSet

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def id(self) -> TaskId:
        return self.task.id


class ServedTasks:
    """The tasks of a deployment by name, the default one first."""

    def __init__(self, tasks: Mapping[str, ServedTask]) -> None:
        self._tasks = dict(tasks)
        self.default = next(iter(self._tasks.values()))

    def __iter__(self) -> Iterator[ServedTask]:
        return iter(self._tasks.values())

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tasks)

    def get(self, name: str | None) -> ServedTask:
        """The task of this name; the default one without a name.

        Raises:
            NotFound: it is not served.
        """
        if name is None:
            return self.default
        if name not in self._tasks:
            raise NotFound(f"the task {name!r} is not served here; the tasks are {', '.join(self._tasks)}")
        return self._tasks[name]


def load_tasks(settings: Settings) -> ServedTasks:
    """Load and check every task of a deployment.

    Raises:
        BadSettings: one cannot be loaded, as `load_task`; a folder holds none; or two have one name.
    """
    found: dict[str, ServedTask] = {}
    places = [*settings.tasks, *map(str, added_tasks(settings.home))]
    for task in (load_task(each) for place in places for each in _tasks_in(place)):
        _enter(found, task, settings)
    default = settings.task
    if default not in found:  # else it is the name of one of these
        default = _enter(found, load_task(default), settings)
    return ServedTasks({default: found[default]} | found)


def _enter(found: dict[str, ServedTask], task: Task, settings: Settings) -> str:
    known = found.setdefault(task.name, ServedTask(task, task.prompt_set(settings.prompts)))
    if known.task.folder != task.folder:
        raise BadSettings(
            f"two tasks have the name {task.name}: {known.task.folder} and {task.folder}; give one another name in its "
            f"{MANIFEST}"
        )
    return task.name


def load_task_named(settings: Settings, name: str | None) -> ServedTask:
    """One of a deployment's tasks by its name; the default one without a name.

    Raises:
        BadSettings: it is not served, or the tasks cannot be loaded.
    """
    try:
        return load_tasks(settings).get(name)
    except NotFound as error:
        raise BadSettings(f"{error}; GADFLY_TASKS names more of them, and `gadfly tasks add` adds a folder") from None


def folder_of_added(home: Path) -> Path:
    """The folder with the tasks that were added to a deployment."""
    return home / "tasks"


def added_tasks(home: Path) -> list[Path]:
    """The folders of the tasks that were added to a deployment, in order of their names."""
    return _subfolders(folder_of_added(home))


def _tasks_in(place: str) -> list[str]:
    """A place of GADFLY_TASKS as names of tasks: itself, or the tasks in a folder that holds several."""
    folder = Path(place)
    if not folder.is_absolute() or (folder / MANIFEST).is_file() or not folder.is_dir():
        return [place]
    inside = _subfolders(folder)
    if not inside:
        raise BadSettings(f"GADFLY_TASKS: {folder} is not a task and holds none: neither it nor a folder in it has a "
                          f"file {MANIFEST}")  # fmt: skip
    return list(map(str, inside))


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(each for each in folder.iterdir() if (each / MANIFEST).is_file() and not each.name.startswith("."))
