"""Time limits for the data that a connection sends. uvicorn itself has one only for the pause after a response."""

import asyncio
from enum import Enum, auto

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class _Waits(Enum):
    """What the connection is expected to send."""

    NEXT_REQUEST = auto()
    HEADERS = auto()
    BODY = auto()
    NOTHING = auto()  # a request is complete, and its response is not


class GuardedProtocol(HttpToolsProtocol):
    """Closes connections that stay silent, or that never complete their headers or their body."""

    header_limit_s = 20.0  # from the first byte of a request to the end of its headers
    silence_limit_s = 30.0  # within a body
    body_limit_s = 300.0  # from the end of the headers to the end of the body

    _body_ends_at = 0.0  # by the loop's clock

    _timer: asyncio.TimerHandle | None = None
    _waits = _Waits.NEXT_REQUEST

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._wait(_Waits.NEXT_REQUEST, self.timeout_keep_alive)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._waits is _Waits.BODY:
            self._wait_for_body()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait(_Waits.HEADERS, self.header_limit_s)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._body_ends_at = self.loop.time() + self.body_limit_s
        self._wait_for_body()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._wait(_Waits.NOTHING, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._waits is _Waits.NOTHING:
            self._wait(_Waits.NEXT_REQUEST, self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait(_Waits.NOTHING, None)
        super().connection_lost(exc)

    def _wait_for_body(self) -> None:
        self._wait(_Waits.BODY, min(self.silence_limit_s, max(0.0, self._body_ends_at - self.loop.time())))

    def _wait(self, waits: _Waits, limit_s: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._waits = waits
        self._timer = None if limit_s is None else self.loop.call_later(limit_s, self._on_silence)

    def _on_silence(self) -> None:
        if self._waits is _Waits.BODY and self.flow.read_paused:  # the app is slow, and not the sender
            self._wait(_Waits.BODY, self.silence_limit_s)
        elif not self.transport.is_closing():
            self.transport.close()
