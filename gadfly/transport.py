"""HTTP transports for engines and actors: Unix sockets, and TLS with a deployment's own authorities."""

import re
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx

from gadfly.errors import BadSettings

_UNTRUSTED = re.compile(r"certificate verify failed: (.*?)(?: \(_ssl|$)")
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=60)


def open_transport(url: str, *, ca_file: Path | None) -> httpx.AsyncHTTPTransport:
    """A transport for an address, which may be a Unix socket (`unix:///path`).

    Raises:
        BadSettings: the file with certificates cannot be used.
    """
    socket = url.removeprefix("unix://") if url.startswith("unix://") else None
    return httpx.AsyncHTTPTransport(uds=socket, limits=_LIMITS, verify=_certificates(ca_file))


def _certificates(ca_file: Path | None) -> ssl.SSLContext | bool:
    if ca_file is None:
        return True
    context = httpx.create_ssl_context()
    try:
        context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as error:
        raise BadSettings(f"GADFLY_CA_FILE: {ca_file} cannot be read as certificates in PEM: {error}") from None
    return context


def bearer(key: str) -> Callable[[httpx.Request], httpx.Request] | None:
    """Authentication by an API key, which goes before a name and password in the address; None without a key."""

    def authorise(request: httpx.Request) -> httpx.Request:
        request.headers["authorization"] = f"Bearer {key}"
        return request

    return authorise if key else None


def untrusted_certificate(error: httpx.ConnectError, url: str) -> str:
    """That a certificate is not trusted, as a sentence without a full stop; empty for other failures to connect."""
    found = _UNTRUSTED.search(str(error))
    if found is None:
        return ""
    return f"the certificate of {url} is not trusted ({found[1]}): set GADFLY_CA_FILE to the file of its authority"
