"""Adding a task to a deployment: a copy of its folder in the deployment's home."""

import shutil
from pathlib import Path

from gadfly.errors import BadSettings
from gadfly.settings import Settings
from gadfly.tasks.served import folder_of_added, load_tasks
from gadfly.tasks.task import Task, available


def add(task: Task, settings: Settings, *, replace: bool) -> Path:
    """Copy a task's folder into the home of a deployment; its place there. The copy appears in one step.

    Raises:
        BadSettings: the task is built in, or the deployment has one of this name and `replace` is false.
    """
    if task.name in available():
        raise BadSettings(f"{task.name} is built in: name it in GADFLY_TASKS to serve it")
    place = folder_of_added(settings.home) / task.name
    if task.folder == place:
        raise BadSettings(f"{task.name} is in {place} already")
    served = load_tasks(settings)
    if task.name in served.names and served.get(task.name).task.folder != place:
        raise BadSettings(f"this deployment serves a task {task.name} from {served.get(task.name).task.folder} already")
    if place.exists() and not replace:
        raise BadSettings(f"{task.name} was added before: --replace takes the new folder in its place")
    unfinished = place.with_name(f".{task.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(task.folder, unfinished)
    shutil.rmtree(place, ignore_errors=True)
    unfinished.rename(place)
    return place
