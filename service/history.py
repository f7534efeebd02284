"""Interactions and feedback that a caller may read or delete, in Postgres or still in this replica's spool."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from uuid import UUID, uuid5

from gadfly import store
from gadfly.errors import NotFound, StoreUnavailable
from gadfly.grading import Grade
from gadfly.records import AdminAction, Feedback, Interaction, Kind
from gadfly.service.keyring import Caller
from gadfly.service.recording.recorder import Recorder
from gadfly.store.database import Database
from gadfly.store.interactions import Filters, InteractionFacts, Page, Withdrawn
from gadfly.store.learning import LedgerEntry


class History:
    """Reads and deletes interactions, within the rows that the caller may see."""

    def __init__(self, database: Database, recorder: Recorder, *, on_deleted: Callable[[UUID], None]) -> None:
        """`on_deleted` is called with the id of each deleted interaction."""
        self._database = database
        self._recorder = recorder
        self._on_deleted = on_deleted

    async def find(self, caller: Caller, interaction_id: UUID) -> Interaction:
        """One whole interaction.

        Raises:
            NotFound: no such interaction, or not one that this caller may see.
            StoreUnavailable: Postgres is unavailable and the interaction is not in the spool.
        """
        spooled = await self._spooled(caller, interaction_id)
        if spooled is not None:
            return spooled
        async with self._database.session(snapshot=True) as session:
            return await store.interactions.read_interaction(session, interaction_id, scope=caller.rows_of)

    async def find_by_request_id(self, caller: Caller, request_id: str) -> Interaction:
        """The whole interaction with this caller's request id. Raises as `find`."""
        spooled = await self._recorder.lookup_request(request_id, key_id=caller.key_id)
        if spooled is not None:
            return spooled
        async with self._database.session(snapshot=True) as session:
            stored = await store.interactions.find_by_request_id(session, request_id, key_id=caller.key_id)
        if stored is None:
            raise NotFound(f"there is no interaction with the request id {request_id!r}")
        return stored

    async def page(self, caller: Caller, filters: Filters, *, cursor: str | None, limit: int) -> Page:
        """A page of interactions without their critiques, newest first."""
        async with self._database.session() as session:
            return await store.interactions.list_interactions(
                session, scope=caller.rows_of, filters=filters, limit=limit, cursor=cursor
            )

    async def read(self, caller: Caller, interaction_id: UUID) -> tuple[Interaction, list[Feedback], InteractionFacts]:
        """One whole interaction, the feedback about it, oldest first, and its label. Raises as `find`."""
        spooled = await self._spooled(caller, interaction_id)
        spooled_feedback = await self._recorder.lookup_feedback(interaction_id)
        if spooled is not None:  # records keep their order, so all feedback about it is in the spool too
            return spooled, spooled_feedback, _unlabelled(spooled)
        async with self._database.session(snapshot=True) as session:
            interaction = await store.interactions.read_interaction(session, interaction_id, scope=caller.rows_of)
            stored = await store.interactions.feedback_of(session, interaction_id)
            facts = await store.interactions.facts_of(session, [interaction_id])
        stored_ids = {item.id for item in stored}
        feedback = [*stored, *(item for item in spooled_feedback if item.id not in stored_ids)]
        return interaction, feedback, facts[interaction_id]

    async def learning(self, reader: Caller, interaction_id: UUID) -> tuple[list[LedgerEntry], list[UUID]]:
        """What runs learned from an interaction, and the runs that selected it.

        Raises:
            NotFound: no such interaction.
        """
        async with self._database.session(snapshot=True) as session:
            await store.interactions.read_interaction(session, interaction_id, scope=reader.rows_of)
            entries = await store.learning.learned_from(session, interaction_id)
            return entries, await store.learning.selected_by(session, interaction_id)

    async def feedback_target(self, caller: Caller, feedback_id: UUID) -> Interaction:
        """The interaction that feedback is about.

        Raises:
            NotFound: no such feedback, or another key's.
        """
        async with self._database.session(snapshot=True) as session:
            target = await store.interactions.feedback_target(session, feedback_id, scope=caller.rows_of)
            return await store.interactions.read_interaction(session, target, scope=None)

    async def withdraw(
        self, caller: Caller, feedback_id: UUID, interaction: Interaction, own_grades: Mapping[UUID, Grade]
    ) -> Withdrawn:
        """Remove feedback; see `gadfly.store.interactions.withdraw_feedback`. That of another key is an act of admins.

        What it said about the first answer of a refined chat answer is removed too.
        """
        refined = interaction.parameters.get("refined") if interaction.kind is Kind.CHAT else None
        async with self._database.session() as session:
            found, removed = await store.interactions.withdraw_feedback(
                session, feedback_id, scope=caller.rows_of, own_grades=own_grades
            )
            if refined is not None:
                passed_on = uuid5(feedback_id, refined["interaction_id"])
                with suppress(NotFound):
                    await store.interactions.withdraw_feedback(session, passed_on, scope=caller.rows_of, own_grades={})
            if removed.key_id != caller.key_id:
                await store.acts.record_act(
                    session,
                    AdminAction.WITHDRAW_FEEDBACK,
                    feedback_id,
                    key_id=caller.key_id,
                    reason=None,
                    details={"of_key": None if removed.key_id is None else str(removed.key_id)},
                )
        return found

    async def forget(self, caller: Caller, interaction_id: UUID) -> None:
        """Delete an interaction and everything that belongs to it.

        Raises:
            NotFound: no such interaction, or not one that this caller may see.
            StoreUnavailable: Postgres is unavailable or the record is still in the spool; nothing was deleted.
        """
        if await self._spooled(caller, interaction_id) is not None:
            raise StoreUnavailable(
                "this interaction is not stored in Postgres yet; try again when Postgres is available"
            )
        async with self._database.session() as session:
            await store.interactions.delete_interaction(session, interaction_id, scope=caller.rows_of)
        self._on_deleted(interaction_id)

    async def _spooled(self, caller: Caller, interaction_id: UUID) -> Interaction | None:
        spooled = await self._recorder.lookup(interaction_id)
        return spooled if spooled is not None and caller.rows_of in (None, spooled.key_id) else None


def _unlabelled(interaction: Interaction) -> InteractionFacts:
    """What is known about an interaction in the spool: votes are counted when it is stored."""
    own = [item for item in interaction.critiques if item.round == 0 and item.sample == 0 and not item.supplied]
    return InteractionFacts(confidence=own[0].confidence if own else None)
