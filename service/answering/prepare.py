"""Reads the records that a request needs before the engine generates: the critic, the episode, an earlier critique."""

from dataclasses import dataclass
from uuid import UUID

from gadfly.critique import supplied_critique
from gadfly.engine_client import Sampling
from gadfly.errors import BadInput, Conflict, NotFound, StoreUnavailable
from gadfly.records import CriticVersion, Critique, new_id
from gadfly.service.answering.limits import temperature_of
from gadfly.service.critics.pointers import CriticPointers
from gadfly.service.keyring import Caller
from gadfly.service.recording.recorder import Recorder
from gadfly.service.wire.answers import CritiqueRequest, Options, RefineRequest
from gadfly.settings import Settings
from gadfly.storable import storable_text
from gadfly.store.split import question_hash
from gadfly.tasks import ServedTask


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A checked request, and the records that had to be read before the engine generates."""

    interaction_id: UUID
    episode_id: UUID
    key_id: UUID | None
    task: ServedTask
    critic: CriticVersion
    is_named: bool  # the request names this version by its number, not by a pointer
    sampling: Sampling
    first_critique: Critique | None = None
    instead_of: int | None = None  # the version whose place `critic` takes, since that learned verdicts only


def _asked_by(caller: Caller, question: str) -> bytes:
    """What identifies a request without an episode to a canary: who asks, and what."""
    return (b"" if caller.key_id is None else caller.key_id.bytes) + storable_text(question).encode()


class Preparation:
    """Turns a request into a `Prepared` one."""

    def __init__(self, *, settings: Settings, pointers: CriticPointers, recorder: Recorder) -> None:
        self._settings = settings
        self._pointers = pointers
        self._recorder = recorder

    async def prepare(self, body: Options, caller: Caller, *, task: ServedTask) -> Prepared:
        """Check a request of a task and read the records it refers to.

        Raises:
            BadInput: the episode is about another question.
            Conflict: the critic is archived: it is based on another model than the one that is served. Or it is of
                another task.
            NotFound: no such critic, or no critique or episode that this caller may see.
            StoreUnavailable: Postgres is unavailable and the request refers to a stored record, or the episode or
                critique may not be stored yet.
        """
        pinned = None
        if body.episode_id is not None:
            question = await self._recorder.stored_form(body.question)
            pinned = await self._pinned(body.episode_id, question=question, task=task.name, scope=caller.rows_of)
        episode_id = body.episode_id or new_id()
        critic = await self._pointers.resolve(body.critic, task.name)
        if body.critic == "live":
            sticky = episode_id.bytes if body.episode_id is not None else _asked_by(caller, body.question)
            critic = self._pointers.live_for(sticky, task.name) or critic
        if critic.task != task.name:
            raise Conflict(
                f"version {critic.version} is a critic of the task {critic.task}, and this request is of the task "
                f"{task.name}"
            )
        if pinned is not None and body.critic == "live":
            earlier = await self._pointers.resolve(pinned)
            critic = critic if self._is_archived(earlier) else earlier
        if self._is_archived(critic):
            raise Conflict(
                f"version {critic.version} is archived: it is based on the model {critic.base_model}, and "
                f"{self._settings.model} is served"
            )
        resolved = critic
        if isinstance(body, RefineRequest) and body.critic == "live":
            critic = self._pointers.for_refinement(critic)
        first_critique = None
        if isinstance(body, RefineRequest):
            if body.critique is not None:
                first_critique = supplied_critique(body.critique, task.prompts.words)
            elif body.critique_id is not None:
                question = await self._recorder.stored_form(body.question)
                first_critique = await self._earlier_critique(
                    body.critique_id, question=question, task=task.name, scope=caller.rows_of
                )
        return Prepared(
            interaction_id=new_id(),
            episode_id=episode_id,
            key_id=caller.key_id,
            task=task,
            critic=critic,
            is_named=isinstance(body.critic, int),
            sampling=Sampling(
                n=body.n if isinstance(body, CritiqueRequest) else 1,
                temperature=temperature_of(self._settings, body),
                max_tokens=body.max_tokens or self._settings.max_tokens,
                seed=body.seed,
            ),
            first_critique=first_critique,
            instead_of=None if critic is resolved else resolved.version,
        )

    def _is_archived(self, critic: CriticVersion) -> bool:
        return critic.base_model != self._settings.model

    async def _earlier_critique(self, critique_id: UUID, *, question: str, task: str, scope: UUID | None) -> Critique:
        try:
            return await self._pointers.earlier_critique(critique_id, question=question, task=task, scope=scope)
        except NotFound:
            if self._recorder.spooled:
                raise StoreUnavailable("this critique may not be stored yet; try again in a moment") from None
            raise

    async def _pinned(self, episode_id: UUID, *, question: str, task: str, scope: UUID | None) -> int | None:
        """The version that an episode is pinned to, also if the episode is still in the spool; None for a new episode.

        Raises:
            BadInput: the episode is about another question.
            NotFound: the episode is another caller's.
            StoreUnavailable: records are spooled and the episode may be among them, or Postgres is unavailable.
        """
        may_be_spooled = self._recorder.spooled > 0  # before the lookups: a replay may move records in between
        spooled = await self._recorder.lookup_episode(episode_id)
        if spooled is not None:
            if scope not in (None, spooled.key_id):
                raise NotFound(f"you have no episode {episode_id}")
            if question_hash(spooled.question, spooled.task) != question_hash(question, task):
                raise BadInput("this episode is about another question", field="episode_id")
            return spooled.critic_version
        pinned = await self._pointers.pinned(episode_id, question=question, task=task, scope=scope)
        if pinned is None and may_be_spooled:
            raise StoreUnavailable("this episode may not be stored yet; try again in a moment")
        return pinned
