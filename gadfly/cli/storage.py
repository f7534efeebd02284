"""Database access of the commands: the address of the database, API keys, import and export."""

import os
import re
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly import store
from gadfly.api_keys import creation_details, digest, issue_key, require_no_limits
from gadfly.errors import BadInput
from gadfly.records import AdminAction, Contents, Key, KeyLimits, Scope, Split, Subject, Tier, now
from gadfly.rowfiles.shapes import ColumnMap
from gadfly.rowfiles.sources import How
from gadfly.settings import Settings
from gadfly.store.database import Database, require_current_schema
from gadfly.store.disputes import Taught
from gadfly.store.embedded import EmbeddedPostgres
from gadfly.store.files import ExportFormat, ImportReport, Skipped, export, import_rows
from gadfly.store.labels import refresh
from gadfly.store.regrading import RegradeReport, regrade
from gadfly.tasks import load_task_named, load_tasks, open_grader

_TAUGHT_LIMIT_S = 300.0  # for reading the manifests of all runs
_SHOWN_ROWS = 5  # of those that an import skips
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@contextmanager
def database_url(settings: Settings) -> Iterator[str]:
    """The address of the configured database, or of the embedded one, which runs at least until the block ends.

    Raises:
        StoreUnavailable: the embedded Postgres does not start.
    """
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    with EmbeddedPostgres(settings.home) as server:  # uses the one of a running `gadfly up` and does not stop it
        yield server.url


@asynccontextmanager
async def opened(settings: Settings, url: str) -> AsyncIterator[Database]:
    """The database at `url`, after a check of its schema.

    Raises:
        StoreUnavailable: Postgres is unavailable, or its schema belongs to another release.
    """
    async with Database.of(settings, url) as database:
        await require_current_schema(database)
        yield database


async def key_stored_questions(settings: Settings, url: str) -> int:
    """Finish the migration to blocks: as `store.wall.key_stored_questions`."""
    async with opened(settings, url) as database:
        return await store.wall.key_stored_questions(database)


async def active_keys(settings: Settings, url: str, tier: Tier | None = None) -> list[Key]:
    """The keys that are valid now, of one tier or of both."""
    async with opened(settings, url) as database, database.session() as session:
        keys = await store.keys.list_keys(session)
    return [key for key in keys if key.is_active(now()) and tier in (None, key.tier)]


async def all_keys(settings: Settings, url: str) -> list[Key]:
    """All keys, including expired and revoked ones."""
    async with opened(settings, url) as database, database.session() as session:
        return await store.keys.list_keys(session)


async def key_of_secret(settings: Settings, url: str, secret: str) -> Key | None:
    """The key with this secret, even if it is revoked or expired."""
    async with opened(settings, url) as database, database.session() as session:
        return await store.keys.find_key(session, digest(secret))


async def create_key(
    settings: Settings,
    url: str,
    *,
    name: str,
    tier: Tier,
    expires_at: datetime | None,
    tasks: tuple[str, ...] | None,
    scopes: Collection[Scope] | None,
    limits: KeyLimits,
    secret: str | None,
    out: Path | None,
    overwrite: bool,
) -> tuple[Key, str]:
    """Create a key, for some tasks or (None) for all, with scopes or (None) those of its tier; with its secret.

    `secret`: one that was made elsewhere; None makes one. It is also written to `out`; if that fails, no key is
    created.

    Raises:
        BadInput: `out` cannot be written, or exists and `overwrite` is False; the key cannot be limited so; or the
            secret is not one for a key.
    """
    async with opened(settings, url) as database, database.session() as session:
        key, secret = await issue_key(
            session,
            name=name,
            tier=tier,
            expires_at=expires_at,
            tasks=tasks,
            scopes=scopes,
            limits=limits,
            secret=secret,
        )
        await store.acts.record_act(
            session,
            AdminAction.CREATE_KEY,
            key.id,
            key_id=None,
            reason=None,
            details=creation_details(key),
        )
        if out is not None:
            write_secret(out, secret, overwrite=overwrite)
    return key, secret


async def revoke(settings: Settings, url: str, name: str) -> Key:
    """Revoke the key with this id, or the active key with this name.

    Raises:
        BadInput: no active key has this name, or several have it.
        NotFound: no key has this id.
    """
    async with opened(settings, url) as database, database.session() as session:
        key = await store.keys.revoke_key(session, await _find(session, name))
        await store.acts.record_act(
            session, AdminAction.REVOKE_KEY, key.id, key_id=None, reason=None, details={"name": key.name}
        )
    return key


async def limit(
    settings: Settings, url: str, name: str, limits: Mapping[str, int | None], *, reason: str | None
) -> Key:
    """Change some limits of the key with this id, or of the active key with this name; None removes a limit.

    Raises:
        BadInput: no active key has this name, several have it, or it is an admin's.
        NotFound: no key has this id.
    """
    async with opened(settings, url) as database, database.session() as session:
        key = await store.keys.set_limits(session, await _find(session, name), limits)
        if key.tier is Tier.ADMIN:
            require_no_limits(limits)
        details = {"name": key.name, **limits}
        await store.acts.record_act(session, AdminAction.LIMIT_KEY, key.id, key_id=None, reason=reason, details=details)
    return key


async def set_trust(
    settings: Settings, url: str, name: str, *, is_trusted: bool, reason: str | None
) -> tuple[Key, list[Taught]]:
    """Count the labels of the key with this id or name, or none of them; returns it with the critics that it taught.

    All labels are up to date when this returns.

    Raises:
        BadInput: no key has this name, or several have it.
        NotFound: no key has this id.
    """
    action = AdminAction.TRUST_KEY if is_trusted else AdminAction.DISTRUST_KEY
    async with opened(settings, url) as database:
        await refresh(database)  # counts the votes about answers of an earlier release
        async with database.session(limit_s=_TAUGHT_LIMIT_S) as session:
            await session.execute(text("SET LOCAL statement_timeout = 0"))
            key = await store.keys.set_trust(
                session, await _find(session, name, only_active=False), is_trusted=is_trusted
            )
            taught = await store.disputes.critics_taught_by(session, key.id)
            details = {"name": key.name, "critics": [critic.version for critic in taught]}
            await store.acts.record_act(session, action, key.id, key_id=None, reason=reason, details=details)
        await refresh(database)
    return key, taught


def expiry(text: str, *, at: datetime) -> datetime:
    """The time `30d` (or `12h`, `2w`, `90m`) after `at`.

    Raises:
        BadInput: the text is not a duration.
    """
    match = re.fullmatch(r"(\d{1,5})([mhdw])", text.strip())
    if match is None or not int(match[1]):
        raise BadInput(f"--expires {text}: use a duration such as 90m, 12h, 30d or 2w", field="expires")
    return at + timedelta(**{_UNITS[match[2]]: int(match[1])})


def write_secret(path: Path, secret: str, *, overwrite: bool) -> None:
    """Write a secret to a file with mode 600, also where the file existed with another mode.

    Raises:
        BadInput: the file cannot be written, or exists and `overwrite` is False.
    """
    if path.exists() and not overwrite:
        raise BadInput(f"{path} exists and its secret would be lost: choose another file, or add --overwrite")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secret + "\n")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise BadInput(f"{path} cannot be written: {error.strerror}") from None


async def import_file(
    settings: Settings,
    url: str,
    source: str,
    *,
    columns: ColumnMap,
    how: How,
    split: Split | None,
    size: int | None,
    console: Console,
) -> ImportReport:
    """Import a file (of `size` bytes) or a data set into the task that the settings name, with a progress bar.

    The first rows that are skipped or get no grade are shown, and where there are more, all are counted by reason.

    Raises:
        BadInput: the file cannot be read.
        BadSettings: the task cannot be loaded.
        StoreUnavailable: Postgres became unavailable. A repeated import adds the missing rows.
    """
    bar = (TextColumn(source), BarColumn(), TaskProgressColumn(), DownloadColumn(), TimeRemainingColumn())
    shown: list[Skipped] = []
    with Progress(*bar, console=console, disable=not console.is_terminal) as progress:
        bar_id = progress.add_task(source, total=size)

        def on_skip(skipped: Skipped) -> None:
            if len(shown) < _SHOWN_ROWS:
                shown.append(skipped)

        judged = load_tasks(settings).default.task
        async with opened(settings, url) as database, open_grader(judged, settings) as grader:
            await store.wall.key_stored_questions(database)
            report = await import_rows(
                source,
                database,
                task=judged.id,
                grader=grader,
                heldout_share=settings.heldout_share,
                split_blocks=settings.split_blocks,
                max_text_chars=settings.max_text_chars,
                on_skip=on_skip,
                on_progress=lambda read: progress.update(bar_id, completed=read),
                columns=columns,
                how=how,
                split=split,
            )
    for item in shown:
        console.print(f"{report.unit} {item.line}: {item.reason}", markup=False)
    if report.skipped > len(shown):
        for reason, count in report.reasons.most_common():
            console.print(f"{count} x {reason}", markup=False)
    for note, count in report.notes.items():
        console.print(f"{count} {note}", markup=False)
    return report


async def regrade_rows(settings: Settings, url: str, *, console: Console) -> RegradeReport:
    """Grade again the answers that an older grader graded, task by task, with a progress bar.

    Raises:
        StoreUnavailable: Postgres became unavailable. A repeated call goes on after the last batch.
    """
    columns = (TextColumn("{task.completed} of {task.total}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        report = RegradeReport()
        async with opened(settings, url) as database:
            for served in load_tasks(settings):
                bar_id = progress.add_task(served.name, total=None)
                on_progress = partial(_show_progress, progress, bar_id)
                async with open_grader(served.task, settings) as grader:
                    report += await regrade(database, grader=grader, task=served.name, on_progress=on_progress)
        return report


def _show_progress(progress: Progress, bar_id: TaskID, done: int, total: int) -> None:
    progress.update(bar_id, completed=done, total=total)


async def export_file(
    settings: Settings,
    url: str,
    out: Path,
    filters: store.interactions.Filters,
    *,
    contents: Contents,
    subject: Subject,
    console: Console,
) -> int:
    """Export to `out` in the format of its file extension; the number of rows written.

    Training data is of one task, because each has prompts of its own: that of `filters`, else the default one.

    Raises:
        BadInput: the extension is unknown, or the file cannot be written.
    """
    formats = {f".{format}": format for format in ExportFormat}
    format = formats.get(out.suffix.casefold())
    if format is None:
        raise BadInput(f"{out.name} must end in {' or '.join(formats)}")
    columns = (SpinnerColumn(), TextColumn("{task.completed} rows"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar_id = progress.add_task("", total=None)
        served = load_task_named(settings, filters.task)
        if contents is not Contents.INTERACTIONS:
            filters = replace(filters, task=served.name)
        async with opened(settings, url) as database:
            return await export(
                database,
                out,
                format=format,
                filters=filters,
                contents=contents,
                subject=subject,
                prompts=served.prompts,
                on_progress=lambda rows: progress.update(bar_id, completed=rows),
            )


async def _find(session: AsyncSession, name: str, *, only_active: bool = True) -> UUID:
    try:
        return UUID(name)
    except ValueError:
        pass
    found = [key for key in await store.keys.list_keys(session) if key.name == name]
    matches = [key for key in found if key.is_active(now())] if only_active else found
    kind = "active key" if only_active else "key"
    if not matches:
        raise BadInput(f"there is no {kind} {name}: `gadfly keys list` lists the keys")
    if len(matches) > 1:
        raise BadInput(f"{len(matches)} {kind}s are named {name}: give the id of one")
    return matches[0].id
