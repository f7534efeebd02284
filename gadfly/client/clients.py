"""`Client` and `AsyncClient`: they send the requests that `gadfly.client.calls` describes.

A request that fails because the service is not available is sent again, up to `retries` times, if that is safe: always
where the service refused it or could not be reached, and otherwise only a request that is repeatable. The service
executes a request with the same request id once, so a repeated `critique` does no work twice.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

import httpx
from httpx_sse import EventSource, ServerSentEvent
from pydantic import ValidationError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from gadfly.client import calls
from gadfly.client.calls import Call, Event, ListPage, StreamCall, StreamedRunEvent, next_page
from gadfly.client.errors import (
    Resend,
    ServiceError,
    ServiceUnavailable,
    problem_of,
    problem_text,
    refusal,
    unreachable,
)
from gadfly.client.methods import Api, AsyncSender, Sender
from gadfly.settings import Settings, is_loopback
from gadfly.training import EventKind, RunStatus

T = TypeVar("T")

TIMEOUT_S = 300.0  # a generation on a CPU takes minutes
RETRIES = 3

_CONNECT_S = 5.0
_LONGEST_WAIT_S = 30.0  # before a retry
_FOLLOW_EVERY_S = 1.0
_FOLLOW_PATIENCE_S = 600.0  # enough for a restart of the service


class Client(Api, Sender):
    """A blocking client of one service. Use it as a context manager, or call `close`.

    Args:
        url: address of the service, such as `http://127.0.0.1:8400`.
        key: API key; None for a service without keys.
        timeout_s: longest wait for one answer, in seconds; a request that takes longer is not repeated.
        retries: how often a request is sent again while the service is not available; 0 for never.
        transport: replaces the network, for tests.

    All methods raise `ServiceUnavailable` where the service, or a part it depends on, cannot be reached, and
    `ServiceError` where it refuses the request; both carry the problem document.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url, self._retries = url, retries
        self._http = httpx.Client(**_options(url, key, timeout_s), transport=transport)

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        *,
        url: str | None = None,
        retries: int = 0,
        transport: httpx.BaseTransport | None = None,
    ) -> Self:
        """A client with the address, the key and the timeout of these settings; `url` replaces the address."""
        key = settings.key.get_secret_value() if settings.key else None
        timeout_s = settings.engine_timeout_s
        return cls(url or settings.service_url, key, timeout_s=timeout_s, retries=retries, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, call: Call[T]) -> T:
        """The answer of a request."""
        return _read(call.read, self._body(call), self._url)

    def document(self, call: Call[Any]) -> Any:
        """The answer of a request as the parsed JSON that the service sent, with fields of later releases."""
        return _read(json.loads, self._body(call), self._url)

    def pages(self, call: Call[ListPage[T]]) -> Iterator[T]:
        """The items of this page of a list and of all that follow it."""
        while True:
            page = self.send(call)
            yield from page.items
            if page.next_cursor is None:
                return
            call = next_page(call, page.next_cursor)

    def events(self, call: StreamCall[Any]) -> Iterator[Event]:
        """The server-sent events of a request."""
        retrying = Retrying(**_retrying(self._retries, is_repeatable=call.is_repeatable))
        with self._lost(), closing(retrying(self._open, call)) as response:
            if response.status_code == 204:
                return
            for sent in EventSource(response).iter_sse():
                if (event := _event(sent)) is not None:
                    yield event

    def stream(self, call: StreamCall[T]) -> Iterator[T]:
        """The events of a request, as values. A lost connection is repeated before the first event only."""
        for event in self.events(call):
            yield _value(call, event, self._url)
            if event.name == "result":
                return
        raise _ended(self._url)

    def follow(
        self,
        run_id: UUID | str,
        *,
        after: int = 0,
        on_unavailable: Callable[[ServiceUnavailable], None] | None = None,
    ) -> Iterator[StreamedRunEvent]:
        """Every event of a training run until it is over, each once, also when the connection is lost in between.

        Args:
            run_id: the run.
            after: id of the last event that is known already.
            on_unavailable: called once per outage; an outage of ten minutes is raised.
        """
        for event in self.follow_events(run_id, after=after, on_unavailable=on_unavailable):
            yield _read(calls.run_event, event, self._url)

    def follow_events(
        self,
        run_id: UUID | str,
        *,
        after: int = 0,
        on_unavailable: Callable[[ServiceUnavailable], None] | None = None,
    ) -> Iterator[Event]:
        """The same as `follow`, as server-sent events."""
        following = _Following(run_id, after=after, on_unavailable=on_unavailable)
        while True:
            try:
                for event in self.events(following.call()):
                    following.received(event)
                    yield event
                    if following.is_over:
                        return
                if following.asks and following.is_status_over(self.document(calls.run(run_id))):
                    return
            except ServiceUnavailable as error:
                following.lost(error)
            time.sleep(_FOLLOW_EVERY_S)

    def _body(self, call: Call[Any]) -> bytes:
        return Retrying(**_retrying(self._retries, is_repeatable=call.is_repeatable))(self._once, call)

    def _once(self, call: Call[Any]) -> bytes:
        with self._lost():
            response = self._http.request(call.method, call.path, params=call.params, json=call.body)
        return _content(response, call, self._url)

    def _open(self, call: StreamCall[Any]) -> httpx.Response:
        request = self._http.build_request(**_stream_options(call))
        with self._lost():
            response = self._http.send(request, stream=True)
            if not response.is_success:
                response.read()
                raise refusal(response, url=self._url)
        return response

    @contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise unreachable(error, url=self._url) from None


class AsyncClient(Api, AsyncSender):
    """An asynchronous client of one service. Use it as an asynchronous context manager, or await `aclose`.

    Its arguments, methods and errors are those of `Client`; methods are awaited, and iterators are asynchronous.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url, self._retries = url, retries
        self._http = httpx.AsyncClient(**_options(url, key, timeout_s), transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """The answer of a request."""
        return _read(call.read, await self._body(call), self._url)

    async def document(self, call: Call[Any]) -> Any:
        """The answer of a request as the parsed JSON that the service sent, with fields of later releases."""
        return _read(json.loads, await self._body(call), self._url)

    async def pages(self, call: Call[ListPage[T]]) -> AsyncIterator[T]:
        """The items of this page of a list and of all that follow it."""
        while True:
            page = await self.send(call)
            for item in page.items:
                yield item
            if page.next_cursor is None:
                return
            call = next_page(call, page.next_cursor)

    async def events(self, call: StreamCall[Any]) -> AsyncGenerator[Event]:
        """The server-sent events of a request."""
        retrying = AsyncRetrying(**_retrying(self._retries, is_repeatable=call.is_repeatable))
        async with self._lost():
            response: httpx.Response = await retrying(self._open, call)
            async with aclosing(response):
                if response.status_code == 204:
                    return
                async for sent in EventSource(response).aiter_sse():
                    if (event := _event(sent)) is not None:
                        yield event

    async def stream(self, call: StreamCall[T]) -> AsyncIterator[T]:
        """The events of a request, as values. A lost connection is repeated before the first event only."""
        async with aclosing(self.events(call)) as events:
            async for event in events:
                yield _value(call, event, self._url)
                if event.name == "result":
                    return
        raise _ended(self._url)

    async def follow(
        self,
        run_id: UUID | str,
        *,
        after: int = 0,
        on_unavailable: Callable[[ServiceUnavailable], None] | None = None,
    ) -> AsyncIterator[StreamedRunEvent]:
        """Every event of a training run until it is over; see `Client.follow`."""
        following = _Following(run_id, after=after, on_unavailable=on_unavailable)
        while True:
            try:
                async with aclosing(self.events(following.call())) as events:
                    async for event in events:
                        following.received(event)
                        yield _read(calls.run_event, event, self._url)
                        if following.is_over:
                            return
                if following.asks and following.is_status_over(await self.document(calls.run(run_id))):
                    return
            except ServiceUnavailable as error:
                following.lost(error)
            await asyncio.sleep(_FOLLOW_EVERY_S)

    async def _body(self, call: Call[Any]) -> bytes:
        return await AsyncRetrying(**_retrying(self._retries, is_repeatable=call.is_repeatable))(self._once, call)

    async def _once(self, call: Call[Any]) -> bytes:
        async with self._lost():
            response = await self._http.request(call.method, call.path, params=call.params, json=call.body)
        return _content(response, call, self._url)

    async def _open(self, call: StreamCall[Any]) -> httpx.Response:
        request = self._http.build_request(**_stream_options(call))
        async with self._lost():
            response = await self._http.send(request, stream=True)
            if not response.is_success:
                await response.aread()
                raise refusal(response, url=self._url)
        return response

    @asynccontextmanager
    async def _lost(self) -> AsyncIterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise unreachable(error, url=self._url) from None


class _Following:
    """The position in a run's events, across connections."""

    def __init__(
        self, run_id: UUID | str, *, after: int, on_unavailable: Callable[[ServiceUnavailable], None] | None
    ) -> None:
        self._run_id = run_id
        self._seen = after
        self._before = after
        self._is_new = True
        self._on_unavailable = on_unavailable
        self._unavailable_since: float | None = None
        self.is_over = False

    def call(self) -> StreamCall[StreamedRunEvent]:
        """The request for the events that are not known yet."""
        self._before = self._seen
        return calls.run_events(self._run_id, after=self._seen)

    def received(self, event: Event) -> None:
        self._seen, self._unavailable_since, self._is_new = event.id, None, False
        self.is_over = event.name == EventKind.STATUS and RunStatus(event.data["status"]).is_over

    @property
    def asks(self) -> bool:
        """Whether the run's status must be read, because the stream ended without an event."""
        return self._seen == self._before

    def is_status_over(self, run: dict[str, Any]) -> bool:
        return RunStatus(run["status"]).is_over

    def lost(self, error: ServiceUnavailable) -> None:
        """Wait for the service to return, or raise: at the first connection, and after ten minutes."""
        if self._is_new:
            raise error
        if self._unavailable_since is None:
            self._unavailable_since = time.monotonic()
            if self._on_unavailable is not None:
                self._on_unavailable(error)
        if time.monotonic() - self._unavailable_since > _FOLLOW_PATIENCE_S:
            raise error


def _options(url: str, key: str | None, timeout_s: float) -> dict[str, Any]:
    return {
        "base_url": url,
        "headers": {"authorization": f"Bearer {key}"} if key else {},
        "timeout": httpx.Timeout(timeout_s, connect=_CONNECT_S),
        "trust_env": not is_loopback(httpx.URL(url).host),  # 127.0.0.1 means another machine to a proxy
    }


def _stream_options(call: StreamCall[Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"method": call.method, "url": call.path}
    if call.body is not None:
        options["json"] = call.body
    if call.after is not None:
        options["headers"] = {"last-event-id": str(call.after)}
    if call.silence_s is not None:
        options["timeout"] = httpx.Timeout(call.silence_s, connect=_CONNECT_S)
    return options


def _retrying(retries: int, *, is_repeatable: bool) -> dict[str, Any]:
    """The arguments of tenacity's retrying: which errors, how often, and how long the waits are."""

    def may_repeat(error: BaseException) -> bool:
        if not isinstance(error, ServiceUnavailable):
            return False
        return error.resend is Resend.ALWAYS or (error.resend is Resend.IF_REPEATABLE and is_repeatable)

    return {
        "retry": retry_if_exception(may_repeat),
        "stop": stop_after_attempt(retries + 1),
        "wait": _wait_s,
        "reraise": True,
    }


_backoff = wait_random_exponential(multiplier=0.5, max=8)


def _wait_s(state: RetryCallState) -> float:
    """What the service asks for in Retry-After, else a random time that doubles with each attempt."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, ServiceError) and error.retry_after_s is not None:
        return min(error.retry_after_s, _LONGEST_WAIT_S)
    return _backoff(state)


def _content(response: httpx.Response, call: Call[Any], url: str) -> bytes:
    if response.is_success or response.status_code in call.accepts:
        return response.content
    raise refusal(response, url=url)


def _event(sent: ServerSentEvent) -> Event | None:
    """The event; None for a heartbeat, which is a comment and arrives as an event without data."""
    return Event(int(sent.id or 0), sent.event, json.loads(sent.data)) if sent.data else None


def _value(call: StreamCall[T], event: Event, url: str) -> T:
    if event.name == "error":
        problem = problem_of(event.data, headers={})
        raise ServiceError(problem_text(event.data), problem=problem)
    return _read(call.read, event, url)


A = TypeVar("A")


def _read(read: Callable[[A], T], answer: A, url: str) -> T:
    try:
        return read(answer)
    except (ValidationError, ValueError, KeyError):
        raise ServiceError(
            f"{url} gave an answer of another shape: it is not a Gadfly service (check --url or GADFLY_URL), or one of "
            "another release."
        ) from None


def _ended(url: str) -> ServiceUnavailable:
    return ServiceUnavailable(f"The stream of {url} ended without a result.", resend=Resend.IF_REPEATABLE)
