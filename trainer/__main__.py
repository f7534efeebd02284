"""`python -m gadfly.trainer`: waits for training runs and carries them out."""

import asyncio
import os
import sys

from gadfly import logs, tracing
from gadfly.errors import BadSettings, GadflyError
from gadfly.imports import quick_imports
from gadfly.settings import Settings

_EXIT_BAD_SETTINGS = 2


async def work(settings: Settings) -> None:
    with quick_imports():
        from gadfly.trainer.worker import Worker  # noqa: PLC0415  # with the database and the engine's client
    async with Worker.open(settings) as worker:
        await worker.run()


def main() -> int:
    """Returns 2 for bad settings, so that a supervisor does not restart the process."""
    try:
        settings = Settings.load()
        logs.configure(settings)
        tracing.start("trainer", os.environ)
        asyncio.run(work(settings))
    except GadflyError as error:
        print(f"error: {error}", file=sys.stderr)
        return _EXIT_BAD_SETTINGS if isinstance(error, BadSettings) else 1
    finally:
        tracing.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
