"""`gadfly backup` and `gadfly restore`: a deployment's database and critics in one folder."""

from pathlib import Path
from typing import Annotated

import typer

from gadfly.cli.commands.arguments import Json
from gadfly.cli.options import takes_settings
from gadfly.settings import Settings

app = typer.Typer()


@app.command()
@takes_settings()
def backup(
    settings: Settings,
    folder: Annotated[Path, typer.Argument(help="New folder for the backup. It appears when the backup is complete.")],
    json: Json = False,
) -> None:
    """Write the database, the critics and the added tasks to a folder. The service may run meanwhile."""
    from importlib.metadata import version

    from gadfly.cli.storage import database_url
    from gadfly.cli.terminal import err, out, print_json
    from gadfly.store.backup import back_up
    from gadfly.tasks.served import folder_of_added

    with database_url(settings) as url:
        manifest = back_up(
            url,
            folder.absolute(),
            adapters=settings.adapters_folder,
            tasks=folder_of_added(settings.home),
            version=version("gadfly"),
        )
    for name in manifest.missing_adapters:
        err.print(f"the critic in {settings.adapters_folder / name} is missing or incomplete: not in the backup")
    if waiting := list((settings.home / "spool").glob("*/*.log")):
        err.print(
            f"{len(waiting)} spooled files wait for Postgres and are not in the backup: repeat it when they are in"
        )
    if json:
        print_json({"folder": str(folder.absolute()), **manifest.model_dump(mode="json")})
    else:
        out.print(f"{len(manifest.files)} files, {manifest.size:,} bytes, schema {manifest.revision}", markup=False)


@app.command()
@takes_settings()
def restore(
    settings: Settings,
    folder: Annotated[Path, typer.Argument(help="The folder of a backup.")],
    without_webhooks: Annotated[
        bool, typer.Option("--without-webhooks", help="Remove its webhooks: for a copy beside the original.")
    ] = False,
    json: Json = False,
) -> None:
    """Restore a backup into an empty database. Every file is checked first."""
    from gadfly.cli.storage import database_url
    from gadfly.cli.terminal import out, print_json
    from gadfly.store.backup import restore
    from gadfly.tasks.served import folder_of_added

    with database_url(settings) as url:
        manifest, webhooks = restore(
            url,
            folder.absolute(),
            adapters=settings.adapters_folder,
            tasks=folder_of_added(settings.home),
            with_webhooks=not without_webhooks,
        )
    if json:
        print_json(manifest.model_dump(mode="json"))
        return
    live = ", ".join(f"critic@{version} of {task}" for task, version in sorted(manifest.live.items())) or "no critic"
    out.print(f"restored the backup of {manifest.created_at:%Y-%m-%d %H:%M} UTC; live: {live}", markup=False)
    if webhooks:
        out.print(
            f"It announces events to {webhooks} webhook{'s' if webhooks > 1 else ''}, also those that were waiting. "
            "If the original runs too, restore with --without-webhooks.",
            markup=False,
        )
