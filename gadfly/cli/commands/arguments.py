"""Options that commands of several groups take."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
RequestId = Annotated[
    str | None, typer.Option("--request-id", help="A repeated call with this id returns the first result.")
]
Task = Annotated[str | None, typer.Option("--task", help="The task. Unset: the deployment's default task.")]
