"""API keys: made here, shown once, stored only as a digest.

A secret is 32 random bytes, which cannot be guessed by trial, so a fast hash is sound. (Slow hashes are for passwords,
which people choose.) The digest is not salted, so that an index finds the key.
"""

import hashlib
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from gadfly.errors import BadInput
from gadfly.records import Key, KeyLimits, Scope, Tier, new_id, now
from gadfly.store.keys import insert_key

_PREFIX = "gf_"
_HINT_CHARS = len(_PREFIX) + 5
_OF_OTHERS = re.compile(rf"{_PREFIX}[A-Za-z0-9_-]{{32,200}}")


def digest(secret: str) -> bytes:
    """The stored form of a secret: its SHA-256, 32 bytes."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()


def require_no_limits(limits: Mapping[str, int | None]) -> None:
    """Refuse limits of an admin key; None, which removes a limit, is accepted.

    Raises:
        BadInput: a limit is set.
    """
    if any(value is not None for value in limits.values()):
        raise BadInput(
            "an admin key has no limits: its holder could lift them, and it must work when there is trouble; limit "
            "keys of the tier caller"
        )


async def issue_key(
    session: AsyncSession,
    *,
    name: str,
    tier: Tier,
    expires_at: datetime | None = None,
    tasks: tuple[str, ...] | None = None,
    scopes: Collection[Scope] | None = None,
    limits: KeyLimits | None = None,
    secret: str | None = None,
) -> tuple[Key, str]:
    """Make a key, for some tasks or (None) for all; return it with its secret, which cannot be read again.

    `scopes`: None gives those of the tier. `limits`: None sets none. `secret`: one that was made elsewhere; None makes
    one.

    Raises:
        BadInput: an admin key is to be limited, a key that sees the rows of all tasks is to be limited to some, or the
            secret does not look like one of ours.
    """
    if secret is not None and not _OF_OTHERS.fullmatch(secret):
        raise BadInput(
            f"the secret of a key is {_PREFIX} and 32 to 200 letters, digits, - or _, chosen at random: "
            f'printf {_PREFIX}%s "$(openssl rand -hex 32)" makes one'
        )
    if tier is Tier.ADMIN and limits is not None:
        require_no_limits(asdict(limits))
    if tier is Tier.ADMIN and not (tasks is None and scopes is None):
        raise BadInput("an admin key sees and changes everything: only a key of the tier caller has tasks or scopes")
    if tasks is not None and scopes is not None and set(scopes) != {Scope.USE}:
        raise BadInput(
            "a key with the scope label, read or train sees the rows of every task: it cannot be limited to tasks",
            field="scopes",
        )
    if scopes is not None and not scopes:
        raise BadInput("a key needs at least one scope", field="scopes")
    secret = secret or _PREFIX + secrets.token_urlsafe(32)
    key = Key(
        id=new_id(),
        name=name,
        tier=tier,
        hint=secret[:_HINT_CHARS],
        created_at=now(),
        expires_at=expires_at,
        revoked_at=None,
        tasks=tasks,
        scopes=None if scopes is None else tuple(scope for scope in Scope if scope in scopes),
        **asdict(limits or KeyLimits()),
    )
    await insert_key(session, key, digest(secret))
    return key, secret


def creation_details(key: Key) -> dict[str, Any]:
    """What the act of creating a key says about it."""
    limits = {"tasks": key.tasks, "scopes": key.scopes}
    return (
        {"name": key.name, "tier": key.tier.value}
        | {name: list(value) for name, value in limits.items() if value is not None}
        | key.limits
    )
