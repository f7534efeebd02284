"""API keys: made here, shown once, stored only as a digest.

A secret is 32 random bytes, which cannot be guessed by trial, so a fast hash is sound. (Slow hashes are for passwords,
which people choose.) The digest is not salted, so that an index finds the key.
"""

import hashlib
import secrets
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.records import Key, Tier, new_id, now
from gadfly.store.keys import insert_key

_PREFIX = "gf_"
_HINT_CHARS = len(_PREFIX) + 5


def digest(secret: str) -> bytes:
    """The stored form of a secret: its SHA-256, 32 bytes."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()


async def issue_key(
    session: AsyncSession,
    *,
    name: str,
    tier: Tier,
    expires_at: datetime | None = None,
    tasks: tuple[str, ...] | None = None,
) -> tuple[Key, str]:
    """Make a key, for some tasks or (None) for all; return it with its secret, which cannot be read again."""
    secret = _PREFIX + secrets.token_urlsafe(32)
    key = Key(
        id=new_id(),
        name=name,
        tier=tier,
        hint=secret[:_HINT_CHARS],
        created_at=now(),
        expires_at=expires_at,
        revoked_at=None,
        tasks=tasks,
    )
    await insert_key(session, key, digest(secret))
    return key, secret
