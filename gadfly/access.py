"""What a client needs besides the address of an engine or an actor: a key, a model name, certificates."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from gadfly.errors import BadSettings

_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=60)


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """An empty key sends none; an empty model is read from the engine. `ca_file` holds certificates in PEM."""

    key: str = field(default="", repr=False)
    model: str = ""
    ca_file: Path | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    def transport(self, url: str) -> httpx.AsyncHTTPTransport:
        """A transport for an address, which may be a Unix socket (`unix:///path`).

        Raises:
            BadSettings: the file with certificates cannot be used.
        """
        socket = url.removeprefix("unix://") if url.startswith("unix://") else None
        return httpx.AsyncHTTPTransport(uds=socket, limits=_LIMITS, verify=self._certificates())

    def _certificates(self) -> ssl.SSLContext | bool:
        if self.ca_file is None:
            return True
        context = httpx.create_ssl_context()
        try:
            context.load_verify_locations(self.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise BadSettings(
                f"GADFLY_CA_FILE: {self.ca_file} cannot be read as certificates in PEM: {error}"
            ) from None
        return context


def why_not_connected(error: httpx.ConnectError, url: str) -> str:
    """The reason why a connection failed, as one sentence without a full stop."""
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.partition("certificate verify failed: ")[2].rpartition(" (")[0] or "it cannot be verified"
        return f"the certificate of {url} is not trusted ({reason}): set GADFLY_CA_FILE to the file of its authority"
    if "[SSL" in text:
        return f"{url} does not speak TLS as expected ({text})"
    return ""
