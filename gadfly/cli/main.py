"""The command `gadfly`: global options, error handling, and the groups of commands in `gadfly/cli/commands/`.

A command imports its modules when it runs, so that the others start quickly.
"""

import os
import sys
from typing import Annotated

import typer

from gadfly.cli.commands import ask, backups, critics, data, interactions, keys, labels, runs, serve, tasks, webhooks
from gadfly.cli.options import takes_settings
from gadfly.errors import BadInput, BadSettings, GadflyError

app = typer.Typer(
    name="gadfly",
    help="An inference service whose critic learns from its own traffic.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (serve, ask, critics, runs, data, backups):
    app.add_typer(group.app)  # without a name: its commands become commands of `gadfly`
app.add_typer(keys.app, name="keys")
app.add_typer(labels.app, name="labels")
app.command("acts")(labels.list_acts)
app.add_typer(interactions.app, name="interactions")
app.add_typer(tasks.app, name="tasks")
app.add_typer(webhooks.app, name="webhooks")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"gadfly {version('gadfly')}")
        raise typer.Exit


@app.callback()
@takes_settings(show=True)
def gadfly(
    flags: dict[str, str],
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """An inference service whose critic learns from its own traffic."""


def main() -> None:
    """Run the command line. A `GadflyError` becomes one sentence and an exit code, never a traceback."""
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


if __name__ == "__main__":
    main()
