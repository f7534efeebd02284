from datetime import timedelta

import pytest
from sqlalchemy import text

from gadfly.api_keys import digest, issue_key
from gadfly.errors import NotFound
from gadfly.records import Tier, new_id, now
from gadfly.store.database import Database
from gadfly.store.keys import find_key, has_keys, list_keys, revoke_key


async def test_a_key_is_found_by_its_secret_alone(database: Database) -> None:
    async with database.session() as session:
        assert not await has_keys(session)
        key, secret = await issue_key(session, name="app", tier=Tier.CALLER, expires_at=now() + timedelta(days=1))
        other, other_secret = await issue_key(session, name="app", tier=Tier.ADMIN)
    assert secret.startswith(key.hint)
    assert len(secret) > 40
    assert secret != other_secret
    async with database.session() as session:
        assert await has_keys(session)
        assert await find_key(session, digest(secret)) == key
        assert await find_key(session, digest(secret + "x")) is None
        assert await find_key(session, digest("\ud800\x00")) is None
        assert await list_keys(session) == [key, other]


async def test_the_secret_is_not_stored(database: Database) -> None:
    async with database.session() as session:
        _, secret = await issue_key(session, name="app", tier=Tier.CALLER)
        row = (await session.execute(text("SELECT keys::text FROM keys"))).scalar_one()
    assert secret[10:] not in row
    assert digest(secret).hex() in row


async def test_a_key_ends_by_date_or_by_hand(database: Database) -> None:
    async with database.session() as session:
        key, secret = await issue_key(session, name="app", tier=Tier.CALLER, expires_at=now() + timedelta(days=1))
    assert key.is_active(now())
    assert not key.is_active(now() + timedelta(days=2))
    async with database.session() as session:
        revoked = await revoke_key(session, key.id)
    async with database.session() as session:
        assert await revoke_key(session, key.id) == revoked  # the first time stands
        assert await find_key(session, digest(secret)) == revoked
        with pytest.raises(NotFound):
            await revoke_key(session, new_id())
    assert not revoked.is_active(now())
