"""`gadfly critics`, `promote` and `rollback`: list the critics, change which one is live, push and pull them."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from gadfly.cli.commands.arguments import Json, Task
from gadfly.cli.options import takes_settings
from gadfly.settings import Settings

if TYPE_CHECKING:
    from gadfly.client import Client

app = typer.Typer()

Reason = Annotated[str | None, typer.Option("--reason", help="Why; stored with the swap.")]


class _Critics(TyperGroup):
    """Without one of its commands it lists: `gadfly critics`, `gadfly critics 3`, `gadfly critics --json`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        is_command = any(argument in self.commands for argument in args) or {"-h", "--help"} & set(args)
        return super().parse_args(ctx, args if is_command else ["list", *args])


critics = typer.Typer(cls=_Critics, help="List the critics, show one, push one, or pull one of another deployment.")
app.add_typer(critics, name="critics")


@critics.command("list")
@takes_settings(without=("task",))
def list_critics(
    settings: Settings,
    version: Annotated[
        int | None, typer.Argument(help="Show this version alone, as `gadfly critics show` does.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="Only critics of this task.")] = None,
    json: Json = False,
) -> None:
    """List the critics and show which one is live. `gadfly critics` alone does the same."""
    from gadfly.cli.connection import connect
    from gadfly.cli.critic_view import show_critics
    from gadfly.cli.terminal import print_json
    from gadfly.client import calls

    if version is not None:
        _show(settings, version, json=json)
        return
    with connect(settings) as client:
        (print_json if json else show_critics)(client.document(calls.critics(task=task)))


@critics.command("show")
@takes_settings()
def show(settings: Settings, version: Annotated[int, typer.Argument(help="The critic.")], json: Json = False) -> None:
    """Show one critic: its origin, the gate's decision, its swaps and their receipts."""
    _show(settings, version, json=json)


def _show(settings: Settings, version: int, *, json: bool) -> None:
    from gadfly.cli.connection import connect
    from gadfly.cli.critic_view import show_critic
    from gadfly.cli.terminal import print_json
    from gadfly.client import calls

    with connect(settings) as client:
        (print_json if json else show_critic)(client.document(calls.critic(version)))


@critics.command("push")
@takes_settings()
def push(
    settings: Settings,
    version: Annotated[int, typer.Argument(help="The critic.")],
    target: Annotated[str, typer.Argument(help="A new folder, or an address that fsspec opens (s3://..., hf://...).")],
) -> None:
    """Write a critic as a PEFT folder with model card, gate report, probe record and checksums."""
    from gadfly.cli import exchange, storage, terminal

    with storage.database_url(settings) as url:
        critic = asyncio.run(exchange.push(settings, url, version, target))
    terminal.out.print(f"version {critic.version} written to {target}", markup=False)


@critics.command("pull")
@takes_settings()
def pull(
    settings: Settings,
    source: Annotated[str, typer.Argument(help="The folder or address that a critic was pushed to.")],
    json: Json = False,
) -> None:
    """Take in another deployment's critic as the candidate, if it was trained on the same base model.

    Every file is checked. `gadfly promote` makes the critic live after each engine has proven it by its own probes.
    """
    from gadfly.cli import exchange, storage, terminal
    from gadfly.store.database import migrate

    with storage.database_url(settings) as url:
        migrate(url)
        critic = asyncio.run(exchange.pull(settings, url, source))
    if json:
        terminal.print_json({"version": critic.version, "adapter_sha256": critic.adapter_sha256})
    else:
        terminal.out.print(
            f"version {critic.version} is the candidate: `gadfly promote {critic.version}` makes it live after every "
            "engine has proven it"
        )


@app.command()
@takes_settings(without=("task",))
def promote(
    settings: Settings,
    version: Annotated[int, typer.Argument(help="The critic to make live for its task; 0 with --task: untrained.")],
    reason: Reason = None,
    task: Annotated[str | None, typer.Option("--task", help="The task. Unset: that of the critic.")] = None,
    canary: Annotated[
        float | None,
        typer.Option(
            "--canary",
            min=0,
            max=1,
            metavar="SHARE",
            help="Let it answer this share of the requests first, such as 0.1; 0: all at once. Unset: as the "
            "service's settings say.",
        ),
    ] = None,
    seconds: Annotated[
        int | None, typer.Option("--canary-s", min=1, help="Seconds after which a canary answers all requests.")
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option("--canary-requests", min=1, help="Answers of its own after which a canary answers all requests."),
    ] = None,
    json: Json = False,
) -> None:
    """Make a critic live after every engine has proven that it serves it. A refused swap changes nothing."""
    from gadfly.cli.connection import connect
    from gadfly.cli.critic_view import show_canaries, show_swap
    from gadfly.cli.terminal import print_json
    from gadfly.client import calls

    with connect(settings) as client:
        swap = request_promotion(
            client, version, reason, task=task, canary_share=canary, canary_s=seconds, canary_requests=requests
        )
        if json:
            print_json(swap)
            return
        show_swap(swap)
        if canary:
            found = client.document(calls.canaries(task=swap["task"]))
            show_canaries([each for each in found if each["swap_id"] == swap["id"]])


@app.command()
@takes_settings(without=("task",))
def rollback(settings: Settings, reason: Reason = None, task: Task = None, json: Json = False) -> None:
    """Make the previous critic of a task live again."""
    from gadfly.cli.connection import connect
    from gadfly.cli.critic_view import show_swap
    from gadfly.cli.terminal import print_json

    with connect(settings) as client:
        (print_json if json else show_swap)(request_rollback(client, reason, task=task))


@app.command("canaries")
@takes_settings(without=("task",))
def list_canaries(
    settings: Settings,
    task: Annotated[str | None, typer.Option("--task", help="Only canaries of this task.")] = None,
    json: Json = False,
) -> None:
    """List the newest canaries: promotions whose critic first answers a share of the requests."""
    from gadfly.cli.connection import connect
    from gadfly.cli.critic_view import show_canaries
    from gadfly.cli.terminal import print_json
    from gadfly.client import calls

    with connect(settings) as client:
        (print_json if json else show_canaries)(client.document(calls.canaries(task=task)))


@app.command()
@takes_settings(without=("task",))
def widen(
    settings: Settings,
    version: Annotated[int | None, typer.Argument(help="The critic that must be the canary.")] = None,
    reason: Reason = None,
    task: Task = None,
    json: Json = False,
) -> None:
    """Let the critic of a running canary answer all requests. `gadfly rollback` ends a canary the other way."""
    from gadfly.cli.connection import connect
    from gadfly.cli.critic_view import show_canaries
    from gadfly.cli.terminal import print_json
    from gadfly.client import calls

    with connect(settings) as client:
        ended = client.document(calls.widen_canary(version=version, reason=reason, task=task))
    if json:
        print_json(ended)
    else:
        show_canaries([ended])


def request_promotion(
    client: "Client",
    version: int,
    reason: str | None,
    *,
    task: str | None = None,
    canary_share: float | None = None,
    canary_s: int | None = None,
    canary_requests: int | None = None,
) -> dict[str, Any]:
    """Request that a version goes live, or begins as a canary; the swap."""
    from gadfly.client import calls

    call = calls.promote(
        version,
        reason=reason,
        task=task,
        canary_share=canary_share,
        canary_s=canary_s,
        canary_requests=canary_requests,
    )
    swap: dict[str, Any] = client.document(call)
    return swap


def request_rollback(client: "Client", reason: str | None, *, task: str | None = None) -> dict[str, Any]:
    """Request the previous version; the swap. Idempotent: the request names the version to leave."""
    from gadfly.client import calls

    listed = client.document(calls.critics(task=task))
    live = {critic["task"]: critic["version"] for critic in listed if "live" in critic["pointers"]}
    if task is None and len(live) > 1:
        task = client.document(calls.state())["task"]
    from_version = live.get(task) if task else next(iter(live.values()), None)
    swap: dict[str, Any] = client.document(calls.rollback(from_version=from_version, reason=reason, task=task))
    return swap
