"""How a task is trained: its own options and times over those of the deployment, and below the request's."""

import json
from pathlib import Path
from typing import Any

import pytest

from gadfly.errors import BadInput, BadSettings
from gadfly.settings import Settings
from gadfly.tasks import Task, load_task, load_tasks
from gadfly.tasks.training import TaskSchedule, check_training, chosen_options_of, schedule_of, train_config_of
from gadfly.training import OptionSource, TrainConfig
from tests.support.tasks import write_task


def task_with(folder: Path, tables: str) -> Task:
    return load_task(str(write_task(folder, f'kind = "exact"\n{tables}')))


LAYERS = [  # the file, the task's [training], the request, an option and its value, why this row exists
    ({}, "", {}, "steps_stage_1", 20, "default", "nothing is said"),
    ({}, "", {}, "max_critique_tokens", 100, "served", "as the service answers"),
    ({"max_critique_tokens": 90}, "", {}, "max_critique_tokens", 90, "file", "the file over the service"),
    ({"steps_stage_1": 1}, "steps_stage_1 = 2", {}, "steps_stage_1", 2, "task", "the task over the file"),
    ({}, "max_critique_tokens = 80", {}, "max_critique_tokens", 80, "task", "the task over the service"),
    (
        {"steps_stage_1": 1},
        "steps_stage_1 = 2",
        {"steps_stage_1": 3},
        "steps_stage_1",
        3,
        "request",
        "the request wins",
    ),
    ({"alarms": {"kl": 1}}, "alarms.no_gain = 2", {}, "alarms.kl", 1, "file", "groups are joined"),
    ({"alarms": {"kl": 1}}, 'alarms.kl = "none"', {}, "alarms.kl", None, "task", "TOML has no null"),
    ({"alarms": {"kl": 1}}, "alarms.kl = 2", {"alarms": {"kl": None}}, "alarms.kl", None, "request", "null of JSON"),
    ({}, "steps_stage_1 = 20", {}, "steps_stage_1", 20, "task", "said, although it is the default"),
]


@pytest.mark.parametrize(("file", "own", "request_", "name", "value", "source", "why"), LAYERS)
def test_each_place_overrides_those_before_it(
    file: dict[str, Any],
    own: str,
    request_: dict[str, Any],
    name: str,
    value: Any,
    source: str,
    why: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(file))
    settings = Settings(home=tmp_path, max_tokens=100, train_config=path)
    task = task_with(tmp_path / "task", f"[training]\n{own}")
    config = train_config_of(task, settings, request_)
    group, _, inner = name.partition(".")
    found = getattr(config, group)
    assert (getattr(found, inner) if inner else found) == value, why
    chosen = {option.name: (option.value, option.source) for option in chosen_options_of(task, settings, request_)}
    assert chosen.get(name, (value, OptionSource.DEFAULT)) == (value, source), why


def test_a_task_without_tables_is_trained_as_the_deployment_says(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, train_schedule="0 3 * * *", train_after_labels=7)
    task = task_with(tmp_path / "task", "")
    assert train_config_of(task, settings) == TrainConfig.effective(None, {}, served=settings.served_options())
    assert task.manifest.training_options == {}
    assert schedule_of(task, settings) == TaskSchedule(cron="0 3 * * *", after_labels=7, own=())


@pytest.mark.parametrize(
    ("table", "cron", "after_labels", "own"),
    [
        ('cron = "*/5 * * * *"', "*/5 * * * *", 7, ("cron",)),
        ('cron = ""', "", 7, ("cron",)),
        ("after_labels = 3", "0 3 * * *", 3, ("after_labels",)),
        ('cron = ""\nafter_labels = 0', "", 0, ("cron", "after_labels")),
    ],
)
def test_a_task_has_its_own_times(
    table: str, cron: str, after_labels: int, own: tuple[str, ...], tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, train_schedule="0 3 * * *", train_after_labels=7)
    task = task_with(tmp_path / "task", f"[schedule]\n{table}")
    assert schedule_of(task, settings) == TaskSchedule(cron=cron, after_labels=after_labels, own=own)


def test_options_that_contradict_the_file_name_both_files(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text('{"minibatches": 8}')
    folder = write_task(tmp_path / "task", 'kind = "exact"\n[training]\nprompts_per_step = 4\nminibatches = 4')
    check_training(load_tasks(Settings(home=tmp_path, tasks=str(folder), train_config=path)), Settings(home=tmp_path))
    folder = write_task(tmp_path / "task", 'kind = "exact"\n[training]\nprompts_per_step = 4')
    settings = Settings(home=tmp_path, tasks=str(folder), train_config=path)
    with pytest.raises(BadInput, match=r"\[training\] of the task contradicts .*train\.json: config: minibatches"):
        train_config_of(load_task(str(folder)), settings)
    with pytest.raises(BadSettings, match=r"task\.toml: the table \[training\]"):
        check_training(load_tasks(settings), settings)


def test_training_changes_no_grade(tmp_path: Path) -> None:
    plain, trained = task_with(tmp_path / "a", ""), task_with(tmp_path / "b", "[training]\nsteps_stage_1 = 1")
    assert plain.grader_version == trained.grader_version
