"""How a task is trained in a deployment: its own tables [training] and [schedule], over what the deployment says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gadfly.errors import BadInput, BadSettings
from gadfly.settings import Settings
from gadfly.tasks.manifest import MANIFEST
from gadfly.tasks.served import ServedTasks
from gadfly.tasks.task import Task
from gadfly.training import ChosenOption, OptionSource, TrainConfig, chosen_options, read_config_file


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSchedule:
    """When a task is trained without a request. `own` are the fields that the task sets itself."""

    cron: str  # "": at no time
    after_labels: int  # 0: never
    own: tuple[str, ...]


def train_config_of(task: Task, settings: Settings, changes: Mapping[str, Any] | None = None) -> TrainConfig:
    """The config of a run of a task, with `changes` of a request.

    Raises:
        BadInput: as `TrainConfig.effective`.
    """
    return TrainConfig.effective(
        settings.train_config, changes or {}, served=settings.served_options(), own=task.manifest.training_options
    )


def chosen_options_of(
    task: Task, settings: Settings, changes: Mapping[str, Any] | None = None
) -> tuple[ChosenOption, ...]:
    """The options of such a run that are not left at their defaults, each with the place that it comes from.

    Raises:
        BadInput: as `TrainConfig.effective`.
    """
    config = train_config_of(task, settings, changes)
    layers = {
        OptionSource.SERVED: settings.served_options(),
        OptionSource.FILE: read_config_file(settings.train_config),
        OptionSource.TASK: task.manifest.training_options,
        OptionSource.REQUEST: changes or {},
    }
    return chosen_options(config, layers)


def schedule_of(task: Task, settings: Settings) -> TaskSchedule:
    """When a task is trained: as its manifest says, otherwise as the settings say."""
    own = task.manifest.schedule
    return TaskSchedule(
        cron=settings.train_schedule if own.cron is None else own.cron,
        after_labels=settings.train_after_labels if own.after_labels is None else own.after_labels,
        own=tuple(name for name, value in own if value is not None),
    )


def check_training(tasks: ServedTasks, settings: Settings) -> None:
    """Check that every task can be trained by the deployment's config and its own.

    Raises:
        BadSettings: one cannot; the message names its file.
    """
    for served in tasks:
        try:
            train_config_of(served.task, settings)
        except BadInput as error:
            raise BadSettings(f"{served.task.folder / MANIFEST}: {error}") from None
