"""`gadfly migrate`, `model`, `import`, `regrade`, `export`: the database's schema and rows, and the default model."""

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from gadfly.cli.options import takes_settings
from gadfly.records import Contents, Kind, Split, Subject
from gadfly.settings import Settings

app = typer.Typer()


@app.command()
@takes_settings()
def migrate(
    settings: Settings,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail if something would change.")] = False,
) -> None:
    """Bring the database's schema up to date."""
    from gadfly.cli.storage import database_url, key_stored_questions
    from gadfly.cli.terminal import fail, out
    from gadfly.store.database import migrate, schema_state

    with database_url(settings) as url:
        if not check:
            migrate(url)
        state = schema_state(url)
        if not state.is_current:
            fail(f"the schema is at {state.current or 'nothing'} and not at {state.head}: run `gadfly migrate`")
        if state.drift:
            fail(f"the tables differ from those of this release: {'; '.join(state.drift)}")
        if not check and (keyed := asyncio.run(key_stored_questions(settings, url))):
            out.print(f"{keyed} stored questions can be compared with new ones now")
        out.print(f"the schema is at {state.current}, as this release needs it")


@app.command()
@takes_settings()
def model(
    settings: Settings,
    hash_: Annotated[
        bool, typer.Option("--hash", help="Print the value of GADFLY_MODEL_REVISION that pins the base model.")
    ] = False,
) -> None:
    """Make the default model and print its folder. `gadfly up` does the same where the model is missing."""
    environment = os.environ | settings.to_environment()
    command = [sys.executable, "-P", "-m", "gadfly.engine.models", *(["--hash"] if hash_ else [])]
    raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)


@app.command("import")
@takes_settings()
def import_rows(
    settings: Settings,
    source: Annotated[
        str,
        typer.Argument(
            help="A file: JSON Lines, a JSON array, CSV or Parquet, also gzipped; or a data set of Hugging Face, as a "
            "folder or by its name."
        ),
    ],
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="COLUMN=FIELD",
            help="Read a field from this column; may be repeated. A path works too (output.text=response), and "
            "COLUMN= leaves a column out. Fields: question, response, reference, correct, model, metadata, "
            "created_at, id, split.",
        ),
    ] = None,
    split: Annotated[
        Split | None, typer.Option("--split", help="The side of the training wall for rows that name none.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Succeed (exit code 0) although rows were skipped.")
    ] = False,
    encoding: Annotated[
        str | None, typer.Option("--encoding", help="Encoding of a text file that is not UTF-8, such as cp1252.")
    ] = None,
    dataset_config: Annotated[
        str | None, typer.Option("--dataset-config", help="Configuration of a data set of Hugging Face.")
    ] = None,
    dataset_split: Annotated[
        str | None, typer.Option("--dataset-split", help="Part of a data set of Hugging Face: train, test, ...")
    ] = None,
) -> None:
    """Import answers and questions from a file. Idempotent: a repeated import adds only the missing rows.

    Bad rows are skipped and counted by reason, and the others are imported. Then the exit code is 1, unless skipping
    was allowed.
    """
    from gadfly.cli import storage, terminal
    from gadfly.rowfiles.shapes import ColumnMap
    from gadfly.rowfiles.sources import How
    from gadfly.store.database import migrate

    columns = ColumnMap.parse(map_ or [])
    how = How(encoding=encoding, dataset_config=dataset_config, dataset_split=dataset_split)
    size = Path(source).stat().st_size if Path(source).is_file() else None
    with storage.database_url(settings) as url:
        migrate(url)
        report = asyncio.run(
            storage.import_file(
                settings,
                url,
                source,
                columns=columns,
                how=how,
                split=split,
                size=size,
                console=terminal.err,
            )
        )
    about = [f"{report.without_response} of them questions without a response"] if report.without_response else []
    about += [f"{report.ungraded} without a grade"] if report.ungraded else []
    remark = f" ({', '.join(about)})" if about else ""
    terminal.out.print(f"{report.added} rows added{remark}, {report.known} already stored, {report.skipped} skipped")
    if report.skipped and not report.added and not report.known:
        terminal.fail(f"no {report.unit} of {source} could be imported")
    if report.skipped and not skip_bad:
        were = f"{report.unit} was" if report.skipped == 1 else f"{report.unit}s were"
        terminal.fail(
            f"{report.skipped} {were} skipped: correct them and import again, which adds the missing rows; or allow "
            "it with --skip-bad"
        )


@app.command()
@takes_settings()
def regrade(settings: Settings) -> None:
    """Grade stored answers of each task again where an older grader graded them.

    It may be stopped: the next call goes on there.
    """
    from gadfly.cli import storage, terminal

    with storage.database_url(settings) as url:
        report = asyncio.run(storage.regrade_rows(settings, url, console=terminal.err))
    terminal.out.print(f"{report.graded} interactions graded again, {report.changed} with another grade")


@app.command()
@takes_settings(without=("task",))
def export(
    settings: Settings,
    out: Annotated[
        Path, typer.Argument(help="OUT.parquet or OUT.jsonl. The file appears when it is complete, in one step.")
    ],
    contents: Annotated[
        Contents,
        typer.Option(
            "--as",
            help="interactions, each with its critiques, refinements and feedback; or, in the columns that TRL reads, "
            "preference pairs (prompt, chosen, rejected) or rows for supervised fine-tuning (messages).",
        ),
    ] = Contents.INTERACTIONS,
    subject: Annotated[
        Subject, typer.Option("--of", help="What pairs and rows for fine-tuning are about.")
    ] = Subject.ANSWERS,
    split: Annotated[
        Split | None,
        typer.Option(
            "--split",
            help="Only this side of the training wall. Unset: both for interactions, and train for pairs and sft.",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", help="Only this task. Unset: all for interactions, and the default one for pairs and sft."
        ),
    ] = None,
    kind: Annotated[Kind | None, typer.Option("--kind", help="Only interactions of this kind.")] = None,
    since: Annotated[datetime | None, typer.Option("--since", help="Only from this time (UTC) on.")] = None,
    until: Annotated[datetime | None, typer.Option("--until", help="Only before this time (UTC).")] = None,
) -> None:
    """Write interactions with their critiques, refinements and feedback to a file, or training data made of them."""
    from gadfly.cli import storage, terminal
    from gadfly.store.interactions import Filters

    if split is None and contents is not Contents.INTERACTIONS:
        split = Split.TRAIN  # a model that has learned held-out questions makes every later measurement worthless
    filters = Filters(task=task, split=split, kind=kind, created_from=_utc(since), created_before=_utc(until))
    with storage.database_url(settings) as url:
        rows = asyncio.run(
            storage.export_file(settings, url, out, filters, contents=contents, subject=subject, console=terminal.err)
        )
    names = {Contents.INTERACTIONS: "interactions", Contents.PAIRS: "pairs", Contents.SFT: "conversations"}
    terminal.out.print(f"{rows} {names[contents]} written to {out}", markup=False)


def _utc(time: datetime | None) -> datetime | None:
    return None if time is None else time.replace(tzinfo=UTC)
