"""Work that is retried until it succeeds, and background work that is repeated until it is cancelled."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, stop_never, wait_fixed

from gadfly.errors import GadflyError, StoreUnavailable

T = TypeVar("T")
log = structlog.get_logger(__name__)


async def retry(
    work: Callable[[], Awaitable[T]],
    *,
    on: type[GadflyError],
    every_s: float,
    limit_s: float | None = None,
    event: str,
) -> T:
    """The result of `work`, which is called again after each error of type `on`.

    Each failed attempt is logged as `event`. With `limit_s`, the first error after that many seconds is raised; without
    it, the retries do not end.
    """

    def warn(state: RetryCallState) -> None:
        assert state.outcome is not None
        log.warning(event, reason=str(state.outcome.exception()))

    attempts = AsyncRetrying(
        retry=retry_if_exception_type(on),
        wait=wait_fixed(every_s),
        stop=stop_never if limit_s is None else stop_after_delay(limit_s),
        before_sleep=warn,
        reraise=True,
    )
    return await attempts(work)


async def repeat(
    work: Callable[[], Awaitable[object]],
    *,
    wait: Callable[[], Awaitable[object]],
    failure: str,
    waits_first: bool = True,
) -> None:
    """Do `work` after each `wait`, until cancelled; without `waits_first` also at once.

    An error is logged under the event name `failure` and ends neither the loop nor the process: the next round tries
    again.
    """
    if waits_first:
        await wait()
    while True:
        try:
            await work()
        except StoreUnavailable as error:
            log.warning(failure, reason=str(error))
        except Exception:
            log.exception(failure)
        await wait()
