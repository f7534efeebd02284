"""HTTP to one engine or actor, over TCP, TLS with a deployment's own authorities, or a Unix socket.

Addresses are reached with aiohttp: it takes an idle connection without looking at the others, so that a request costs
the same with one caller and with a thousand. A transport of httpx takes its place for an engine in the same process,
and for faults in tests. Both raise the same errors.
"""

import asyncio
import re
import ssl
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import aiohttp
import httpx
import orjson
from yarl import URL

from gadfly import tracing
from gadfly.access import Access
from gadfly.errors import BadSettings

_UNTRUSTED = re.compile(r"certificate verify failed: (.*?)(?: \(_ssl|$)")
_KEEP_ALIVE_S = 60.0  # shorter than an engine's, so that it never closes a connection that a request was just sent on
_JSON = {"content-type": "application/json"}


class NotConnected(Exception):
    """No connection: the request was not sent."""


class ConnectTimeout(NotConnected):
    """No connection within the limit."""


class Silence(Exception):
    """No byte of the answer within the limit since the last one."""


class Broken(Exception):
    """The connection failed after the request was sent; the message names the kind of failure."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A complete answer. The names of headers are in lower case."""

    status: int
    content: bytes
    headers: Mapping[str, str]

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace")

    def json(self) -> Any:
        """Raises ValueError where it is not JSON."""
        return orjson.loads(self.content)


class Link(Protocol):
    """The connections to one address. A path may also be a whole URL.

    Raises:
        NotConnected, Silence, Broken: see there. Also in the block of a stream.
    """

    async def get(self, path: str, *, silence_s: float) -> HttpResponse:
        """The answer to a GET request, `silence_s` after its last byte at the latest."""

    async def post(self, path: str, body: Mapping[str, Any], *, silence_s: float | None = None) -> HttpResponse:
        """The answer to a body of JSON."""

    async def put(self, path: str, file: Path, *, headers: Mapping[str, str]) -> HttpResponse:
        """The answer to the content of a file.

        Raises:
            OSError: the file cannot be read.
        """

    def stream(self, path: str, body: Mapping[str, Any]) -> AbstractAsyncContextManager[httpx.Response]:
        """The answer to a body of JSON, to be read in the block; leaving early ends the request."""

    async def aclose(self) -> None:
        """Close every connection."""


def open_link(
    url: str,
    *,
    access: Access,
    silence_s: float,
    connect_s: float,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Link:
    """The connections to an address, which may be a Unix socket (`unix:///path`), or a transport of httpx in its place.

    A key is sent in place of a name and password in the address.

    Raises:
        BadSettings: the file with certificates cannot be used.
    """
    if transport is not None:
        return _Httpx(url, transport=transport, key=access.key, silence_s=silence_s, connect_s=connect_s)
    return _Aiohttp(
        url, key=access.key, certificates=_certificates(access.ca_file), silence_s=silence_s, connect_s=connect_s
    )


class _Aiohttp:
    def __init__(
        self, url: str, *, key: str, certificates: ssl.SSLContext | bool, silence_s: float, connect_s: float
    ) -> None:
        self._socket = url.removeprefix("unix://") if url.startswith("unix://") else None
        base = URL("http://engine" if self._socket else url)
        self._headers = _authorization(key, base)
        self._base = str(base.with_user(None)).rstrip("/")
        self._certificates = certificates
        self._silence_s = silence_s
        self._connect_s = connect_s
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[str, URL] = {}
        self._timeouts: dict[float, aiohttp.ClientTimeout] = {}

    async def get(self, path: str, *, silence_s: float) -> HttpResponse:
        return await self._ask("GET", path, None, silence_s)

    async def post(self, path: str, body: Mapping[str, Any], *, silence_s: float | None = None) -> HttpResponse:
        return await self._ask("POST", path, body, silence_s or self._silence_s)

    async def put(self, path: str, file: Path, *, headers: Mapping[str, str]) -> HttpResponse:
        with await asyncio.to_thread(file.open, "rb") as content, _aiohttp_errors():
            async with self._request("PUT", path, content, self._silence_s, headers=headers) as response:
                return HttpResponse(response.status, await response.read(), _lower(response.headers))

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, silence_s: float) -> HttpResponse:
        content = None if body is None else orjson.dumps(body)
        with _aiohttp_errors():
            async with self._request(method, path, content, silence_s) as response:
                return HttpResponse(response.status, await response.read(), _lower(response.headers))

    @asynccontextmanager
    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[httpx.Response]:
        with _aiohttp_errors():
            async with self._request("POST", path, orjson.dumps(body), self._silence_s) as response:
                yield httpx.Response(
                    response.status, headers=_lower(response.headers), content=_pieces(response.content)
                )

    def _request(
        self,
        method: str,
        path: str,
        content: bytes | BinaryIO | None,
        silence_s: float,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if self._session is None:  # it belongs to the running event loop
            connector: aiohttp.BaseConnector
            if self._socket:
                connector = aiohttp.UnixConnector(self._socket, limit=0, keepalive_timeout=_KEEP_ALIVE_S)
            else:
                connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S, ssl=self._certificates)
            self._session = aiohttp.ClientSession(
                connector=connector, headers=self._headers, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session.request(
            method,
            self._url(path),
            data=content,
            headers=None if content is None else headers or _headers(),
            allow_redirects=False,
            timeout=self._timeout(silence_s),
        )

    def _url(self, path: str) -> URL:
        known = self._urls.get(path)
        if known is None:
            known = URL(path if path.startswith("http") else self._base + path).with_user(None)
            if "?" not in path:  # one with a query is not asked for again
                self._urls[path] = known
        return known

    def _timeout(self, silence_s: float) -> aiohttp.ClientTimeout:
        known = self._timeouts.get(silence_s)
        if known is None:
            known = aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s, sock_read=silence_s)
            self._timeouts[silence_s] = known
        return known

    async def aclose(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()


async def _pieces(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    async for piece in content.iter_any():
        yield piece


def _headers() -> dict[str, str]:
    """Those of a body of JSON, and those that continue the trace in the process that answers."""
    return {**_JSON, **tracing.headers()} if tracing.is_on() else _JSON


def _authorization(key: str, url: URL) -> dict[str, str]:
    if key:
        return {"authorization": f"Bearer {key}"}
    if url.user is None:
        return {}
    account = f"{url.user}:{url.password or ''}"
    return {"authorization": f"Basic {b64encode(account.encode()).decode()}"}


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    # aiohttp has decoded the body already.
    return {name.lower(): value for name, value in headers.items() if name.lower() != "content-encoding"}


@contextmanager
def _aiohttp_errors() -> Generator[None]:
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise ConnectTimeout(str(error)) from error
    except aiohttp.ClientConnectorError as error:
        raise NotConnected(str(error)) from error
    except aiohttp.ServerTimeoutError as error:
        raise Silence(str(error)) from error
    except aiohttp.ClientError as error:
        raise Broken(type(error).__name__) from error


class _Httpx:
    def __init__(
        self, url: str, *, transport: httpx.AsyncBaseTransport, key: str, silence_s: float, connect_s: float
    ) -> None:
        self._connect_s = connect_s
        self._silence_s = silence_s
        self._client = httpx.AsyncClient(
            transport=transport,
            base_url="http://engine" if url.startswith("unix://") else url,
            auth=_bearer(key),
            timeout=httpx.Timeout(silence_s, connect=connect_s),
        )

    async def get(self, path: str, *, silence_s: float) -> HttpResponse:
        with _httpx_errors():
            return _answer(await self._client.get(path, timeout=httpx.Timeout(silence_s, connect=self._connect_s)))

    async def post(self, path: str, body: Mapping[str, Any], *, silence_s: float | None = None) -> HttpResponse:
        timeout = httpx.Timeout(silence_s or self._silence_s, connect=self._connect_s)
        with _httpx_errors():
            return _answer(
                await self._client.post(path, content=orjson.dumps(body), headers=_headers(), timeout=timeout)
            )

    async def put(self, path: str, file: Path, *, headers: Mapping[str, str]) -> HttpResponse:
        content = await asyncio.to_thread(file.read_bytes)
        with _httpx_errors():
            return _answer(await self._client.put(path, content=content, headers=dict(headers)))

    @asynccontextmanager
    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[httpx.Response]:
        with _httpx_errors():
            async with self._client.stream("POST", path, content=orjson.dumps(body), headers=_headers()) as response:
                yield response

    async def aclose(self) -> None:
        await self._client.aclose()


async def read_answer(response: httpx.Response) -> HttpResponse:
    """The whole answer of a stream."""
    await response.aread()
    return _answer(response)


def _answer(response: httpx.Response) -> HttpResponse:
    return HttpResponse(response.status_code, response.content, response.headers)


def _bearer(key: str) -> Callable[[httpx.Request], httpx.Request] | None:
    def authorise(request: httpx.Request) -> httpx.Request:
        request.headers["authorization"] = f"Bearer {key}"
        return request

    return authorise if key else None


@contextmanager
def _httpx_errors() -> Generator[None]:
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise ConnectTimeout(str(error)) from error
    except httpx.ConnectError as error:
        raise NotConnected(str(error)) from error
    except httpx.TimeoutException as error:
        raise Silence(str(error)) from error
    except httpx.TransportError as error:
        raise Broken(type(error).__name__) from error


def _certificates(ca_file: Path | None) -> ssl.SSLContext | bool:
    if ca_file is None:
        return True
    context = httpx.create_ssl_context()
    try:
        context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as error:
        raise BadSettings(f"GADFLY_CA_FILE: {ca_file} cannot be read as certificates in PEM: {error}") from None
    return context


def untrusted_certificate(error: NotConnected, url: str) -> str:
    """That a certificate is not trusted, as a sentence without a full stop; empty for other failures to connect."""
    found = _UNTRUSTED.search(str(error))
    if found is None:
        return ""
    return f"the certificate of {url} is not trusted ({found[1]}): set GADFLY_CA_FILE to the file of its authority"
