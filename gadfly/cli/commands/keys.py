"""`gadfly keys create`, `list`, `revoke`, `limit`, `distrust` and `trust`: API keys."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gadfly.cli.commands.arguments import Json
from gadfly.cli.options import takes_settings
from gadfly.errors import BadInput
from gadfly.records import KeyLimits, Scope, Tier
from gadfly.settings import Settings

_MOST = 2**31 - 1

RequestsPerMinute = Annotated[
    int | None,
    typer.Option("--requests-per-minute", min=0, max=_MOST, help="Limit of requests, in each worker. 0: none."),
]
EngineCallsPerMinute = Annotated[
    int | None,
    typer.Option("--engine-calls-per-minute", min=0, max=_MOST, help="Limit of engine calls, in each worker. 0: none."),
]
TokensPerDay = Annotated[
    int | None,
    typer.Option(
        "--tokens-per-day", min=0, max=2**63 - 1, help="Limit of tokens a day (UTC), over all workers. 0: none."
    ),
]
MaxInFlight = Annotated[
    int | None,
    typer.Option("--requests-in-flight", min=0, max=_MOST, help="Limit of requests at once, in each worker. 0: none."),
]


def _limits(
    requests_per_minute: int | None,
    engine_calls_per_minute: int | None,
    tokens_per_day: int | None,
    max_in_flight: int | None,
) -> dict[str, int | None]:
    """The limits that were given; None: removed."""
    given = {name: value for name, value in locals().items() if value is not None}
    return {name: value or None for name, value in given.items()}


app = typer.Typer(help="Create, list, revoke and distrust API keys.", no_args_is_help=True)


@app.command("create")
@takes_settings(without=("task",))
def create_key(
    settings: Settings,
    tier: Annotated[Tier, typer.Option("--tier", help="caller: what --scope says. admin: everything.")] = Tier.CALLER,
    name: Annotated[str, typer.Option("--name", help="Name of the key. Unset: its tier.")] = "",
    expires: Annotated[
        str | None, typer.Option("--expires", help="When the key expires: 12h, 30d, 2w. Unset: never.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="Limit the key to this task; may be repeated. Unset: all tasks."),
    ] = None,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(
            "--scope",
            help="What the key may do; may be repeated. use: have answers judged and rewritten, see its own rows. "
            "label: label the answers of all callers. read: read all traffic, runs and critics. "
            "train: plan, request and cancel training runs. Unset: use.",
        ),
    ] = None,
    requests_per_minute: RequestsPerMinute = None,
    engine_calls_per_minute: EngineCallsPerMinute = None,
    tokens_per_day: TokensPerDay = None,
    max_in_flight: MaxInFlight = None,
    secret_file: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Take the secret from this file, for deployments that keep it elsewhere. Does nothing when the key "
            "with this secret exists.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the secret to this file (mode 600).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out if it exists.")] = False,
    if_none: Annotated[
        bool, typer.Option("--if-none", help="Do nothing when an active key of this tier exists.")
    ] = False,
    json: Json = False,
) -> None:
    """Create a key. Its secret is shown once, or written to --out and not shown."""
    from gadfly.cli import storage, terminal
    from gadfly.records import now
    from gadfly.store.database import migrate

    limits = _limits(requests_per_minute, engine_calls_per_minute, tokens_per_day, max_in_flight)
    expires_at = None if expires is None else storage.expiry(expires, at=now())
    with storage.database_url(settings) as url:
        migrate(url)
        given = None if secret_file is None else _read(secret_file)
        if given and (same := asyncio.run(storage.key_of_secret(settings, url, given))):
            if same.tier is not tier or not same.is_active(now()):
                raise BadInput(
                    f"the secret in {secret_file} is that of the key {same.name}, which is revoked, expired or of "
                    "another tier: take another secret"
                )
            terminal.err.print(f"the key with this secret exists already: {same.name} ({same.hint}...)")
            return
        active = asyncio.run(storage.active_keys(settings, url, tier)) if if_none else []
        if active:
            terminal.err.print(f"an active {tier} key exists already: {active[0].name} ({active[0].hint}...)")
            return
        is_first = not asyncio.run(storage.all_keys(settings, url))
        key, secret = asyncio.run(
            storage.create_key(
                settings,
                url,
                name=name or tier.value,
                tier=tier,
                expires_at=expires_at,
                tasks=_served(settings, task),
                scopes=scope or None,
                limits=KeyLimits(**limits),
                secret=given,
                out=out,
                overwrite=overwrite,
            )
        )
    if is_first:
        terminal.err.print("This is the first key: from now on every request needs a key, on this machine too.")
        if key.tier is not Tier.ADMIN:
            terminal.err.print("It is no admin key: create one with `gadfly keys create --tier admin` as well.")
    if json:
        terminal.print_json(
            {**asdict(key), "scopes": key.granted, "secret": None if out else secret, "file": out and str(out)}
        )
        return
    ends = "" if key.expires_at is None else f", valid until {key.expires_at:%Y-%m-%d %H:%M} UTC"
    terminal.err.print(f"{key.tier} key {key.name} ({key.id}){ends}", markup=False)
    if out is None:
        terminal.err.print("This is its secret; it is not shown again:")
        terminal.out.print(secret, markup=False)
    else:
        terminal.err.print(f"The secret is in {out}.", markup=False)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the secret cannot be read from {path}: {error}") from None


def _served(settings: Settings, names: list[str] | None) -> tuple[str, ...] | None:
    """The tasks that a key is limited to, which must be served."""
    from gadfly.tasks import load_task_named

    return tuple(sorted({load_task_named(settings, name).name for name in names})) if names else None


@app.command("list")
@takes_settings()
def list_keys(settings: Settings, json: Json = False) -> None:
    """List all keys, including expired and revoked ones."""
    from gadfly.cli import storage
    from gadfly.cli.terminal import out, print_json
    from gadfly.records import now

    with storage.database_url(settings) as url:
        keys = asyncio.run(storage.all_keys(settings, url))
    if json:
        print_json([{**asdict(key), "scopes": key.granted, "active": key.is_active(now())} for key in keys])
        return
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("id", "name", "tier", "scopes", "limits", "tasks", "secret", "created", "state"):
        table.add_column(name, overflow="fold", no_wrap=name == "id")
    for key in keys:
        inactive = "revoked" if key.revoked_at else "expired"
        active = "active" if key.expires_at is None else f"active until {key.expires_at:%Y-%m-%d}"
        limits = ", ".join(f"{value:,} {_named(name)}" for name, value in key.limits.items())
        state = active if key.is_active(now()) else inactive
        if key.distrusted_at is not None:
            state += ", labels distrusted"
        tasks = "all" if key.tasks is None else ", ".join(key.tasks)
        scopes = "all" if key.tier is Tier.ADMIN else ", ".join(key.granted)
        table.add_row(
            str(key.id),
            key.name,
            key.tier,
            scopes,
            limits,
            tasks,
            f"{key.hint}...",
            f"{key.created_at:%Y-%m-%d}",
            state,
        )
    out.print(table if keys else "no keys")


@app.command("revoke")
@takes_settings()
def revoke_key(
    settings: Settings, key: Annotated[str, typer.Argument(help="The key's id, or its name if the name is unique.")]
) -> None:
    """Revoke a key permanently. Services notice within seconds."""
    from gadfly.cli import storage
    from gadfly.cli.terminal import out

    with storage.database_url(settings) as url:
        revoked = asyncio.run(storage.revoke(settings, url, key))
    out.print(f"revoked {revoked.tier} key {revoked.name} ({revoked.id})", markup=False)


def _named(limit: str) -> str:
    return limit.replace("_per_", "/").removeprefix("max_").replace("_", " ")


KeyName = Annotated[str, typer.Argument(help="The key's id, or its name if the name is unique.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Why; stored with the act.")]


@app.command("limit")
@takes_settings()
def limit_key(
    settings: Settings,
    key: KeyName,
    requests_per_minute: RequestsPerMinute = None,
    engine_calls_per_minute: EngineCallsPerMinute = None,
    tokens_per_day: TokensPerDay = None,
    max_in_flight: MaxInFlight = None,
    reason: Reason = None,
) -> None:
    """Change how much a key may use. Limits that are not given stay; services notice within seconds."""
    from gadfly.cli import storage
    from gadfly.cli.terminal import out
    from gadfly.errors import BadInput

    limits = _limits(requests_per_minute, engine_calls_per_minute, tokens_per_day, max_in_flight)
    if not limits:
        raise BadInput("give a limit to change, for example --requests-per-minute 60")
    with storage.database_url(settings) as url:
        changed = asyncio.run(storage.limit(settings, url, key, limits, reason=reason))
    shown = ", ".join(f"{value:,} {_named(name)}" for name, value in changed.limits.items()) or "no limits"
    out.print(f"{changed.name} ({changed.id}): {shown}", markup=False)


@app.command("distrust")
@takes_settings()
def distrust_key(settings: Settings, key: KeyName, reason: Reason = None, json: Json = False) -> None:
    """Count no label of a key any more, also past ones, and name the critics that learned from them."""
    _set_trust(settings, key, is_trusted=False, reason=reason, json=json)


@app.command("trust")
@takes_settings()
def trust_key(settings: Settings, key: KeyName, reason: Reason = None, json: Json = False) -> None:
    """Count the labels of a distrusted key again, also past ones."""
    _set_trust(settings, key, is_trusted=True, reason=reason, json=json)


def _set_trust(settings: Settings, name: str, *, is_trusted: bool, reason: str | None, json: bool) -> None:
    from gadfly.cli import storage
    from gadfly.cli.terminal import out, print_json

    with storage.database_url(settings) as url:
        key, taught = asyncio.run(storage.set_trust(settings, url, name, is_trusted=is_trusted, reason=reason))
    if json:
        print_json({"key": asdict(key), "critics": [asdict(critic) for critic in taught]})
        return
    out.print(f"the labels of {key.name} ({key.id}) {'count' if is_trusted else 'count no more'}", markup=False)
    for critic in taught:
        learned = (
            f"learned from {critic.answers} of them" if critic.answers else "continues a version that learned from them"
        )
        out.print(f"critic@{critic.version} {learned}", markup=False)
    if not taught:
        out.print("no critic learned from them")
