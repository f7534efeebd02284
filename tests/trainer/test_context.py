"""What a phase of a run opens: prompts and grader of the run's task."""

from pathlib import Path

import pytest

from gadfly import store
from gadfly.errors import BadSettings
from gadfly.grading import Grade, Submission
from gadfly.store.database import Database
from gadfly.tasks import load_task
from gadfly.trainer.context import open_context
from gadfly.training import TrainConfig, Trigger
from tests.service.conftest import make_settings

NAMES = "SELECT name FROM products"
CASES = [(NAMES, Grade.RIGHT), ("SELECT id FROM products", Grade.WRONG)]


async def test_a_phase_uses_the_task_of_its_run(database: Database, database_url: str, tmp_path: Path) -> None:
    sql = load_task("sql")
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny", task=sql.id)
        asked = await store.runs.request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN, task="sql")
        run = asked.run
        await store.critics.insert_critic(
            session,
            run_id=run.id,
            parent=0,
            base_model="tiny",
            prompt_set=sql.prompt_set("").name,
            adapter_path="a",
            adapter_sha256="b",
            task=sql.id,
        )
    model = tmp_path / "model"
    model.mkdir()
    settings = make_settings(tmp_path, database_url, "http://127.0.0.1:9", tasks="sql", model=str(model))
    async with open_context(settings, run.id, role=store.runs.TRAINING_ROLE) as context:
        assert context.collector().prompts.name == sql.prompt_set("").name
        rows = [Submission(f"```sql\n{query}\n```", NAMES) for query, _ in CASES]
        assert await context.collector().grader.grade_all(rows) == [grade for _, grade in CASES]
    with pytest.raises(BadSettings, match="the task 'sql' is not served here; the tasks are math"):
        async with open_context(settings.model_copy(update={"tasks": ()}), run.id, role=None):
            pass
