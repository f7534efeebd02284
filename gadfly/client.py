"""The Python client of the HTTP API. The command line uses it, and other programs can import it.

Example:
    >>> from gadfly.client import Client
    >>> with Client("http://127.0.0.1:8400", key="gf_...") as client:
    ...     result = client.post("/critique", {"question": "What is 1 + 1?", "response": "3"})
    >>> result["verdict"]
    'incorrect'
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
from httpx_sse import EventSource

from gadfly.errors import GadflyError
from gadfly.settings import Settings, is_loopback

_TIMEOUT_S = 300.0  # a generation on a CPU takes minutes
_CONNECT_S = 5.0
_SILENCE_S = 45.0  # three of the service's heartbeats
_UNAVAILABLE = frozenset({502, 503, 504})


class ServiceError(GadflyError):
    """The service refused the request, failed, or cannot be reached."""


class ServiceUnavailable(ServiceError):
    """The service, or a part it depends on, cannot be reached now. The same call may succeed later."""


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event. `id` is 0 where the service sends none."""

    id: int
    name: str
    data: dict[str, Any]


class Client:
    """A blocking client of one service. Use it as a context manager, or call `close`.

    Args:
        url: address of the service, such as `http://127.0.0.1:8400`.
        key: API key; None for a service without keys.
        timeout_s: longest wait for one answer, in seconds.
        transport: replaces the network, for tests.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = _TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = url
        self._client = httpx.Client(
            base_url=url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout_s, connect=_CONNECT_S),
            transport=transport,
            trust_env=not is_loopback(httpx.URL(url).host),  # 127.0.0.1 means another machine to a proxy
        )

    @classmethod
    def from_settings(
        cls, settings: Settings, *, url: str | None = None, transport: httpx.BaseTransport | None = None
    ) -> Self:
        """A client with the address, the key and the timeout of these settings; `url` replaces the address."""
        key = settings.key.get_secret_value() if settings.key else None
        return cls(url or settings.service_url, key, timeout_s=settings.engine_timeout_s, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """The parsed JSON of a GET request.

        Raises:
            ServiceUnavailable: the service or a part it depends on cannot be reached.
            ServiceError: the service refused the request; the message gives its reason.
        """
        try:
            response = self._client.get(path, params=params)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        return self._parse(response)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The parsed JSON of a POST request with a JSON body.

        Raises:
            ServiceUnavailable: the service or a part it depends on cannot be reached.
            ServiceError: the service refused the request; the message gives its reason.
        """
        try:
            response = self._client.post(path, json=body)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        result: dict[str, Any] = self._parse(response)
        return result

    def delete(self, path: str) -> None:
        """Send a DELETE request. Raises as `get`."""
        try:
            response = self._client.delete(path)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if response.status_code != 204:
            self._parse(response)

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and data of each server-sent event of a POST request with `"stream": true`.

        Raises:
            ServiceUnavailable: as `post`, and when the connection is lost before the stream ends.
            ServiceError: as `post`.
        """
        try:
            with self._client.stream("POST", path, json={**body, "stream": True}) as response:
                if response.status_code != 200:
                    response.read()
                    self._parse(response)
                for event in _read_events(response):
                    yield event.name, event.data
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def follow(self, path: str, *, after: int) -> Iterator[Event]:
        """The events of a stream that may last for hours, from the first event after the id `after`.

        Raises:
            ServiceUnavailable: the service cannot be reached, or the connection was lost. Call `follow` again with the
                id of the last event to continue.
            ServiceError: the service refused the request.
        """
        timeout = httpx.Timeout(_SILENCE_S, connect=_CONNECT_S)
        try:
            with self._client.stream("GET", path, headers={"last-event-id": str(after)}, timeout=timeout) as response:
                if response.status_code == 204:
                    return
                if response.status_code != 200:
                    response.read()
                    self._parse(response)
                yield from _read_events(response)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _parse(self, response: httpx.Response) -> Any:
        try:
            document = response.json()
        except ValueError:
            document = None
        if response.is_success and document is not None:
            return document
        kind = ServiceUnavailable if response.status_code in _UNAVAILABLE else ServiceError
        if not isinstance(document, dict) or "title" not in document:
            raise kind(
                f"{self._url} answered {response.status_code} and is not a Gadfly service: check --url or GADFLY_URL."
            )
        raise kind(problem_text(document, retry_after=response.headers.get("retry-after")))

    def _unreachable(self, error: httpx.HTTPError) -> ServiceUnavailable:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return ServiceUnavailable(
                f"No service answers at {self._url}: start one with `gadfly up`, or give its address with --url."
            )
        if isinstance(error, httpx.TimeoutException):
            return ServiceUnavailable(f"{self._url} did not answer in time.")
        return ServiceUnavailable(f"The connection to {self._url} was lost before the answer was complete.")


def problem_text(document: Mapping[str, Any], *, retry_after: str | None = None) -> str:
    """A problem document (RFC 9457) as one sentence; `retry_after` is the header of that name, in seconds."""
    text = str(document.get("detail") or document.get("title"))
    if document.get("status") in (401, 403):
        text += " (the command line sends the key in --key or GADFLY_KEY)"
    if retry_after:
        text += f" (try again in {retry_after} s)"
    return f"{document.get('title')}: {text}"


def _read_events(response: httpx.Response) -> Iterator[Event]:
    for event in EventSource(response).iter_sse():
        if event.data:  # the heartbeat is a comment, which arrives as an event without data
            yield Event(int(event.id or 0), event.event, json.loads(event.data))
