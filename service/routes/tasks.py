"""GET /tasks."""

from fastapi import APIRouter

from gadfly.service.dependencies import AnyKeyDep, ServiceDep
from gadfly.service.routes.docs import problems
from gadfly.service.wire.tasks import TaskScheduleView, TaskView, VerdictWordsView
from gadfly.tasks import ServedTask
from gadfly.tasks.training import TaskSchedule, schedule_of

router = APIRouter(tags=["tasks"], responses=problems(401, 503))


@router.get("/tasks", summary="List tasks", response_model=list[TaskView])
async def list_tasks(caller: AnyKeyDep, service: ServiceDep) -> list[TaskView]:
    """The tasks that this deployment serves and the caller may use, the default one first."""
    return [
        _view(
            task,
            is_default=task is service.tasks.default,
            schedule=schedule_of(task.task, service.settings),
            live_critic=service.critics.pointers.line(task.name).known_live,
        )
        for task in service.tasks
        if caller.may_use(task.name)
    ]


def _view(task: ServedTask, *, is_default: bool, live_critic: int | None, schedule: TaskSchedule) -> TaskView:
    manifest = task.task.manifest.model_dump(mode="json", by_alias=True)
    return TaskView(
        name=task.name,
        version=task.task.version,
        description=manifest["description"],
        is_default=is_default,
        prompt_set=task.prompts.name,
        verdict_words=VerdictWordsView(correct=task.prompts.correct, incorrect=task.prompts.incorrect),
        answer=manifest["answer"],
        grader=manifest["grader"],
        grader_version=task.task.grader_version,
        guess_rate=task.task.guess_rate,
        live_critic=live_critic,
        training=task.task.manifest.training_options,
        schedule=TaskScheduleView.of(schedule),
    )
