"""Sessions of browsers: a page signs in with a key once and then sends a cookie that no script can read.

The cookie's secret is stored as a digest, and a session ends with its key. Requests that change something need a token
besides the cookie (`csrf_token`), which pages of other origins cannot read.
"""

import hmac
import secrets
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from gadfly import store
from gadfly.api_keys import digest
from gadfly.errors import NotAllowed, StoreUnavailable
from gadfly.records import BrowserSession, Key, now
from gadfly.service.answering.single_flight import SingleFlight
from gadfly.service.keyring import Caller, caller_with
from gadfly.service.strangers import Strangers
from gadfly.store.database import Database

COOKIE = "gadfly_session"
CSRF_HEADER = "X-CSRF-Token"
LIFETIME = timedelta(hours=12)

_FRESH_S = 5.0  # a session that another replica ended, or whose key was revoked, works at most this much longer
_MOST_KNOWN = 10_000


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A browser's session, as its cookie proves it."""

    caller: Caller
    csrf_token: str
    expires_at: datetime


class Sessions:
    """Opens, finds and ends sessions."""

    def __init__(self, database: Database, strangers: Strangers) -> None:
        self._database = database
        self._strangers = strangers
        self._known: dict[bytes, tuple[float, BrowserSession | None]] = {}
        self._reads: SingleFlight[BrowserSession | None] = SingleFlight()

    async def open(self, key: Key) -> str:
        """Start a session of a key; return the secret for the cookie."""
        secret = secrets.token_urlsafe(32)
        moment = now()
        ends_at = min(filter(None, (moment + LIFETIME, key.expires_at)))
        opened = BrowserSession(key=key, created_at=moment, expires_at=ends_at)
        async with self._database.session() as session:
            await store.sessions.insert_session(session, opened, digest(secret))
        self._known[digest(secret)] = (time.monotonic(), opened)
        return secret

    async def find(self, secret: str, *, address: str | None) -> SignedIn | None:
        """The session with this secret, which an address sent; None: it is unknown, has expired, or its key has.

        Raises:
            TooBusy: this session is not known here, and the address has sent too many unknown ones or unknown keys.
            StoreUnavailable: Postgres is unavailable, and the session was not read in the last seconds.
        """
        secret_digest = digest(secret)
        is_new = secret_digest not in self._known
        if is_new:
            self._strangers.admit(address)
        opened = await self._find(secret_digest)
        if opened is None and is_new:  # a browser that repeats an old cookie is not guessing
            self._strangers.note(address)
        if opened is None or not opened.is_active(now()):
            return None
        caller = caller_with(opened.key)
        return SignedIn(caller, csrf_token(secret), opened.expires_at)

    async def close(self, secret: str) -> None:
        """End a session."""
        self._known.pop(digest(secret), None)
        async with self._database.session() as session:
            await store.sessions.delete_session(session, digest(secret))

    async def _find(self, secret_digest: bytes) -> BrowserSession | None:
        known = self._known.get(secret_digest)
        if known is not None and time.monotonic() - known[0] < _FRESH_S:
            return known[1]
        try:
            return await self._reads.run(secret_digest, lambda: self._read(secret_digest))
        except StoreUnavailable:
            if known is None:
                raise
            return known[1]

    async def _read(self, secret_digest: bytes) -> BrowserSession | None:
        async with self._database.session() as session:
            found = await store.sessions.find_session(session, secret_digest)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()  # invented cookies must not fill the memory
        self._known[secret_digest] = (time.monotonic(), found)
        return found


def csrf_token(secret: str) -> str:
    """The token that a session's page sends with each change; it does not reveal the secret."""
    return hmac.digest(secret.encode(errors="surrogatepass"), b"csrf", "sha256").hex()


def require_csrf_token(sent: str | None, expected: str) -> None:
    """Refuse a change that another page may have had the browser send.

    Raises:
        NotAllowed: the token is missing or another session's.
    """
    if sent is None or not hmac.compare_digest(sent.encode(), expected.encode()):
        raise NotAllowed(
            f"a change by cookie needs the header {CSRF_HEADER} with the csrf_token of GET /session",
            authenticated=True,
        )
