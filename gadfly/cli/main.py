"""The command `gadfly`. Commands import what they need when they run, so that the others start quickly."""

import asyncio
import os
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from gadfly.cli.options import takes_settings
from gadfly.errors import BadInput, BadSettings, GadflyError
from gadfly.records import Kind, Split, Tier
from gadfly.settings import Settings

app = typer.Typer(
    name="gadfly",
    help="An inference service whose critic learns from its own traffic.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys_app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

_OF_A_REQUEST = ("temperature", "max_tokens")  # the service has settings of these names, a request speaks for itself

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Question = Annotated[
    str | None, typer.Option("--question", "-q", help="The question: text, @FILE, or - for standard input.")
]
Response = Annotated[str | None, typer.Option("--response", "-r", help="The answer to judge: text, @FILE or -.")]
Reference = Annotated[str | None, typer.Option("--reference", help="The right answer, if known: text, @FILE or -.")]
Critic = Annotated[str | None, typer.Option("--critic", help="live, candidate, or a version's number.")]
Temperature = Annotated[
    float | None, typer.Option("--temperature", help="Sampling temperature of the critic. Unset: the service's.")
]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", help="Longest critique and refinement. Unset: the service's.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same critic, same input: same answer.")]
Episode = Annotated[str | None, typer.Option("--episode", help="Episode to add this to; it pins the critic.")]
Run = Annotated[str, typer.Argument(help="The run's id, or how it begins.")]
Follow = Annotated[bool, typer.Option("--follow", help="Show the run while it works. Ctrl-C does not end the run.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Why, for whoever reads it later.")]
RequestId = Annotated[str | None, typer.Option("--request-id", help="A repeat with this id returns the first result.")]


def main() -> None:
    """Run the command line. Errors of ours are one sentence and an exit code, never a traceback."""
    try:
        app()
    except GadflyError as error:
        from gadfly.cli.terminal import fail

        fail(str(error), code=2 if isinstance(error, BadSettings | BadInput) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `gadfly ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@app.callback()
@takes_settings(show=True)
def gadfly(flags: dict[str, str]) -> None:
    """An inference service whose critic learns from its own traffic."""


@app.command()
@takes_settings(show=True)
def up(settings: Settings) -> None:
    """Run everything here: database, engine and service, until Ctrl-C."""
    from gadfly.cli.up import up

    raise typer.Exit(up(settings))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="The page that the report is written to.")] = Path(
        "gadfly-demo.html"
    ),
) -> None:
    """Watch a critic learn: the whole stack with a small model, simulated callers, a run, the gate, the swap."""
    if find_spec("gadfly.lab") is None:
        raise BadInput("the demo needs the folder lab/ with its model, which comes with a checkout of the project")
    # In a process of its own: it brings torch, and the command line starts quickly without. Ctrl-C reaches both.
    process = subprocess.Popen([sys.executable, "-P", "-m", "gadfly.lab.demo", "--out", str(out.absolute())])
    while True:
        try:
            raise typer.Exit(process.wait())
        except KeyboardInterrupt:
            continue  # it ends what it started, and then itself


@app.command("settings")
@takes_settings()
def show_settings(settings: Settings, flags: dict[str, str], json: Json = False) -> None:
    """Show every setting in force and where it came from."""
    from gadfly.cli.options import describe
    from gadfly.cli.terminal import out, print_json

    rows = describe(settings, flags=flags, environment=os.environ)
    if json:
        print_json([asdict(row) for row in rows])
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", no_wrap=True)
    for row in rows:
        source = "" if row.given_as is None else f" {row.given_as}"
        value = Text("unset", style="dim") if row.value in (None, "") else Text(row.value or "")
        table.add_row(row.name, value, Text(row.source + source, style="" if row.given_as else "dim"))
    out.print(table)


@app.command()
@takes_settings()
def status(settings: Settings, json: Json = False) -> None:
    """Show what runs, what it is doing, and what is stored."""
    from gadfly.cli import status
    from gadfly.cli.terminal import print_json

    found = asyncio.run(status.collect(settings))
    if json:
        print_json(found)
    else:
        status.show(found)
    raise typer.Exit(0 if found["service"]["ready"] else 1)


@app.command()
@takes_settings()
def doctor(settings: Settings, json: Json = False) -> None:
    """Check everything a deployment needs, and say what to do."""
    from gadfly.cli.doctor import Outcome, examine
    from gadfly.cli.terminal import out, print_json

    findings = asyncio.run(examine(settings))
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        from rich.table import Table
        from rich.text import Text

        colours = {Outcome.OK: "green", Outcome.WARN: "yellow", Outcome.FAIL: "bold red"}
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for finding in findings:
            advice = f" {finding.do}" if finding.do else ""
            table.add_row(
                Text(finding.outcome, style=colours[finding.outcome]), finding.name, Text(finding.says + advice)
            )
        out.print(table)
    raise typer.Exit(any(finding.outcome is Outcome.FAIL for finding in findings))


@app.command()
@takes_settings(without=_OF_A_REQUEST)
def critique(
    settings: Settings,
    question: Question = None,
    response: Response = None,
    reference: Reference = None,
    n: Annotated[int | None, typer.Option("-n", help="How many critiques to sample.")] = None,
    critic: Critic = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    episode: Episode = None,
    request_id: RequestId = None,
    json: Json = False,
) -> None:
    """Judge an answer step by step (arguments, or the JSON of POST /critique on standard input)."""
    from gadfly.cli.asking import show_critique

    given = _options(reference, critic, temperature=temperature, max_tokens=max_tokens, seed=seed)
    given |= {"episode_id": episode, "request_id": request_id, "n": n}
    _ask(settings, "/critique", question, response, given, json, show_critique)


@app.command()
@takes_settings(without=_OF_A_REQUEST)
def refine(
    settings: Settings,
    question: Question = None,
    response: Response = None,
    reference: Reference = None,
    rounds: Annotated[int | None, typer.Option("--rounds", help="Rounds of critique and rewrite.")] = None,
    when: Annotated[str | None, typer.Option("--when", help="always, or if_incorrect.")] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Independent runs; the majority's answer wins.")
    ] = None,
    critique: Annotated[
        str | None, typer.Option("--critique", help="Refine with this critique: text, @FILE or -.")
    ] = None,
    critique_id: Annotated[str | None, typer.Option("--critique-id", help="Refine with this earlier critique.")] = None,
    critic: Critic = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    episode: Episode = None,
    request_id: RequestId = None,
    json: Json = False,
) -> None:
    """Rewrite an answer with a critique (arguments, or the JSON of POST /refine on standard input)."""
    from gadfly.cli.asking import read_text, show_refinement

    given = _options(reference, critic, temperature=temperature, max_tokens=max_tokens, seed=seed)
    given |= {"episode_id": episode, "request_id": request_id}
    given |= {"rounds": rounds, "when": when, "samples": samples, "critique_id": critique_id}
    given["critique"] = read_text(critique)
    _ask(settings, "/refine", question, response, given, json, show_refinement)


@app.command()
@takes_settings()
def feedback(
    settings: Settings,
    interaction_id: Annotated[str | None, typer.Argument(help="The interaction; or give --request-id.")] = None,
    correct: Annotated[bool | None, typer.Option("--correct/--incorrect", help="Was the response right?")] = None,
    reference: Reference = None,
    edited: Annotated[str | None, typer.Option("--edited", help="How the answer should have read.")] = None,
    rating: Annotated[int | None, typer.Option("--rating", help="1 (worst) to 5 (best).")] = None,
    comment: Annotated[str | None, typer.Option("--comment", help="Anything else.")] = None,
    request_id: Annotated[str | None, typer.Option("--request-id", help="The request id it was asked with.")] = None,
    json: Json = False,
) -> None:
    """Say what was right: the critic learns from it."""
    from gadfly.cli.asking import read_text
    from gadfly.cli.connection import connect
    from gadfly.cli.terminal import out, print_json

    body = {
        "interaction_id": interaction_id,
        "request_id": request_id,
        "correct": correct,
        "reference": read_text(reference),
        "edited_response": read_text(edited),
        "rating": rating,
        "comment": comment,
    }
    result = connect(settings).post("/feedback", {name: value for name, value in body.items() if value is not None})
    if json:
        print_json(result)
        return
    grade = f"; the reference says the response is {result['grade'].replace('_', ' ')}" if result.get("grade") else ""
    out.print(f"kept as feedback {result['id']} on interaction {result['interaction_id']}{grade}")


@app.command("critics")
@takes_settings()
def critics_(
    settings: Settings,
    version: Annotated[
        int | None, typer.Argument(help="Only this one, with how it went live and what proved it.")
    ] = None,
    json: Json = False,
) -> None:
    """List the critics, and which of them answers."""
    from gadfly.cli import critics
    from gadfly.cli.connection import connect
    from gadfly.cli.terminal import print_json

    service = connect(settings)
    found = critics.list_critics(service) if version is None else critics.read_critic(service, version)
    if json:
        print_json(found)
    elif isinstance(found, list):
        critics.show_critics(found)
    else:
        critics.show_critic(found)


@app.command()
@takes_settings()
def promote(
    settings: Settings,
    version: Annotated[int, typer.Argument(help="The critic that is to answer from now on.")],
    reason: Reason = None,
    json: Json = False,
) -> None:
    """Make a critic live, once it has proven itself on every engine. Refused, nothing changes."""
    from gadfly.cli import critics
    from gadfly.cli.connection import connect
    from gadfly.cli.terminal import print_json

    swap = critics.promote(connect(settings), version, reason)
    print_json(swap) if json else critics.show_swap(swap)


@app.command()
@takes_settings()
def rollback(settings: Settings, reason: Reason = None, json: Json = False) -> None:
    """Go back to the critic that was live before."""
    from gadfly.cli import critics
    from gadfly.cli.connection import connect
    from gadfly.cli.terminal import print_json

    swap = critics.rollback(connect(settings), reason)
    print_json(swap) if json else critics.show_swap(swap)


@app.command()
@takes_settings()
def retrain(
    settings: Settings,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would do, and ask for nothing.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A training option; as often as needed.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="JSON file of training options.")] = None,
    request_id: RequestId = None,
    follow: Follow = False,
    json: Json = False,
) -> None:
    """Ask for a training run: the critic learns from labelled answers, and a gate measures what came of it."""
    from gadfly.cli import runs
    from gadfly.cli.connection import connect
    from gadfly.cli.terminal import print_json

    body: dict[str, Any] = {"config": runs.read_changes(config, set_ or [])}
    if request_id is not None:
        body["request_id"] = request_id
    with connect(settings) as service:
        if dry_run:
            plan = service.post("/admin/retrain", {**body, "dry_run": True})
            (print_json if json else runs.show_plan)(plan)
        else:
            _asked_for(service, service.post("/admin/retrain", body), follow=follow, json=json)


@app.command("runs")
@takes_settings()
def show_runs(
    settings: Settings,
    run: Annotated[str | None, typer.Argument(help="A run's id, or how it begins. Unset: all runs.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=200, help="How many runs to list.")] = 20,
    follow: Follow = False,
    json: Json = False,
) -> None:
    """List training runs, show one, or follow it while it works."""
    from gadfly.cli import runs
    from gadfly.cli.connection import connect
    from gadfly.cli.terminal import print_json

    if run is None and follow:
        raise BadInput("--follow needs the id of a run: `gadfly runs` shows them.")
    with connect(settings) as service:
        if run is None:
            (print_json if json else runs.show_runs)(service.get("/admin/runs", {"limit": limit})["items"])
            return
        run_id = runs.find_run(service, run)
        if follow:
            _follow(service, run_id, json=json)
        (print_json if json else runs.show_run)(service.get(f"/admin/runs/{run_id}"))


@app.command()
@takes_settings()
def cancel(settings: Settings, run: Run, json: Json = False) -> None:
    """End a training run. Nothing of it is published."""
    from gadfly.cli import runs
    from gadfly.cli.connection import connect
    from gadfly.cli.terminal import out, print_json

    with connect(settings) as service:
        cancelled = service.post(f"/admin/runs/{runs.find_run(service, run)}/cancel", {})
    if json:
        print_json(cancelled)
    else:
        is_over = cancelled["status"] == "cancelled"
        out.print(f"run {cancelled['id']} {'is cancelled' if is_over else 'is asked to end, which takes seconds'}")


@app.command()
@takes_settings()
def reproduce(settings: Settings, run: Run, follow: Follow = False, json: Json = False) -> None:
    """Do a training run again, with the same config, rows and seeds."""
    from gadfly.cli import runs
    from gadfly.cli.connection import connect

    with connect(settings) as service:
        asked = service.post(f"/admin/runs/{runs.find_run(service, run)}/reproduce", {})
        _asked_for(service, asked, follow=follow, json=json)


@app.command()
@takes_settings()
def migrate(
    settings: Settings,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail if something would change.")] = False,
) -> None:
    """Bring the database's schema up to date."""
    from gadfly.cli.storage import database_url
    from gadfly.cli.terminal import fail, out
    from gadfly.store.database import migrate, schema_state

    with database_url(settings) as url:
        if not check:
            migrate(url)
        state = schema_state(url)
        if not state.is_current:
            fail(f"the schema is at {state.current or 'nothing'} and not at {state.head}: run `gadfly migrate`")
        if state.drift:
            fail(f"the tables differ from what this release says: {'; '.join(state.drift)}")
        out.print(f"the schema is at {state.current}, as this release needs it")


@app.command()
@takes_settings()
def model(settings: Settings) -> None:
    """Make the default model, which `gadfly up` also does when it is missing, and print its folder."""
    environment = os.environ | settings.to_environment()
    command = (sys.executable, "-P", "-m", "gadfly.engine.models")
    raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)


@app.command("import")
@takes_settings()
def import_(
    settings: Settings, file: Annotated[Path, typer.Argument(help="JSON Lines: question, response, reference, ...")]
) -> None:
    """Take in logged answers from a file. Doing it again adds only what is not there yet."""
    from gadfly.cli import storage, terminal
    from gadfly.store.database import migrate

    size = file.stat().st_size if file.is_file() else None
    with storage.database_url(settings) as url:
        migrate(url)
        report = asyncio.run(storage.import_file(settings, url, file, size=size, console=terminal.err))
    terminal.out.print(f"{report.added} rows added, {report.known} were there already, {report.skipped} skipped")
    if report.skipped and not report.added and not report.known:
        terminal.fail(f"no line of {file} could be read")


@app.command()
@takes_settings()
def export(
    settings: Settings,
    out: Annotated[Path, typer.Argument(help="OUT.parquet or OUT.jsonl; it appears whole or not at all.")],
    split: Annotated[Split | None, typer.Option("--split", help="Only this side of the training wall.")] = None,
    kind: Annotated[Kind | None, typer.Option("--kind", help="Only interactions of this kind.")] = None,
    since: Annotated[datetime | None, typer.Option("--since", help="Only from this moment (UTC) on.")] = None,
    until: Annotated[datetime | None, typer.Option("--until", help="Only before this moment (UTC).")] = None,
) -> None:
    """Write interactions with their critiques, refinements and feedback to a file."""
    from gadfly.cli import storage, terminal
    from gadfly.store.interactions import Filters

    filters = Filters(split=split, kind=kind, created_from=_utc(since), created_before=_utc(until))
    with storage.database_url(settings) as url:
        rows = asyncio.run(storage.export_file(settings, url, out, filters, console=terminal.err))
    terminal.out.print(f"{rows} interactions written to {out}", markup=False)


@keys_app.command("create")
@takes_settings()
def keys_create(
    settings: Settings,
    tier: Annotated[Tier, typer.Option("--tier", help="caller: use the service. admin: everything.")] = Tier.CALLER,
    name: Annotated[str, typer.Option("--name", help="What to call it.")] = "",
    expires: Annotated[str | None, typer.Option("--expires", help="When it ends: 12h, 30d, 2w. Unset: never.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the secret to this file (mode 600).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="The file of --out may exist.")] = False,
    if_none: Annotated[
        bool, typer.Option("--if-none", help="Do nothing when an active key of this tier exists.")
    ] = False,
    json: Json = False,
) -> None:
    """Make a key. Its secret is shown once, or written to --out and not shown."""
    from gadfly.cli import storage, terminal
    from gadfly.records import now
    from gadfly.store.database import migrate

    expires_at = None if expires is None else storage.expiry(expires, at=now())
    with storage.database_url(settings) as url:
        migrate(url)
        active = asyncio.run(storage.active_keys(settings, url, tier)) if if_none else []
        if active:
            terminal.err.print(f"there is an active {tier} key already: {active[0].name} ({active[0].hint}...)")
            return
        is_first = not asyncio.run(storage.all_keys(settings, url))
        key, secret = asyncio.run(
            storage.create_key(
                settings,
                url,
                name=name or tier.value,
                tier=tier,
                expires_at=expires_at,
                out=out,
                overwrite=overwrite,
            )
        )
    if is_first:
        terminal.err.print("This is the first key: from now on every request needs one, on this machine too.")
    if json:
        terminal.print_json({**asdict(key), "secret": None if out else secret, "file": out and str(out)})
        return
    ends = "" if key.expires_at is None else f", valid until {key.expires_at:%Y-%m-%d %H:%M} UTC"
    terminal.err.print(f"{key.tier} key {key.name} ({key.id}){ends}", markup=False)
    if out is None:
        terminal.err.print("This is its secret; it is not shown again:")
        terminal.out.print(secret, markup=False)
    else:
        terminal.err.print(f"The secret is in {out}.", markup=False)


@keys_app.command("list")
@takes_settings()
def keys_list(settings: Settings, json: Json = False) -> None:
    """List all keys, also those that are over."""
    from gadfly.cli import storage
    from gadfly.cli.terminal import out, print_json
    from gadfly.records import now

    with storage.database_url(settings) as url:
        keys = asyncio.run(storage.all_keys(settings, url))
    if json:
        print_json([{**asdict(key), "active": key.is_active(now())} for key in keys])
        return
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("id", "name", "tier", "secret", "made", "state"):
        table.add_column(name, overflow="fold", no_wrap=name == "id")
    for key in keys:
        over = "revoked" if key.revoked_at else "expired"
        until = "active" if key.expires_at is None else f"active until {key.expires_at:%Y-%m-%d}"
        state = until if key.is_active(now()) else over
        table.add_row(str(key.id), key.name, key.tier, f"{key.hint}...", f"{key.created_at:%Y-%m-%d}", state)
    out.print(table if keys else "no keys")


@keys_app.command("revoke")
@takes_settings()
def keys_revoke(
    settings: Settings, key: Annotated[str, typer.Argument(help="Its id, or its name if only one has it.")]
) -> None:
    """End a key for ever. Services notice within seconds."""
    from gadfly.cli import storage
    from gadfly.cli.terminal import out

    with storage.database_url(settings) as url:
        revoked = asyncio.run(storage.revoke(settings, url, key))
    out.print(f"revoked {revoked.tier} key {revoked.name} ({revoked.id})", markup=False)


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)


def _options(reference: str | None, critic: str | None, **given: Any) -> dict[str, Any]:
    from gadfly.cli.asking import read_text

    number = int(critic) if critic is not None and critic.isdecimal() else critic
    return {**given, "reference": read_text(reference), "critic": number}


def _ask(
    settings: Settings,
    path: str,
    question: str | None,
    response: str | None,
    given: dict[str, Any],
    json: bool,
    show: Any,
) -> None:
    from gadfly.cli.asking import ask, request_body
    from gadfly.cli.connection import connect
    from gadfly.cli.terminal import print_json

    body = request_body(question, response, given)
    service = connect(settings)
    if json:
        print_json(service.post(path, body))
    else:
        show(ask(service, path, body))


def _asked_for(service: Any, run: dict[str, Any], *, follow: bool, json: bool) -> None:
    from gadfly.cli.terminal import err, out, print_json

    if follow:
        if not json:
            err.print(f"run {run['id']}")
        _follow(service, run["id"], json=json)
    elif json:
        print_json(run)
    else:
        out.print(f"run {run['id']} is {run['status']}: `gadfly runs {run['id']} --follow` shows it work")


def _follow(service: Any, run_id: str, *, json: bool) -> NoReturn:
    from gadfly.cli import runs
    from gadfly.cli.terminal import err

    try:
        code = runs.follow_json(service, run_id) if json else runs.follow(service, run_id)
    except KeyboardInterrupt:
        err.print(f"the run goes on: `gadfly runs {run_id} --follow` shows it, `gadfly cancel {run_id}` ends it")
        raise typer.Exit(130) from None
    raise typer.Exit(code)


if __name__ == "__main__":
    main()
