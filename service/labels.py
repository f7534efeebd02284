"""Labels as admins see them: disputes and rulings. Beside it, the reliabilities of voters are kept up to date."""

import asyncio
from functools import partial
from uuid import UUID

from gadfly import store
from gadfly.records import AdminAct, AdminAction, Ruling
from gadfly.repeating import repeat
from gadfly.service.keyring import Caller
from gadfly.store.database import Database
from gadfly.store.disputes import JudgedAnswer
from gadfly.store.labels import AnswerKey, refresh

_REFRESH_S = 300.0  # reliabilities change slowly; labels follow each vote at once


class Labels:
    """Reads and decides labels, for admins."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self) -> None:
        """Refresh the reliabilities of voters every five minutes, until cancelled; of several replicas one does."""
        await repeat(
            self._refresh, wait=partial(asyncio.sleep, _REFRESH_S), failure="labels_not_refreshed", waits_first=False
        )

    async def _refresh(self) -> None:
        async with self._database.session() as session:
            is_fresh = await store.labels.was_fitted_within(session, _REFRESH_S / 2)
        if not is_fresh:
            await refresh(self._database)

    async def disputes(
        self, *, only_conflicts: bool, limit: int, after: AnswerKey | None, task: str | None = None
    ) -> list[tuple[AnswerKey, JudgedAnswer]]:
        """Answers whose votes differ; see `gadfly.store.disputes.disputed_answers`."""
        async with self._database.session() as session:
            return await store.disputes.disputed_answers(
                session, only_conflicts=only_conflicts, limit=limit, after=after, task=task
            )

    async def read(self, interaction_id: UUID) -> JudgedAnswer:
        """The answer that an interaction is about.

        Raises:
            NotFound: no such interaction, or no vote about its answer.
        """
        async with self._database.session() as session:
            return await store.disputes.judged_answer(session, interaction_id)

    async def rule(self, admin: Caller, interaction_id: UUID, ruling: Ruling, *, reason: str | None) -> JudgedAnswer:
        """Decide the label of the answer that an interaction is about.

        Raises:
            NotFound: no such interaction.
        """
        async with self._database.session() as session:
            before, answer = await store.disputes.rule(session, interaction_id, ruling)
            await store.acts.record_act(
                session,
                AdminAction.SET_LABEL,
                interaction_id,
                key_id=admin.key_id,
                reason=reason,
                details={"label": ruling.value, "was_right": before, "is_right": answer.is_right},
            )
        return answer

    async def acts(self, *, limit: int, before: UUID | None) -> list[AdminAct]:
        """What admins did, the newest first."""
        async with self._database.session() as session:
            return await store.acts.list_acts(session, limit=limit, before=before)

    async def key_names(self) -> dict[UUID, str]:
        """The names of all keys."""
        async with self._database.session() as session:
            return {key.id: key.name for key in await store.keys.list_keys(session)}
