"""Health probes of the parts of a deployment, with a short timeout. A missing answer is a value, not an error."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

LIMIT_S = 3.0
_TOO_LATE = "it does not answer in time"


@dataclass(frozen=True, slots=True)
class ProbeResponse:
    """The answer of an address."""

    status: int | None  # HTTP status, None without an answer
    body: Any  # parsed JSON, None for other content
    problem: str  # empty for status 200

    @property
    def is_ok(self) -> bool:
        return self.status == 200

    @property
    def is_late(self) -> bool:
        """Whether the connection was taken and nothing answered: a frozen program, and not one that stops or starts."""
        return self.problem == _TOO_LATE


async def get(url: str, *, limit_s: float = LIMIT_S, key: str | None = None) -> ProbeResponse:
    """GET `url`, which may be `unix:///path/to/socket` followed by `:/path`."""
    url, uds = _unix(url)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        transport = httpx.AsyncHTTPTransport(uds=uds)
        async with httpx.AsyncClient(transport=transport, timeout=limit_s, headers=headers) as client:
            response = await client.get(url)
    except httpx.HTTPError as error:
        return ProbeResponse(None, None, _reason(error))
    try:
        body = response.json()
    except ValueError:
        body = None
    return ProbeResponse(
        response.status_code, body, "" if response.status_code == 200 else f"it answers {response.status_code}"
    )


async def accepts_connections(url: str) -> bool:
    """Whether Postgres accepts connections to this database."""
    import psycopg

    try:
        connection = await psycopg.AsyncConnection.connect(
            url.replace("postgresql+psycopg://", "postgresql://", 1), connect_timeout=3
        )
    except psycopg.Error:
        return False
    await connection.close()
    return True


def engine_endpoint(engine_url: str, path: str) -> str:
    """The address of `path` on an engine; `engine_url` as in `GADFLY_ENGINE_URLS`."""
    return f"{engine_url}:{path}" if engine_url.startswith("unix://") else engine_url.rstrip("/") + path


def why_not_ready(body: Any) -> str:
    """The reasons in an answer of /readyz, as one line."""
    if not isinstance(body, dict):
        return "it gives no reason"
    reasons = [
        f"{name}: {check.get('detail', 'not ok')}"
        for name, check in body.items()
        if isinstance(check, dict) and not check.get("ok")
    ]
    return "; ".join(reasons) or str(body.get("detail") or "it is still starting")


def _unix(url: str) -> tuple[str, str | None]:
    if not url.startswith("unix://"):
        return url, None
    socket, _, path = url.removeprefix("unix://").rpartition(":")
    return f"http://engine{path}", str(Path(socket))


def _reason(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.ConnectError):
        return "nothing listens there"
    if isinstance(error, httpx.TimeoutException):
        return _TOO_LATE
    return str(error) or type(error).__name__
