"""What a /critique and a /refine do, from the request to the durable record.

No transaction is open while the engine works: the critic and the episode are read before, the record is written after.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import structlog

from gadfly.adapters import BadAdapter
from gadfly.concurrency import gather
from gadfly.critique import critique, majority_verdict, supplied_critique
from gadfly.engine_client import EnginePool, Sampling
from gadfly.errors import AdapterRefused, BadInput, EngineUnavailable, NotFound, StoreUnavailable, UnreadableReference
from gadfly.grading import Grade, Grader, group_by_answer
from gadfly.prompts import PromptSet
from gadfly.records import CriticVersion, Critique, Feedback, FeedbackSource, Interaction, Kind, Usage, new_id, now
from gadfly.refinement import Chain, OnPiece, Role, refine_chain
from gadfly.seeds import seed_of_sample
from gadfly.service.critics.leases import Leases
from gadfly.service.critics.loader import Loader
from gadfly.service.critics.pointers import Critics
from gadfly.service.metrics import Metrics
from gadfly.service.recording.recorder import Recorder
from gadfly.service.wire.answers import CritiqueRequest, Options, RefineRequest
from gadfly.service.wire.feedback import FeedbackRequest
from gadfly.settings import Settings
from gadfly.store.split import question_hash

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A request that has been checked, with everything that had to be read before the engine works."""

    interaction_id: UUID
    episode_id: UUID
    key_id: UUID | None
    critic: CriticVersion
    is_named: bool  # the request names this version, and not only what it stands for
    sampling: Sampling
    first_critique: Critique | None = None


class Answerer:
    """Everything that answering needs."""

    def __init__(
        self,
        *,
        settings: Settings,
        engines: EnginePool,
        prompts: PromptSet,
        critics: Critics,
        grader: Grader,
        recorder: Recorder,
        metrics: Metrics,
        loader: Loader,
        leases: Leases,
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._prompts = prompts
        self._critics = critics
        self._grader = grader
        self._recorder = recorder
        self._metrics = metrics
        self._loader = loader
        self.leases = leases

    def check_limits(self, body: Options | FeedbackRequest) -> None:
        """Refuse what the settings do not allow.

        Raises:
            BadInput: names the field and the limit.
        """
        limits = {
            "n": self._settings.max_samples,
            "samples": self._settings.max_samples,
            "rounds": self._settings.max_rounds,
            "max_tokens": self._settings.engine_max_model_len - 1,
        }
        for name, limit in limits.items():
            value = getattr(body, name, None)
            if value is not None and value > limit:
                raise BadInput(f"{name} must be at most {limit}", field=name)
        if isinstance(body, CritiqueRequest) and body.n > 1 and self._temperature(body) == 0:
            raise BadInput("n above 1 needs a temperature above 0: all would be the same", field="n")
        if isinstance(body, RefineRequest) and body.samples > 1 and body.refine_temperature == 0:
            has_critique = body.critique is not None or body.critique_id is not None
            if self._temperature(body) == 0 or (has_critique and body.rounds == 1):
                raise BadInput(
                    "samples above 1 need a refine_temperature above 0 here: all would be the same", field="samples"
                )
        for name in ("question", "response", "critique", "reference", "edited_response", "comment"):
            value = getattr(body, name, None)
            if value is not None and len(value) > self._settings.max_text_chars:
                raise BadInput(f"{name} must be at most {self._settings.max_text_chars:,} characters", field=name)

    async def prepare(self, body: Options, *, key_id: UUID | None, scope: UUID | None) -> Prepared:
        """Check a request and read what it refers to.

        Raises:
            BadInput: a reference that cannot be read, or an episode about another question.
            NotFound: no such critic, or no such critique for this caller.
            StoreUnavailable: the database is away and the request refers to something in it; or to an episode that may
                still wait for it.
        """
        if body.reference is not None:
            await self._grader.check_reference(body.reference)
        pinned = None
        if body.episode_id is not None:
            pinned = await self._pinned(body.episode_id, question=body.question, scope=scope)
        choice = pinned if pinned is not None and body.critic == "live" else body.critic
        critic = await self._critics.resolve(choice)
        first_critique = None
        if isinstance(body, RefineRequest):
            if body.critique is not None:
                first_critique = supplied_critique(body.critique)
            elif body.critique_id is not None:
                first_critique = await self._earlier_critique(body.critique_id, question=body.question, scope=scope)
        return Prepared(
            interaction_id=new_id(),
            episode_id=body.episode_id or new_id(),
            key_id=key_id,
            critic=critic,
            is_named=isinstance(body.critic, int),
            sampling=Sampling(
                n=body.n if isinstance(body, CritiqueRequest) else 1,
                temperature=self._temperature(body),
                max_tokens=body.max_tokens or self._settings.max_tokens,
                seed=body.seed,
            ),
            first_critique=first_critique,
        )

    async def _earlier_critique(self, critique_id: UUID, *, question: str, scope: UUID | None) -> Critique:
        try:
            return await self._critics.earlier_critique(critique_id, question=question, scope=scope)
        except NotFound:
            if self._recorder.spooled:
                raise StoreUnavailable("this critique may still wait to be stored; try again in a moment") from None
            raise

    async def _pinned(self, episode_id: UUID, *, question: str, scope: UUID | None) -> int | None:
        """`Critics.pinned`, of an episode that waits in the spool too.

        Raises:
            StoreUnavailable: records wait in the spool, and it may be that its own is on the way to the database.
        """
        may_wait = self._recorder.spooled > 0  # asked first: what waited may be in the database by then
        spooled = await self._recorder.lookup_episode(episode_id)
        if spooled is not None:
            if scope not in (None, spooled.key_id):
                raise NotFound(f"there is no episode {episode_id} of yours")
            if question_hash(spooled.question) != question_hash(question):
                raise BadInput("this episode is about another question", field="episode_id")
            return spooled.critic_version
        pinned = await self._critics.pinned(episode_id, question=question, scope=scope)
        if pinned is None and may_wait:
            raise StoreUnavailable("this episode may still wait to be stored; try again in a moment")
        return pinned

    def _temperature(self, body: Options | FeedbackRequest) -> float:
        given = getattr(body, "temperature", None)
        return self._settings.temperature if given is None else given

    async def critique(
        self, body: CritiqueRequest, prepared: Prepared, *, fingerprint: str | None, on_piece: OnPiece | None = None
    ) -> Interaction:
        """Judge one answer, and keep it. Returns once the record is durable."""
        started = time.perf_counter()

        async def on_text(sample: int, text: str) -> None:
            assert on_piece is not None
            await on_piece(Role.CRITIQUE, 0, sample, text)

        async with self._lease(prepared):
            critiques = await critique(
                self._engines,
                self._prompts,
                model=prepared.critic.engine_name,
                question=body.question,
                response=body.response,
                sampling=prepared.sampling,
                on_text=None if on_piece is None else on_text,
            )
        [grade] = await self._grades([body.response], body.reference)
        interaction = replace(
            self._record(Kind.CRITIQUE, body, prepared, fingerprint),
            grade=grade,
            parameters=_parameters(prepared) | {"n": body.n},
            verdict=majority_verdict(tuple(item.verdict for item in critiques)),
            usage=_total(critiques),
            latency_ms=(time.perf_counter() - started) * 1000,
            critiques=critiques,
        )
        await self._keep(interaction)
        return interaction

    async def refine(
        self, body: RefineRequest, prepared: Prepared, *, fingerprint: str | None, on_piece: OnPiece | None = None
    ) -> Interaction:
        """Rewrite one answer with the critic's help, and keep it. Returns once the record is durable."""
        started = time.perf_counter()
        actor = replace(prepared.sampling, temperature=body.refine_temperature)
        async with self._lease(prepared):
            chains = await gather(
                *(
                    refine_chain(
                        self._engines,
                        self._prompts,
                        critic=prepared.critic.engine_name,
                        question=body.question,
                        response=body.response,
                        rounds=body.rounds,
                        when=body.when,
                        critique_sampling=_seeded(prepared.sampling, sample),
                        refine_sampling=_seeded(actor, sample),
                        sample=sample,
                        first_critique=prepared.first_critique
                        and replace(prepared.first_critique, id=new_id(), sample=sample),
                        on_piece=on_piece,
                    )
                    for sample in range(body.samples)
                )
            )
        chosen, votes = await self._vote(chains)
        critiques = tuple(item for chain in chains for item in chain.critiques)
        refinements = tuple(item for chain in chains for item in chain.refinements)
        grade, *refined = await self._grades([body.response, *(item.text for item in refinements)], body.reference)
        refinements = tuple(replace(item, grade=its) for item, its in zip(refinements, refined, strict=True))
        parameters = _parameters(prepared) | {
            "rounds": body.rounds,
            "when": body.when.value,
            "samples": body.samples,
            "refine_temperature": body.refine_temperature,
            "votes": votes,
        }
        if body.critique_id is not None:
            parameters["critique_id"] = str(body.critique_id)
        interaction = replace(
            self._record(Kind.REFINE, body, prepared, fingerprint),
            grade=grade,
            parameters=parameters,
            verdict=chosen.critiques[-1].verdict,
            refined_response=chosen.text,
            stop_reason=chosen.stopped,
            usage=_total((*critiques, *refinements)),
            latency_ms=(time.perf_counter() - started) * 1000,
            critiques=critiques,
            refinements=refinements,
        )
        await self._keep(interaction)
        return interaction

    async def feedback(self, body: FeedbackRequest, interaction: Interaction, *, key_id: UUID | None) -> Feedback:
        """Keep what was said about an interaction. A repeat of the newest feedback returns that one.

        Raises:
            UnreadableReference: the reference cannot be read; nothing is kept.
        """
        texts = [interaction.response, *(item.text for item in interaction.refinements)]
        grade, *refined = await self._grades(texts, body.reference)
        regraded = {item.id: its for item, its in zip(interaction.refinements, refined, strict=True) if its is not None}
        feedback = Feedback(
            id=new_id(),
            interaction_id=interaction.id,
            key_id=key_id,
            created_at=now(),
            source=FeedbackSource.CALLER,
            correct=body.correct,
            reference=body.reference,
            edited_response=body.edited_response,
            rating=body.rating,
            comment=body.comment,
            metadata=body.metadata,
            grade=grade,
            refinement_grades=regraded,
        )
        stored = await self._recorder.record(feedback)
        assert isinstance(stored.record, Feedback)
        return stored.record

    async def _grades(self, texts: Sequence[str], reference: str | None) -> list[Grade | None]:
        """The grade of each text against one reference; all None without one."""
        if reference is None:
            return [None] * len(texts)
        grades: list[Grade | None] = []
        for grade in await self._grader.grade_all([(text, reference) for text in texts]):
            if isinstance(grade, UnreadableReference):
                raise grade
            grades.append(grade)
        return grades

    async def _vote(self, chains: Sequence[Chain]) -> tuple[Chain, int]:
        """The first chain of those that end with the commonest answer, and how many they are: MV@K."""
        groups = await group_by_answer(self._grader, [chain.text for chain in chains])
        commonest = max(groups, key=len)  # max keeps the first of equals
        return chains[commonest[0]], len(commonest)

    def _record(self, kind: Kind, body: Options, prepared: Prepared, fingerprint: str | None) -> Interaction:
        return Interaction(
            id=prepared.interaction_id,
            kind=kind,
            created_at=now(),
            episode_id=prepared.episode_id,
            key_id=prepared.key_id,
            request_id=body.request_id,
            fingerprint=fingerprint,
            question=body.question,
            response=body.response,
            reference=body.reference,
            grade=None,
            metadata=body.metadata,
            parameters={},
            model=self._settings.model,
            prompt_set=self._prompts.name,
            critic_version=prepared.critic.version,
            adapter_sha256=prepared.critic.adapter_sha256,
            verdict=None,
            refined_response=None,
            stop_reason=None,
            usage=Usage(),
            latency_ms=None,
        )

    async def _keep(self, interaction: Interaction) -> None:
        recording = asyncio.ensure_future(self._recorder.record(interaction))
        with self._metrics.durable.time():
            try:
                await asyncio.shield(recording)
            except asyncio.CancelledError:
                # The caller has gone, the record is kept all the same. Its request id must not be free before that.
                await asyncio.wait((recording,))
                raise
        self._metrics.observe(interaction)

    @asynccontextmanager
    async def _lease(self, prepared: Prepared) -> AsyncIterator[None]:
        """Keep a critic for a request, and have it served first where it is not: of an episode from before a swap.

        Raises:
            EngineUnavailable: no engine serves it as it was published; nothing that this caller could mend.
            AdapterRefused, BadAdapter: the same, of a critic that the caller chose by its number.
        """
        critic = prepared.critic
        is_live = critic.version == self._critics.known_live
        with self.leases.take(critic.version, is_pinned=not is_live):
            try:
                await self._loader.ready(critic)
                yield
            except (AdapterRefused, BadAdapter) as error:
                if prepared.is_named and not is_live:
                    raise
                log.warning("critic_cannot_answer", critic=critic.engine_name, reason=str(error))
                raise EngineUnavailable(f"no engine serves critic {critic.version} as it was published") from error


def fingerprint_of(body: Options) -> str:
    """sha256 (hex) of what a request asks for; two requests under one request id must agree in it.

    How the answer travels (`stream`) is not part of it.
    """
    # Without what is left to its default, or a release with a new option would not know its predecessor's requests.
    asked = body.model_dump(mode="json", exclude={"stream", "request_id"}, exclude_defaults=True)
    canonical = json.dumps(asked, sort_keys=True)
    return hashlib.sha256(f"{type(body).__name__}:{canonical}".encode()).hexdigest()


def _parameters(prepared: Prepared) -> dict[str, Any]:
    return {
        "temperature": prepared.sampling.temperature,
        "max_tokens": prepared.sampling.max_tokens,
        "seed": prepared.sampling.seed,
    }


def _seeded(sampling: Sampling, sample: int) -> Sampling:
    return sampling if sampling.seed is None else replace(sampling, seed=seed_of_sample(sampling.seed, sample))


def _total(parts: tuple[Any, ...]) -> Usage:
    total = Usage()
    for part in parts:
        total += part.usage
    return total
