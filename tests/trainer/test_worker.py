"""The trainer process with real runs: cancellation, crashes, alarms, and runs that new labels request."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from sqlalchemy import select, text

from gadfly import store
from gadfly.engine_pool import EnginePool
from gadfly.records import Split
from gadfly.settings import Settings
from gadfly.store.database import Database, migrate
from gadfly.store.tables import QuestionRow
from gadfly.tasks import load_task
from gadfly.trainer.engines import PREFIX
from gadfly.trainer.worker import Worker
from gadfly.trainer.workspace import Workspace
from gadfly.training import EventKind, Run, RunEvent, RunStatus, Trigger
from tests.support import worlds
from tests.support.postgres import PostgresServer
from tests.support.tasks import write_task

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
async def filled(database: Database, critic_model: Path) -> Database:
    await worlds.fill(database, base_model=str(critic_model), questions=24)
    return database


@pytest.fixture
def settings(tmp_path: Path, database_url: str, engine_url: str, critic_model: Path) -> Settings:
    return worlds.trainer_settings(
        home=tmp_path / "home", database_url=database_url, engine_urls=(engine_url,), model=critic_model
    )


@contextlib.contextmanager
def trainer(settings: Settings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = worlds.start_trainer(settings, log=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def until(database: Database, run_id: UUID, wanted: Any, log: Path, *, limit_s: float = 300) -> Run:
    deadline = time.monotonic() + limit_s
    while True:
        run = await worlds.read(database, run_id)
        if wanted(run):
            return run
        assert time.monotonic() < deadline, (run, _tail(log))
        await asyncio.sleep(0.1)


def _tail(log: Path) -> str:
    runs = "".join(path.read_text()[-3000:] for path in log.parent.glob("home/runs/*/run.log"))
    return log.read_text()[-3000:] + runs


def child_of(process: subprocess.Popen[bytes], word: str) -> psutil.Process:
    """The process of a run's phase below the trainer."""
    [found] = [child for child in psutil.Process(process.pid).children() if word in child.cmdline()]
    return found


async def loaded(engine_url: str, run_id: UUID) -> list[str]:
    pool = EnginePool.connect([engine_url], timeout_s=30)
    try:
        return [name for name in await pool.members[0].models() if name.startswith(f"{PREFIX}{run_id}")]
    finally:
        await pool.aclose()


async def test_a_cancelled_run_ends_in_seconds_and_leaves_no_adapter(
    filled: Database, settings: Settings, engine_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "trainer.log"
    run = await worlds.ask_for_run(filled, steps_stage_1=500)
    waiting = await worlds.ask_for_run(filled)
    with trainer(settings, log):
        await until(filled, run.id, lambda found: found.progress.step >= 2, log)
        assert (await worlds.read(filled, waiting.id)).status is RunStatus.QUEUED  # one run at a time
        started = time.monotonic()
        async with filled.session() as session:
            await store.runs.request_cancel(session, run.id)
            await store.runs.request_cancel(session, waiting.id)
        ended = await until(filled, run.id, lambda found: found.status.is_over, log)
        assert time.monotonic() - started < 30
        assert ended.status is RunStatus.CANCELLED
        assert (await worlds.read(filled, waiting.id)).status is RunStatus.CANCELLED
        assert await loaded(engine_url, run.id) == []
        assert not settings.adapters_folder.exists()
        assert not Workspace.of(settings.home, run.id).final.exists()


async def test_a_run_survives_the_death_of_its_child_and_of_its_trainer(
    filled: Database, settings: Settings, tmp_path: Path
) -> None:
    log = tmp_path / "trainer.log"
    run = await worlds.ask_for_run(filled, steps_stage_1=8)
    with trainer(settings, log) as first:
        await until(filled, run.id, lambda found: found.progress.step >= 2, log)
        child = child_of(first, "learn")
        child.kill()
        await until(filled, run.id, lambda found: found.progress.step >= 4, log)
        orphan = child_of(first, "learn")
        assert orphan.pid != child.pid
        first.kill()
        first.wait()
    with contextlib.suppress(psutil.NoSuchProcess):
        orphan.wait(10)  # a child ends with its trainer
    with trainer(settings, log):
        ended = await until(filled, run.id, lambda found: found.status.is_over, log)
    assert ended.status is RunStatus.SUCCEEDED, (ended, _tail(log))
    assert ended.attempt == 2  # one per trainer; the crash of a child does not count
    async with filled.session() as session:
        events = await store.runs.events_after(session, run.id, after=0)
    steps = [event.data["step"] for event in events if event.kind is EventKind.STEP]
    assert set(steps) == set(range(1, ended.progress.steps + 1))
    assert ended.version is not None
    assert _noted(events, "answers to learn from")["new"] == 0, "the first critic has learned from nothing"
    assert ended.gate is not None
    assert ended.gate["numbers"]["wear"]["looks_most"] == 0
    assert await _looks(filled) == {(Split.HELDOUT, 1, False), (Split.TRAIN, 0, False)}
    await _new_labels_come_first(filled, settings, ended.version, log)


async def _new_labels_come_first(filled: Database, settings: Settings, version: int, log: Path) -> None:
    """In a run that starts from `version`, half of the draws are answers that its own run has not seen."""
    async with filled.session() as session:
        await store.critics.set_pointer(session, "live", version)
    await worlds.fill(filled, base_model=settings.model, questions=8, start=1000)
    with trainer(settings.model_copy(update={"retire_after_looks": 1, "retire_share": 0.25}), log):
        for _ in range(3):  # with some seeds two steps change too little for a critic that can be told from the base
            run = await worlds.ask_for_run(filled, steps_stage_1=2, steps_stage_2=0, seed=None, evaluation_items=4)
            assert run.config.seed == run.id.int % 2**31
            ended = await until(filled, run.id, lambda found: found.status.is_over, log)
            assert ended.status is RunStatus.SUCCEEDED, (ended, _tail(log))
            async with filled.session() as session:
                events = await store.runs.events_after(session, run.id, after=0)
            if ended.version is not None:
                break
    assert ended.version is not None, [event.data for event in events if event.kind is EventKind.NOTE]
    new = _noted(events, "answers to learn from")["new"]
    assert 2 <= new <= 16, "those of the train side"
    assert [event.data["metrics"]["fresh"] for event in events if event.kind is EventKind.STEP] == [0.5, 0.5]
    retired = _noted(events, "worn held-out questions were retired into training")
    assert 1 <= retired["moved"] < retired["due"]
    assert {split for split, _, is_retired in await _looks(filled) if is_retired} == {Split.TRAIN}


async def _looks(database: Database) -> set[tuple[Split, int, bool]]:
    """The sides of all questions, with their looks and whether they were retired."""
    async with database.session() as session:
        rows = await session.execute(select(QuestionRow.split, QuestionRow.looks, QuestionRow.retired_at.is_not(None)))
        return {(split, looks, is_retired) for split, looks, is_retired in rows}


def _noted(events: list[RunEvent], message: str) -> dict[str, Any]:
    notes = [event.data for event in events if event.kind is EventKind.NOTE]
    found = [data for data in notes if data["message"] == message]
    assert len(found) == 1, notes
    return found[0]


async def test_two_processes_train_one_run(filled: Database, settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "trainer.log"
    run = await worlds.ask_for_run(filled, steps_stage_1=1, steps_stage_2=1)
    with trainer(settings.model_copy(update={"train_processes": 2}), log):
        ended = await until(filled, run.id, lambda found: found.status.is_over, log)
    assert ended.status is RunStatus.SUCCEEDED, (ended, _tail(log))
    assert ended.progress.step == 2


async def test_a_run_whose_child_always_dies_fails(filled: Database, settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "trainer.log"
    run = await worlds.ask_for_run(filled)
    with trainer(settings, log) as process:
        deaths: set[int] = set()
        while not (await worlds.read(filled, run.id)).status.is_over:
            for child in psutil.Process(process.pid).children():
                with contextlib.suppress(psutil.Error):
                    if "learn" in child.cmdline():
                        deaths.add(child.pid)
                        child.kill()
            await asyncio.sleep(0.05)
        ended = await worlds.read(filled, run.id)
        assert process.poll() is None  # the trainer itself keeps running
    assert ended.status is RunStatus.FAILED
    assert "SIGKILL" in (ended.error or "")
    assert len(deaths) == 3


async def test_an_alarm_fails_the_run_and_names_the_evidence(
    filled: Database, settings: Settings, tmp_path: Path
) -> None:
    log = tmp_path / "trainer.log"
    run = await worlds.ask_for_run(filled, alarms={"verdict_drift": None, "kl": 1e-9, "patience": 1})
    with trainer(settings, log):
        ended = await until(filled, run.id, lambda found: found.status.is_over, log)
    assert ended.status is RunStatus.FAILED
    assert "divergence" in (ended.error or "")
    async with filled.session() as session:
        events = await store.runs.events_after(session, run.id, after=0)
    [alarm] = [event for event in events if event.kind is EventKind.ALARM]
    assert alarm.data["message"] == ended.error
    assert alarm.data["evidence"]


async def test_an_alarm_ends_the_run_with_the_last_good_checkpoint(
    filled: Database, settings: Settings, tmp_path: Path
) -> None:
    log = tmp_path / "trainer.log"
    # KL is 0 in the first step of each stage, so the first step beyond the limit is at the earliest the third.
    stages = {"steps_stage_1": 1, "steps_stage_2": 5, "prompts_per_step": 8, "samples_per_prompt": 8}
    alarms = {"verdict_drift": None, "zero_advantage": None, "kl": 1e-9, "patience": 1}
    run = await worlds.ask_for_run(filled, **stages, validate_every=1, alarms=alarms)
    with trainer(settings, log):
        ended = await until(filled, run.id, lambda found: found.status.is_over, log)
    assert ended.status is RunStatus.SUCCEEDED, (ended, _tail(log))
    async with filled.session() as session:
        events = await store.runs.events_after(session, run.id, after=0)
    [beyond] = [event.data["evidence"]["steps"][0] for event in events if event.kind is EventKind.ALARM]
    assert beyond + 1 == max(event.data["step"] for event in events if event.kind is EventKind.STEP)
    notes = [event.data for event in events if event.kind is EventKind.NOTE]
    [chosen] = [note["step"] for note in notes if note["message"].startswith("the alarm ends the stages")]
    assert 0 < chosen < beyond
    assert ended.gate is not None, "it is a candidate like any other"


async def test_a_run_with_nothing_to_learn_does_not_fail(filled: Database, settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "trainer.log"
    nearly_greedy = {"temperature": 0.01, "alarms": {"verdict_drift": None, "kl": None, "patience": 2}}
    run = await worlds.ask_for_run(filled, **nearly_greedy)
    with trainer(settings, log):
        ended = await until(filled, run.id, lambda found: found.status.is_over, log)
    assert (ended.status, ended.version, ended.error) == (RunStatus.SUCCEEDED, None, None), (ended, _tail(log))
    async with filled.session() as session:
        events = await store.runs.events_after(session, run.id, after=0)
    steps = [event.data["metrics"] for event in events if event.kind is EventKind.STEP]
    assert [step["skipped"] for step in steps] == [1.0, 1.0]
    messages = [event.data["message"] for event in events if event.kind is EventKind.NOTE]
    assert any(message.startswith("the stages end here, since nothing is left to learn") for message in messages)


async def test_another_base_model_under_the_same_name_is_refused(
    filled: Database, settings: Settings, tmp_path: Path
) -> None:
    log = tmp_path / "trainer.log"
    earlier = await worlds.ask_for_run(filled)
    async with filled.session() as session:
        await store.runs.save_manifest(session, earlier.id, {"base_sha256": "ab" * 32})
        await store.runs.finish_run(session, earlier.id, RunStatus.SUCCEEDED)
        await store.critics.insert_critic(
            session,
            run_id=earlier.id,
            parent=0,
            base_model=settings.model,
            prompt_set="stepwise@1",
            adapter_path=str(earlier.id),
            adapter_sha256="cd" * 32,
        )
    run = await worlds.ask_for_run(filled)
    with trainer(settings, log):
        ended = await until(filled, run.id, lambda found: found.status.is_over, log)
    assert ended.status is RunStatus.FAILED
    assert re.search("has other weights now .* than when version 1 was trained on it .abababababab.", ended.error or "")


async def test_a_run_without_labelled_answers_fails_with_the_reason(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    log = tmp_path / "trainer.log"
    await worlds.fill(database, base_model=settings.model, questions=0)
    run = await worlds.ask_for_run(database)
    with trainer(settings, log):
        ended = await until(database, run.id, lambda found: found.status.is_over, log)
    assert ended.status is RunStatus.FAILED
    assert "no labelled answer" in (ended.error or "")


async def test_new_labels_start_one_run(database: Database, settings: Settings, tmp_path: Path) -> None:
    await worlds.fill(database, base_model=settings.model, questions=12)
    wanting = settings.model_copy(update={"train_after_labels": 5})
    async with Worker.open(wanting) as worker:
        app = worker.make_app()
        await app.tasks["count_labels"].func(0)
        await app.tasks["count_labels"].func(0)  # a run is queued already
        async with database.session() as session:
            [run] = await store.runs.unfinished_runs(session)
            assert run.trigger is Trigger.LABELS
            await store.runs.request_cancel(session, run.id)
        await app.tasks["count_labels"].func(0)  # there are no newer labels
        async with database.session() as session:
            assert await store.runs.unfinished_runs(session) == []


async def test_each_task_is_trained_at_its_own_times(database: Database, settings: Settings, tmp_path: Path) -> None:
    tables = {
        "hourly": '[training]\nsteps_stage_1 = 3\n[schedule]\ncron = "0 * * * *"',
        "counted": '[schedule]\ncron = ""\nafter_labels = 5',
        "usual": "",
        "empty": '[schedule]\ncron = "0 * * * *"',
    }
    for name, own in tables.items():
        head = f'name = "{name}"\ndescription = "d"'
        folder = write_task(tmp_path / "tasks" / name, f'kind = "exact"\n{own}', head=head, prompts=None)
        task = load_task(str(folder))
        await worlds.fill(database, base_model=settings.model, questions=0 if name == "empty" else 12, task=task.id)
    folders = {"tasks": (str(tmp_path / "tasks"),), "train_schedule": "0 3 * * *"}
    async with Worker.open(settings.model_copy(update=folders)) as worker:
        app = worker.make_app()
        times = {each.cron: each.configure_kwargs for each in app.periodic_registry.periodic_tasks.values()}
        assert set(times) == {"0 * * * *", "0 3 * * *", "* * * * *"}
        assert times["0 * * * *"].get("task_kwargs") == {"cron": "0 * * * *"}

        async def requested() -> dict[str, Run]:
            async with database.session() as session:
                found = [run for name in ("math", *tables) for run in await store.runs.unfinished_runs(session, name)]
                return {run.task: run for run in found}

        await app.tasks["scheduled"].func(0, cron="0 * * * *")
        [run] = (await requested()).values()
        assert (run.task, run.trigger, run.config.steps_stage_1) == ("hourly", Trigger.SCHEDULE, 3)
        await app.tasks["count_labels"].func(0)
        assert (await requested()).keys() == {"hourly", "counted"}
        await app.tasks["scheduled"].func(0)  # of a trainer before this one: the deployment's times
        found = await requested()
        assert found.keys() == {"math", "hourly", "counted", "usual"}
        assert found["usual"].config == found["math"].config.model_copy(update={"seed": found["usual"].config.seed})


async def test_a_run_without_a_job_gets_one(database: Database, settings: Settings) -> None:
    run = await worlds.ask_for_run(database)
    async with database.session() as session:
        assert await store.runs.enqueue_lost_runs(session) == []
        await session.execute(text("DELETE FROM procrastinate_jobs"))
    async with database.session() as session:
        assert await store.runs.enqueue_lost_runs(session) == [run.id]


@pytest.fixture(autouse=True)
async def no_child_is_left() -> AsyncIterator[None]:
    yield
    for child in psutil.Process(os.getpid()).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "trainer" in " ".join(child.cmdline()):
                child.send_signal(signal.SIGKILL)


async def test_jobs_are_read_from_a_database_without_an_encoding(postgres: PostgresServer, tmp_path: Path) -> None:
    postgres.execute("CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'")
    url = postgres.url_of("ascii")
    migrate(url)
    try:
        async with Database(url) as database:
            await worlds.ask_for_run(database)
        settings = worlds.trainer_settings(
            home=tmp_path, database_url=url, engine_urls=("http://127.0.0.1:9",), model=tmp_path
        )
        async with Worker.open(settings) as worker:
            app = worker.make_app()
            async with app.open_async():
                jobs = list(await app.job_manager.list_jobs_async())
        assert [job.task_name for job in jobs] == ["train"]
    finally:
        postgres.execute("DROP DATABASE ascii WITH (FORCE)")
