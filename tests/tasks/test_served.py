"""Which tasks a deployment serves: the default one, those of the setting, those that were added to its home."""

from pathlib import Path

import pytest

from gadfly.errors import BadSettings, NotFound
from gadfly.settings import Settings
from gadfly.tasks import load_task, load_task_named, load_tasks
from gadfly.tasks.adding import add
from tests.support.tasks import write_task


def head(name: str) -> str:
    return f'name = "{name}"\ndescription = "A test."\nprompts = "prompts.toml"'


def settings(home: Path, *tasks: str | Path, task: str = "math") -> Settings:
    return Settings(home=home, task=task, tasks=",".join(map(str, tasks)))


def test_the_default_task_is_first_and_alone_unless_others_are_named(tmp_path: Path) -> None:
    assert load_tasks(settings(tmp_path)).names == ("math",)
    served = load_tasks(settings(tmp_path, "math", "sql", task="sql"))
    assert (served.names, served.default.name) == (("sql", "math"), "sql")
    assert served.get(None) is served.default
    assert load_tasks(settings(tmp_path, "math", "sql")).default.name == "math"
    assert served.get("math").prompts.name == "stepwise@1"
    with pytest.raises(NotFound, match="the task 'towns' is not served here; the tasks are sql, math"):
        served.get("towns")
    with pytest.raises(BadSettings, match="GADFLY_TASKS names more of them"):
        load_task_named(settings(tmp_path), "sql")


def test_a_folder_may_hold_several_tasks(tmp_path: Path) -> None:
    for name in ("towns", "birds"):
        write_task(tmp_path / "all" / name, head=head(name))
    (tmp_path / "all" / "notes").mkdir()
    assert load_tasks(settings(tmp_path / "home", tmp_path / "all")).names == ("math", "birds", "towns")
    assert load_tasks(settings(tmp_path / "home", tmp_path / "all" / "towns")).names == ("math", "towns")
    with pytest.raises(BadSettings, match="is not a task and holds none"):
        load_tasks(settings(tmp_path / "home", tmp_path / "all" / "notes"))


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    one, two = (write_task(tmp_path / place, head=head("towns")) for place in ("one", "two"))
    assert load_tasks(settings(tmp_path, one, one)).names == ("math", "towns")
    with pytest.raises(BadSettings, match="two tasks have the name towns"):
        load_tasks(settings(tmp_path, one, two))


def test_an_added_task_is_a_copy_that_is_served(tmp_path: Path) -> None:
    home, folder = settings(tmp_path / "home"), write_task(tmp_path / "mine", head=head("towns"))
    place = add(load_task(str(folder)), home, replace=False)
    assert load_tasks(settings(tmp_path / "home", task="towns")).names == ("towns",), "the default, by its name"
    assert load_tasks(home).get("towns").task.folder == place == tmp_path / "home" / "tasks" / "towns"
    before = load_tasks(home).get("towns").task.sha256
    write_task(folder, 'kind = "exact"\nignore_case = false', head=head("towns"))
    assert load_tasks(home).get("towns").task.sha256 == before
    with pytest.raises(BadSettings, match="towns was added before: --replace"):
        add(load_task(str(folder)), home, replace=False)
    add(load_task(str(folder)), home, replace=True)
    assert load_tasks(home).get("towns").task.sha256 == load_task(str(folder)).sha256 != before


def test_what_is_served_already_is_not_added(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="sql is built in: name it in GADFLY_TASKS"):
        add(load_task("sql"), settings(tmp_path), replace=False)
    one, two = (write_task(tmp_path / place, head=head("towns")) for place in ("one", "two"))
    with pytest.raises(BadSettings, match="serves a task towns from"):
        add(load_task(str(two)), settings(tmp_path / "home", one), replace=False)
