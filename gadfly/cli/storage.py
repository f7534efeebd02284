"""The commands that work on the database itself: keys, migrations, import and export."""

import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly import store
from gadfly.api_keys import issue_key
from gadfly.errors import BadInput
from gadfly.grading import Grader
from gadfly.records import Key, Tier, now
from gadfly.settings import Settings
from gadfly.store.database import Database, require_current_schema
from gadfly.store.embedded import EmbeddedPostgres
from gadfly.store.files import ExportFormat, ImportReport, Skipped, export, import_rows

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@contextmanager
def database_url(settings: Settings) -> Iterator[str]:
    """Where the database is: the settings' own, or the embedded one, which runs at least until the block ends.

    Raises:
        StoreUnavailable: the embedded one does not start.
    """
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    with EmbeddedPostgres(settings.home) as server:  # one that `gadfly up` runs is used and left running
        yield server.url


@asynccontextmanager
async def opened(settings: Settings, url: str) -> AsyncIterator[Database]:
    """The database at `url`, if this release can work with it.

    Raises:
        StoreUnavailable: Postgres is away, or its schema is another release's.
    """
    async with Database.of(settings, url) as database:
        await require_current_schema(database)
        yield database


async def active_keys(settings: Settings, url: str, tier: Tier | None = None) -> list[Key]:
    """The keys that open something now, of one tier or of both."""
    async with opened(settings, url) as database, database.session() as session:
        keys = await store.keys.list_keys(session)
    return [key for key in keys if key.is_active(now()) and tier in (None, key.tier)]


async def all_keys(settings: Settings, url: str) -> list[Key]:
    """Every key ever made."""
    async with opened(settings, url) as database, database.session() as session:
        return await store.keys.list_keys(session)


async def create_key(
    settings: Settings,
    url: str,
    *,
    name: str,
    tier: Tier,
    expires_at: datetime | None,
    out: Path | None,
    overwrite: bool,
) -> tuple[Key, str]:
    """A new key and its secret, which is also in the file `out`, if one is given. Without the file there is no key.

    Raises:
        BadInput: the file cannot be written, or exists and may not be overwritten.
    """
    async with opened(settings, url) as database, database.session() as session:
        key, secret = await issue_key(session, name=name, tier=tier, expires_at=expires_at)
        if out is not None:
            write_secret(out, secret, overwrite=overwrite)
    return key, secret


async def revoke(settings: Settings, url: str, name: str) -> Key:
    """End the key with this id, or the active one with this name.

    Raises:
        BadInput: no key has this name, or several have.
        NotFound: no key has this id.
    """
    async with opened(settings, url) as database, database.session() as session:
        return await store.keys.revoke_key(session, await _find(session, name))


def expiry(text: str, *, at: datetime) -> datetime:
    """When `30d` (or `12h`, `2w`, `90m`) have passed, counted from `at`.

    Raises:
        BadInput: the text is no duration.
    """
    match = re.fullmatch(r"(\d{1,5})([mhdw])", text.strip())
    if match is None or not int(match[1]):
        raise BadInput(f"--expires {text}: say 90m, 12h, 30d or 2w", field="expires")
    return at + timedelta(**{_UNITS[match[2]]: int(match[1])})


def write_secret(path: Path, secret: str, *, overwrite: bool) -> None:
    """Write a secret where only its owner can read it, also when the file was there before.

    Raises:
        BadInput: the file cannot be written, or exists and may not be overwritten.
    """
    if path.exists() and not overwrite:
        raise BadInput(f"{path} exists, and the secret in it would be gone: choose another file, or add --overwrite")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secret + "\n")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise BadInput(f"{path} cannot be written: {error.strerror}") from None


async def import_file(settings: Settings, url: str, path: Path, *, size: int | None, console: Console) -> ImportReport:
    """Import `path`, of `size` bytes, with a progress bar and a line for each row that is skipped.

    Raises:
        BadInput: the file cannot be read.
        StoreUnavailable: Postgres went away; the same import goes on from there.
    """
    columns = (TextColumn(path.name), BarColumn(), TaskProgressColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(path.name, total=size)

        def on_skip(skipped: Skipped) -> None:
            progress.console.print(f"line {skipped.line}: {skipped.reason}", markup=False)

        async with opened(settings, url) as database, Grader(timeout_s=settings.grade_timeout_s) as grader:
            return await import_rows(
                path,
                database,
                grader=grader,
                heldout_share=settings.heldout_share,
                max_text_chars=settings.max_text_chars,
                on_skip=on_skip,
                on_progress=lambda done: progress.update(task, completed=done),
            )


async def export_file(
    settings: Settings, url: str, out: Path, filters: store.interactions.Filters, *, console: Console
) -> int:
    """Export to `out`, whose ending says the format; how many interactions it got.

    Raises:
        BadInput: the ending is none of the formats', or the file cannot be written.
    """
    endings = {f".{format}": format for format in ExportFormat}
    format = endings.get(out.suffix.casefold())
    if format is None:
        raise BadInput(f"{out.name} must end in {' or '.join(endings)}")
    columns = (SpinnerColumn(), TextColumn("{task.completed} rows"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        async with opened(settings, url) as database:
            return await export(
                database,
                out,
                format=format,
                filters=filters,
                on_progress=lambda rows: progress.update(task, completed=rows),
            )


async def _find(session: AsyncSession, name: str) -> UUID:
    try:
        return UUID(name)
    except ValueError:
        pass
    found = [key for key in await store.keys.list_keys(session) if key.name == name and key.is_active(now())]
    if not found:
        raise BadInput(f"there is no active key {name}: `gadfly keys list` shows them")
    if len(found) > 1:
        raise BadInput(f"{len(found)} active keys are named {name}: give the id of one")
    return found[0].id
