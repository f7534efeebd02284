"""Critics without files, for tests that serve none of them."""

from sqlalchemy import text

from gadfly import store
from gadfly.store.database import Database


async def seed_versions(database: Database) -> None:
    """Store versions 0 to 3, of which 0 is live."""
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, "tiny")
        for version in (1, 2, 3):
            await session.execute(
                text(
                    "INSERT INTO critic_versions (version, base_model, adapter_path, adapter_sha256, created_at)"
                    " VALUES (:version, 'tiny', 'folder', 'hash', now())"
                ),
                {"version": version},
            )
