"""One phase of a training run: `python -m gadfly.trainer.run learn RUN`, then `... evaluate RUN`."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from uuid import UUID

import structlog

from gadfly import logs, tracing
from gadfly.errors import EngineTimeout, EngineUnavailable, GadflyError, StoreUnavailable
from gadfly.imports import quick_imports
from gadfly.settings import Settings
from gadfly.trainer.phases import Phase, leave_reason
from gadfly.trainer.workspace import Workspace

log = structlog.get_logger(__name__)

_NICENESS = 19  # processes that answer requests go first


def leads() -> bool:
    """Whether this is the only process of the phase, or the first that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gadfly.trainer.run", description=__doc__)
    parser.add_argument("phase", type=Phase, choices=list(Phase))
    parser.add_argument("run", type=UUID)
    options = parser.parse_args(arguments)
    settings = Settings.load()
    logs.configure(settings)
    structlog.contextvars.bind_contextvars(run=str(options.run))
    os.nice(_NICENESS)
    with quick_imports():
        from gadfly.trainer.execute import execute  # noqa: PLC0415  # with torch and transformers
    workspace = Workspace.of(settings.home, options.run)
    if leads():
        tracing.start("trainer", os.environ)
    try:
        with workspace.exclusive() if leads() else nullcontext(), _span(options.phase, options.run):
            execute(options.phase, settings, options.run)
    except (StoreUnavailable, EngineUnavailable, EngineTimeout) as error:
        log.error("run_interrupted", reason=str(error))  # the worker restarts the phase
        return 1
    except GadflyError as error:
        log.error("run_failed", reason=str(error))
        leave_reason(workspace, str(error))
        return 1
    finally:
        tracing.stop()
    return 0


def _span(phase: Phase, run_id: UUID) -> AbstractContextManager[tracing.OpenSpan]:
    """The span of a phase, below the one of the worker that started this process."""
    carrier = {name.lower(): value for name, value in os.environ.items() if name in ("TRACEPARENT", "TRACESTATE")}
    return tracing.root(phase.value, {"gadfly.run_id": run_id}, carrier=carrier, trace_id=run_id)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Python would take two seconds to free torch's and transformers' modules one by one
