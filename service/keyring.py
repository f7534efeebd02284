"""Who is calling: API keys, checked against Postgres and remembered for a moment."""

import time
from dataclasses import dataclass
from uuid import UUID

from gadfly import store
from gadfly.api_keys import digest
from gadfly.errors import NotAllowed, StoreUnavailable
from gadfly.records import Key, Tier, now
from gadfly.settings import is_loopback
from gadfly.store.database import Database

_FRESH_S = 5.0  # a revoked key works this much longer at most, while Postgres answers
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request comes from. `scope` narrows what it may read: a key's own rows, or None for everything."""

    key_id: UUID | None
    tier: Tier

    @property
    def scope(self) -> UUID | None:
        return None if self.tier is Tier.ADMIN else self.key_id


LOCAL_ADMIN = Caller(key_id=None, tier=Tier.ADMIN)
"""The caller of a service on loopback that has no keys: whoever is on this machine owns it."""


class Keyring:
    """Authenticates secrets.

    Args:
        open_without_keys: let everybody in as long as no key has ever been made (a service on loopback).
    """

    def __init__(self, database: Database, *, open_without_keys: bool) -> None:
        self._database = database
        self._open_without_keys = open_without_keys
        self._known: dict[bytes, tuple[float, Key]] = {}
        self._unknown: dict[bytes, float] = {}
        self._any: tuple[float, bool] | None = None

    async def authenticate(self, secret: str | None, *, host: str | None) -> Caller:
        """Who sends this secret, to the service under the name `host`.

        Raises:
            NotAllowed: no key where one is needed, or one that is unknown, expired or revoked.
            StoreUnavailable: the database is away and this key has not been seen before.
        """
        if secret is None:
            if not self._open_without_keys or await self._has_keys():
                raise NotAllowed("this service needs a key: send `Authorization: Bearer KEY`")
            if host is not None and not is_loopback(host):
                # A page in a browser here can give its own name this machine's address, and then read what it gets.
                raise NotAllowed(f"without keys this service answers to localhost and 127.0.0.1, not to {host!r}")
            return LOCAL_ADMIN
        key = await self._find(digest(secret))
        if key is None or not key.is_active(now()):
            raise NotAllowed("this key is unknown, expired or revoked")
        return Caller(key_id=key.id, tier=key.tier)

    async def start(self) -> None:
        """Ask once whether there are keys, so that callers are still let in when Postgres goes away."""
        await self._has_keys()

    async def _has_keys(self) -> bool:
        fresh = self._any is not None and time.monotonic() - self._any[0] < _FRESH_S
        if not fresh:
            try:
                async with self._database.session() as session:
                    self._any = (time.monotonic(), await store.keys.has_keys(session))
            except StoreUnavailable:
                if self._any is None:
                    raise
        assert self._any is not None
        return self._any[1]

    async def _find(self, key_digest: bytes) -> Key | None:
        remembered = self._known.get(key_digest)
        if remembered is not None and time.monotonic() - remembered[0] < _FRESH_S:
            return remembered[1]
        if time.monotonic() - self._unknown.get(key_digest, -_FRESH_S) < _FRESH_S:
            return None
        try:
            async with self._database.session() as session:
                key = await store.keys.find_key(session, key_digest)
        except StoreUnavailable:
            if remembered is None:
                raise
            return remembered[1]
        if key is None:
            self._known.pop(key_digest, None)
            if len(self._unknown) >= _REMEMBERED:
                self._unknown.clear()  # a flood of made-up keys must not fill the memory, nor push out real ones
            self._unknown[key_digest] = time.monotonic()
        else:
            self._known[key_digest] = (time.monotonic(), key)
        return key
