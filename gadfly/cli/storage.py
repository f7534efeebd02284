"""Database access of the commands: the address of the database, API keys, import and export."""

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

from gadfly import prompts, store
from gadfly.api_keys import issue_key
from gadfly.errors import BadInput
from gadfly.grading import Grader
from gadfly.records import Key, Tier, now
from gadfly.settings import Settings
from gadfly.store.database import Database, require_current_schema
from gadfly.store.embedded import EmbeddedPostgres
from gadfly.store.files import ExportFormat, ImportReport, Skipped, export, import_rows
from gadfly.store.rewrites import rewrite_rows

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


async def active_keys(settings: Settings, url: str, tier: Tier | None = None) -> list[Key]:
    """The keys that are valid now, of one tier or of both."""
    async with opened(settings, url) as database, database.session() as session:
        keys = await store.keys.list_keys(session)
    return [key for key in keys if key.is_active(now()) and tier in (None, key.tier)]


async def all_keys(settings: Settings, url: str) -> list[Key]:
    """All keys, including expired and revoked ones."""
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
    """Create a key; returns it with its secret. Also writes the secret to `out`; if that fails, no key is created.

    Raises:
        BadInput: `out` cannot be written, or exists and `overwrite` is False.
    """
    async with opened(settings, url) as database, database.session() as session:
        key, secret = await issue_key(session, name=name, tier=tier, expires_at=expires_at)
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
        return await store.keys.revoke_key(session, await _find(session, name))


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


async def import_file(settings: Settings, url: str, path: Path, *, size: int | None, console: Console) -> ImportReport:
    """Import `path`, of `size` bytes, with a progress bar and one line per skipped row.

    Raises:
        BadInput: the file cannot be read.
        StoreUnavailable: Postgres became unavailable. A repeated import adds the missing rows.
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
                on_progress=lambda read: progress.update(task, completed=read),
            )


async def export_file(
    settings: Settings, url: str, out: Path, filters: store.interactions.Filters, *, rewrites: bool, console: Console
) -> int:
    """Export to `out` in the format of its file extension; the number of rows written.

    Raises:
        BadInput: the extension is unknown or not that of `rewrites`, or the file cannot be written.
    """
    formats = {f".{format}": format for format in ExportFormat}
    format = formats.get(out.suffix.casefold())
    if format is None:
        raise BadInput(f"{out.name} must end in {' or '.join(formats)}")
    if rewrites and format is not ExportFormat.JSONL:
        raise BadInput(f"{out.name} must end in .jsonl: edited responses are written as JSON lines")
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
                to_rows=rewrite_rows(prompts.load(settings.prompts)) if rewrites else None,
            )


async def _find(session: AsyncSession, name: str) -> UUID:
    try:
        return UUID(name)
    except ValueError:
        pass
    matches = [key for key in await store.keys.list_keys(session) if key.name == name and key.is_active(now())]
    if not matches:
        raise BadInput(f"there is no active key {name}: `gadfly keys list` lists the keys")
    if len(matches) > 1:
        raise BadInput(f"{len(matches)} active keys are named {name}: give the id of one")
    return matches[0].id
