"""Keys and settings as admins see them, and trials of the task's grader."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy import text

from gadfly import store
from gadfly.api_keys import creation_details, issue_key, require_no_limits
from gadfly.errors import Conflict
from gadfly.records import AdminAction, Key, KeyLimits, Scope, Tier, now
from gadfly.service.keyring import Caller
from gadfly.settings import Settings, without_password
from gadfly.store.database import Database
from gadfly.store.disputes import Taught
from gadfly.store.labels import refresh

_MASK = "********"
_TAUGHT_LIMIT_S = 120.0


class Keys:
    """Creates, lists, revokes and distrusts API keys; each act is recorded."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[Key]:
        """All keys, oldest first, with revoked and expired ones."""
        async with self._database.session() as session:
            return await store.keys.list_keys(session)

    async def create(
        self,
        admin: Caller,
        *,
        name: str,
        tier: Tier,
        expires_in: timedelta | None,
        scopes: Collection[Scope] | None = None,
        limits: KeyLimits | None = None,
    ) -> tuple[Key, str]:
        """A new key and its secret.

        Raises:
            BadInput: it cannot have these scopes.
            Conflict: it would be the first key and not an admin's, which would lock out everybody.
        """
        expires_at: datetime | None = None if expires_in is None else now() + expires_in
        async with self._database.session() as session:
            if tier is not Tier.ADMIN and not await store.keys.has_keys(session):
                raise Conflict("the first key must be an admin's: from then on every request needs a key")
            key, secret = await issue_key(
                session, name=name, tier=tier, expires_at=expires_at, scopes=scopes, limits=limits
            )
            await self._record(session, AdminAction.CREATE_KEY, key, admin, None, creation_details(key))
        return key, secret

    async def revoke(self, admin: Caller, id: UUID, *, reason: str | None) -> Key:
        """Revoke a key permanently.

        Raises:
            NotFound: there is no such key.
            Conflict: it is the key that this request was sent with.
        """
        if id == admin.key_id:
            raise Conflict("this request was sent with that key: revoke it with another admin key")
        async with self._database.session() as session:
            key = await store.keys.revoke_key(session, id)
            await self._record(session, AdminAction.REVOKE_KEY, key, admin, reason, {"name": key.name})
        return key

    async def limit(self, admin: Caller, id: UUID, limits: Mapping[str, int | None], *, reason: str | None) -> Key:
        """Change some limits of a key, by the names of `KeyLimits`; None removes one. Services notice within seconds.

        Raises:
            NotFound: there is no such key.
            BadInput: it is an admin's.
        """
        async with self._database.session() as session:
            key = await store.keys.set_limits(session, id, limits)
            if key.tier is Tier.ADMIN:
                require_no_limits(limits)
            details = {"name": key.name, **limits}
            await self._record(session, AdminAction.LIMIT_KEY, key, admin, reason, details)
        return key

    async def set_trust(
        self, admin: Caller, id: UUID, *, is_trusted: bool, reason: str | None
    ) -> tuple[Key, list[Taught]]:
        """Count the labels of a key, or none of them; also returns the critics that it taught. Labels are up to date.

        Raises:
            NotFound: there is no such key.
        """
        await refresh(self._database)
        async with self._database.session(limit_s=_TAUGHT_LIMIT_S) as session:
            await session.execute(text("SET LOCAL statement_timeout = 0"))
            key = await store.keys.set_trust(session, id, is_trusted=is_trusted)
            taught = await store.disputes.critics_taught_by(session, id)
            details = {"name": key.name, "critics": [critic.version for critic in taught]}
            action = AdminAction.TRUST_KEY if is_trusted else AdminAction.DISTRUST_KEY
            await self._record(session, action, key, admin, reason, details)
        await refresh(self._database)
        return key, taught

    @staticmethod
    async def _record(
        session: Any, action: AdminAction, key: Key, admin: Caller, reason: str | None, details: dict[str, Any]
    ) -> None:
        await store.acts.record_act(session, action, key.id, key_id=admin.key_id, reason=reason, details=details)


def shown_settings(settings: Settings) -> list[tuple[str, Any, bool, str]]:
    """Each setting: its name, its value without secrets, whether that is the default, and its description."""
    rows = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        is_default = value == field.get_default(call_default_factory=True) or name not in settings.model_fields_set
        if isinstance(value, SecretStr):
            shown = without_password(value.get_secret_value()) if name == "database_url" else _MASK
        else:
            shown = _without_passwords(value)
        rows.append((name, shown, is_default, field.description or ""))
    return rows


def _without_passwords(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_without_passwords(item) for item in value)
    return without_password(value) if isinstance(value, str) else value
