"""`gadfly tasks list|show|check|try|add`: the tasks of a deployment, and a trial of a task before it is used."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gadfly.cli.commands.arguments import Json
from gadfly.cli.options import takes_settings
from gadfly.settings import Settings

if TYPE_CHECKING:
    from gadfly.tasks import Task
    from gadfly.tasks.trial import Trial

app = typer.Typer(help="List, check, try and add tasks: prompts, an answer form and a grader.", no_args_is_help=True)

_SHOWN = 5  # rows with an error

Name = Annotated[str, typer.Argument(metavar="TASK", help="A built-in task, or a folder with a file task.toml.")]


@app.command("list")
@takes_settings()
def list_tasks(settings: Settings, json: Json = False) -> None:
    """List the tasks that this deployment serves, and the built-in ones."""
    from rich.table import Table

    from gadfly import tasks
    from gadfly.cli import terminal

    served = tasks.load_tasks(settings)
    found = [
        _described(each.task, settings) | {"use": "default" if each is served.default else "served"} for each in served
    ]
    others = [name for name in tasks.available() if name not in served.names]
    found += [_described(tasks.load_task(name), settings) | {"use": None} for name in others]
    if json:
        terminal.print_json(found)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("name", "version", "grader", "use", "trained", "own options", "description"):
        table.add_column(name, overflow="fold")
    for task in found:
        use = task["use"] or "not served"
        trained = _times(task["schedule"]) if task["use"] else ""
        own = ", ".join(task["training"])
        table.add_row(task["name"], task["version"], task["grader"]["kind"], use, trained, own, task["description"])
    terminal.out.print(table)


@app.command("add")
@takes_settings()
def add_task(
    settings: Settings,
    folder: Annotated[str, typer.Argument(help="A folder with a file task.toml.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace the added task of this name.")] = False,
) -> None:
    """Check a task and copy its folder into this deployment, which serves it from its next start on.

    The copy is what is served: later edits of the folder have no effect until it is added again.
    """
    import asyncio

    from gadfly import tasks
    from gadfly.cli import terminal
    from gadfly.tasks.adding import add
    from gadfly.tasks.check import start_grader

    task = tasks.load_task(folder)
    asyncio.run(start_grader(task, settings))
    place = add(task, settings, replace=replace)
    terminal.out.print(f"{task.name} {task.version} is in {place}", markup=False)
    terminal.err.print("The deployment serves it after its next start (`gadfly up`).", markup=False)


@app.command("show")
@takes_settings()
def show_task(settings: Settings, name: Name, json: Json = False) -> None:
    """Show a task: version, files, verdict words, answer form, grader and prompts."""
    from json import dumps  # the flag has the module's name

    from gadfly import tasks
    from gadfly.cli import terminal

    task = tasks.load_task(name)
    found = _described(task, settings)
    prompts = task.prompt_set(settings.prompts)
    shown = {
        "solve": prompts.solve(question="{question}"),
        "critique": prompts.critique(question="{question}", response="{response}"),
        "refine": prompts.refine(question="{question}", response="{response}", critique="{critique}"),
    }
    if json:
        terminal.print_json(
            found
            | {"prompt_set": prompts.name, "verdicts": {"correct": prompts.correct, "incorrect": prompts.incorrect}}
            | {
                "prompts": {
                    role: [{"role": message.role, "content": message.content} for message in prompt.messages]
                    for role, prompt in shown.items()
                }
            }
        )
        return
    say = terminal.out.print
    say(f"{task.name} {task.version}: {found['description']}", markup=False)
    say(f"folder    {task.folder}", markup=False)
    say(f"prompts   {prompts.name}, verdicts {prompts.correct} and {prompts.incorrect}", markup=False)
    say(f"answer    {_pairs(found['answer'] or {'form': 'found by the grader'})}", markup=False)
    say(f"grader    {_pairs(found['grader'])}, version {task.grader_version}", markup=False)
    if task.guess_rate is not None:
        say(f"guessing  {task.guess_rate:.0%} of the answers are right by guessing", markup=False)
    say(f"trained   {_times(found['schedule'])}", markup=False)
    if found["training"]:
        say(f"training  {dumps(found['training'])}", markup=False)
    for role, prompt in shown.items():
        for message in prompt.messages:
            say(f"\n[{role}: {message.role}]", markup=False)
            say(terminal.plain(message.content), markup=False)
        if prompt.opener:
            say(f"\n[{role}: the reply begins with]\n{terminal.plain(prompt.opener)}", markup=False)


@app.command("check")
@takes_settings()
def check_task(settings: Settings, name: Name) -> None:
    """Check a task: its files, and that its grader starts."""
    import asyncio

    from gadfly import tasks
    from gadfly.cli import terminal
    from gadfly.tasks.check import notes_about, start_grader

    task = tasks.load_task(name)
    prompts = task.prompt_set(settings.prompts)
    for note in notes_about(prompts):
        terminal.err.print(f"note: {note}", markup=False)
    asyncio.run(start_grader(task, settings))
    terminal.out.print(
        f"{task.name} {task.version} is a task: {task.manifest.grader.kind} grader, prompts {prompts.name}",
        markup=False,
    )


@app.command("try")
@takes_settings()
def try_task(
    settings: Settings,
    name: Name,
    file: Annotated[
        str, typer.Argument(help="Rows with question, response and reference: JSON, JSON Lines, CSV or Parquet.")
    ],
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="COLUMN=FIELD", help="Read a field from this column, as in gadfly import."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only this many rows.")] = None,
    json: Json = False,
) -> None:
    """Grade the rows of a file by a task and count the outcomes. Nothing is stored.

    Where rows have labels (`correct`), it says how well grader and labels agree. The exit code is 1 if no row has a
    grade.
    """
    import asyncio

    from gadfly import tasks
    from gadfly.cli import terminal
    from gadfly.grading import Grade
    from gadfly.guessing import corrected_for_guessing
    from gadfly.rowfiles.shapes import ColumnMap
    from gadfly.tasks.trial import Trial
    from gadfly.tasks.trial import try_task as try_rows

    task = tasks.load_task(name)
    failures: list[str] = []

    async def graded() -> Trial:
        async with tasks.open_grader(task, settings, on_failure=failures.append) as grader:
            return await try_rows(
                task,
                file,
                grader=grader,
                max_text_chars=settings.max_text_chars,
                columns=ColumnMap.parse(map_ or []),
                most=limit,
            )

    with terminal.step("try", f"{task.name} on {file}"):
        trial = asyncio.run(graded())
    if json:
        terminal.print_json(_counts(task.name, task.version, trial, failures))
    else:
        say = terminal.out.print
        say(f"{task.name} {task.version}: {trial.rows} rows", markup=False)
        for grade in Grade:
            say(f"{trial.grades[grade]:>8}  {grade.value.replace('_', ' ')}", markup=False)
        for count, what in (
            (trial.bad_references, "with a reference that the grader cannot use"),
            (trial.bad_rows, "that cannot be read"),
            (trial.without, "without a response or a reference: not tried"),
            (len(failures), "that the grader itself failed on, counted as no answer"),
        ):
            if count:
                say(f"{count:>8}  {what}", markup=False)
        if trial.accuracy is not None and task.guess_rate is not None:
            known = corrected_for_guessing(trial.accuracy, task.guess_rate)
            say(
                f"{trial.accuracy:.1%} right, guessing gives {task.guess_rate:.1%}: {known:.1%} corrected for guessing",
                markup=False,
            )
        if trial.agreement is not None:
            kappa = "" if trial.kappa is None else f" (kappa {trial.kappa:.2f})"
            say(f"{trial.agreement:.1%} agreement with the labels of people{kappa}:", markup=False)
            for label in (True, False):
                cells = ", ".join(f"{trial.labelled[label, grade]} {grade.value.replace('_', ' ')}" for grade in Grade)
                say(f"  labelled {'right' if label else 'wrong'}: graded {cells}", markup=False)
        for fault in trial.faults[:_SHOWN]:
            say(terminal.plain(f"{trial.unit} {fault.number}: {fault.reason}"), markup=False)
        for failure in failures[:_SHOWN]:
            say(terminal.plain(f"failed: {failure.strip().splitlines()[-1]}"), markup=False)
    if not trial.grades:
        terminal.fail("no row has a grade: mend the rows or the task")


def _described(task: "Task", settings: Settings) -> dict[str, Any]:
    from dataclasses import asdict

    from gadfly.tasks.training import schedule_of

    manifest = task.manifest.model_dump(mode="json", by_alias=True)
    return {
        "name": task.name,
        "version": task.version,
        "sha256": task.sha256,
        "folder": str(task.folder),
        "description": manifest["description"],
        "answer": manifest["answer"],
        "grader": manifest["grader"],
        "grader_version": task.grader_version,
        "guess_rate": task.guess_rate,
        "training": task.manifest.training_options,
        "schedule": asdict(schedule_of(task, settings)),
    }


def _times(schedule: Mapping[str, Any]) -> str:
    """When a task is trained without a request, in words."""
    cron, count = schedule["cron"], schedule["after_labels"]
    times = [*([cron] if cron else []), *([f"after {count} labels"] if count else [])]
    return " and ".join(times) or "on request"


def _counts(name: str, version: str, trial: "Trial", failures: list[str]) -> dict[str, Any]:
    return {
        "task": name,
        "version": version,
        "rows": trial.rows,
        "grades": {grade.value: count for grade, count in trial.grades.items()},
        "bad_references": trial.bad_references,
        "bad_rows": trial.bad_rows,
        "without": trial.without,
        "failures": len(failures),
        "accuracy": trial.accuracy,
        "agreement": trial.agreement,
        "kappa": trial.kappa,
        "errors": [{"number": fault.number, "reason": fault.reason} for fault in trial.faults[:_SHOWN]],
    }


def _pairs(values: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in values.items() if value not in (None, "", [], {})}
    first = next(iter(shown.values()))
    rest = ", ".join(f"{name} {value}" for name, value in list(shown.items())[1:])
    return f"{first}{f' ({rest})' if rest else ''}"
