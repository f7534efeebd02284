"""Answers /critique, /refine and /feedback: from the checked request to the durable record.

No transaction is open while the engine generates: the critic and the episode are read before, the record is written
afterwards.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol
from uuid import UUID

import structlog
from pydantic import BaseModel

from gadfly import tracing
from gadfly.actor import Actor
from gadfly.adapters import BadAdapter
from gadfly.concurrency import gather
from gadfly.critique import critique, majority_verdict
from gadfly.engine_client import Sampling
from gadfly.errors import AdapterRefused, BadInput, EngineError, EngineUnavailable, UnreadableReference
from gadfly.grading import Grade, Submission, TaskGrader, grade_one, group_by_answer
from gadfly.prompts import PromptSet
from gadfly.records import (
    CriticVersion,
    Critique,
    Feedback,
    FeedbackSource,
    Interaction,
    Kind,
    Refinement,
    Usage,
    new_id,
    now,
)
from gadfly.refinement import Chain, Role, refine_chain
from gadfly.seeds import seed_of_sample
from gadfly.service.answering.idempotency import Idempotency
from gadfly.service.answering.limits import check_limits, engine_calls
from gadfly.service.answering.prepare import Preparation, Prepared
from gadfly.service.critics.serving import CriticServing
from gadfly.service.keyring import Caller
from gadfly.service.metrics import Metrics
from gadfly.service.quotas import Meter, Quotas
from gadfly.service.recording.recorder import Recorder
from gadfly.service.wire.answers import VERDICT_WORDS, CritiqueRequest, Options, RefineRequest
from gadfly.service.wire.feedback import FeedbackRequest
from gadfly.settings import Settings
from gadfly.tasks import ServedTask, ServedTasks

log = structlog.get_logger(__name__)


class Listener(Protocol):
    """Gets the progress of an answer while it is generated."""

    async def on_critic(self, version: int, interaction_id: UUID) -> None:
        """Called once, first, with the version that answers. Not called for a repeated request id."""

    async def on_piece(self, role: Role, round: int, sample: int, text: str) -> None:
        """Called with each piece of generated text."""


@dataclass(frozen=True, slots=True)
class _Metered:
    """A listener whose pieces of text are counted."""

    listener: Listener
    meter: Meter

    async def on_critic(self, version: int, interaction_id: UUID) -> None:
        await self.listener.on_critic(version, interaction_id)

    async def on_piece(self, role: Role, round: int, sample: int, text: str) -> None:
        self.meter.pieces += 1
        await self.listener.on_piece(role, round, sample, text)


@dataclass(frozen=True, slots=True)
class _Graded:
    """Grades of several texts against one reference, by which version of the grader, or why there are none."""

    grades: list[Grade | None]
    grader: int | None = None
    problem: str | None = None


class Answerer:
    """Answers /critique, /refine and /feedback."""

    def __init__(
        self,
        *,
        settings: Settings,
        tasks: ServedTasks,
        actor: Actor,
        critics: CriticServing,
        graders: Mapping[str, TaskGrader],
        recorder: Recorder,
        requests: Idempotency,
        metrics: Metrics,
        quotas: Quotas,
    ) -> None:
        self._settings = settings
        self.tasks = tasks
        self._actor = actor
        self._critics = critics
        self._graders = graders
        self._recorder = recorder
        self._requests = requests
        self._metrics = metrics
        self._quotas = quotas
        self._preparation = Preparation(settings=settings, pointers=critics.pointers, recorder=recorder)

    async def answer(
        self,
        caller: Caller,
        body: Options,
        *,
        listener: Listener | None = None,
        conversation: dict[str, Any] | None = None,
    ) -> Interaction:
        """The durable record of the answer; for a repeated request id, that of the first request.

        `conversation` is stored with it.

        Raises:
            BadInput: a limit is exceeded, or the request id belongs to another request.
            NotFound: its task is not served.
            NotAllowed: the caller's key may not use its task.
            Conflict: the model's tokens do not tell its verdict words apart.
            TooBusy: a limit of the caller's key, or of this service, is reached.
        """
        check_limits(self._settings, body)
        task = self.tasks.get(body.task)
        caller.require_task(task.name)
        self._critics.require_words(task.name)
        if body.request_id is None:
            return await self._work(caller, body, None, listener, conversation)
        fingerprint = fingerprint_of(body)
        work = partial(self._work, caller, body, fingerprint, listener, conversation)
        return await self._requests.once(caller, body.request_id, fingerprint, work)

    async def _work(
        self,
        caller: Caller,
        body: Options,
        fingerprint: str | None,
        listener: Listener | None,
        conversation: dict[str, Any] | None,
    ) -> Interaction:
        with tracing.span("prepare"):
            prepared = await self._preparation.prepare(body, caller, task=self.tasks.get(body.task))
        if tracing.is_on():
            tracing.annotate(
                {
                    "gadfly.task": prepared.task.name,
                    "gadfly.critic_version": prepared.critic.version,
                    "gadfly.interaction_id": prepared.interaction_id,
                    "gadfly.episode_id": prepared.episode_id,
                    "gadfly.key_id": prepared.key_id,
                }
            )
        if listener is not None:
            await listener.on_critic(prepared.critic.version, prepared.interaction_id)
        started = time.perf_counter()
        with self._quotas.work(caller, calls=engine_calls(body)) as meter:
            metered = None if listener is None else _Metered(listener, meter)
            match body:
                case CritiqueRequest():
                    answered = await self._critique(body, prepared, metered)
                case RefineRequest():
                    answered = await self._refine(body, prepared, metered)
                case _:
                    raise AssertionError(type(body))
        if tracing.is_on():
            tracing.annotate(
                {
                    "gadfly.verdict": answered.verdict,
                    "gadfly.grade": answered.grade,
                    "gen_ai.usage.input_tokens": answered.usage.prompt_tokens,
                    "gen_ai.usage.output_tokens": answered.usage.completion_tokens,
                }
            )
        self._quotas.spend(caller, answered.usage.prompt_tokens + answered.usage.completion_tokens)
        interaction = replace(
            answered,
            fingerprint=fingerprint,
            latency_ms=(time.perf_counter() - started) * 1000,
            conversation=conversation,
        )
        if body.store:
            await self.keep(interaction)
        return interaction

    async def _critique(self, body: CritiqueRequest, prepared: Prepared, listener: Listener | None) -> Interaction:
        async with self._lease(prepared, places=body.n) as prompts:
            critiques = await critique(
                self._critics.engines,
                prompts,
                model=prepared.critic.engine_name,
                question=body.question,
                response=body.response,
                sampling=prepared.sampling,
                on_text=None if listener is None else partial(listener.on_piece, Role.CRITIQUE, 0),
            )
        critiques = self._calibrated(critiques, prepared.critic)
        graded = await self.graded(
            [(body.response, False)], body.reference, question=body.question, task=prepared.task.name
        )
        return replace(
            self._record(Kind.CRITIQUE, body, prepared),
            grade=graded.grades[0],
            grader=graded.grader,
            grade_problem=graded.problem,
            parameters=_parameters(prepared) | {"n": body.n},
            verdict=majority_verdict(tuple(item.verdict for item in critiques)),
            usage=_total(critiques),
            critiques=critiques,
        )

    async def _refine(self, body: RefineRequest, prepared: Prepared, listener: Listener | None) -> Interaction:
        actor = replace(prepared.sampling, temperature=body.refine_temperature)
        async with self._lease(prepared, places=body.samples) as prompts:
            chains = await gather(
                *(
                    refine_chain(
                        self._critics.engines,
                        self._actor,
                        prompts,
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
                        on_piece=None if listener is None else listener.on_piece,
                    )
                    for sample in range(body.samples)
                )
            )
        chosen, votes = await self._vote(chains, task=prepared.task.name)
        critiques = self._calibrated((item for chain in chains for item in chain.critiques), prepared.critic)
        refinements = tuple(item for chain in chains for item in chain.refinements)
        texts = [(body.response, False), *map(_text_of, refinements)]
        graded = await self.graded(texts, body.reference, question=body.question, task=prepared.task.name)
        grade, *refined = graded.grades
        refinements = tuple(replace(item, grade=own) for item, own in zip(refinements, refined, strict=True))
        parameters = _parameters(prepared) | {
            "rounds": body.rounds,
            "when": body.when.value,
            "samples": body.samples,
            "refine_temperature": body.refine_temperature,
            "votes": votes,
        }
        if prepared.instead_of is not None:
            parameters["instead_of"] = prepared.instead_of
        if body.critique_id is not None:
            parameters["critique_id"] = str(body.critique_id)
        return replace(
            self._record(Kind.REFINE, body, prepared),
            model=self._actor.name,
            grade=grade,
            grader=graded.grader,
            grade_problem=graded.problem,
            parameters=parameters,
            verdict=chosen.critiques[-1].verdict,
            refined_response=chosen.text,
            stop_reason=chosen.stopped,
            usage=_total((*critiques, *refinements)),
            critiques=critiques,
            refinements=refinements,
        )

    async def feedback(self, body: FeedbackRequest, interaction: Interaction, *, key_id: UUID | None) -> Feedback:
        """Store feedback about an interaction. A repeat of the newest feedback returns that one.

        A reference that cannot be read gives no grade, and `grade_problem` says why; the rest of the feedback counts.

        Raises:
            BadInput: the interaction has no such critique or refinement, or the feedback has a label or a rating for an
                imported question, which has no response; nothing is stored.
            Conflict: the feedback's id belongs to other feedback.
            NotFound: the interaction's task is not served any more, so nothing could be graded.
        """
        task = self.tasks.get(interaction.task)
        _check_named(body, interaction)
        response = interaction.response
        for field in ("correct", "rating"):
            if response is None and getattr(body, field) is not None:
                raise BadInput("this question has no response that could be judged; send a reference", field=field)
        edited_reference = await self._stated(body.edited_response, question=interaction.question, task=task)
        reference = body.reference or edited_reference
        # A reference for a question without a response is compared with itself, so that it is read once.
        first = response or reference or ""
        texts = [(first, False), *map(_text_of, interaction.refinements)]
        graded = await self.graded(texts, reference, question=interaction.question, task=task.name)
        grade, *refined = graded.grades
        regraded = {
            item.id: new_grade
            for item, new_grade in zip(interaction.refinements, refined, strict=True)
            if new_grade is not None
        }
        feedback = Feedback(
            id=body.feedback_id or new_id(),
            interaction_id=interaction.id,
            key_id=key_id,
            created_at=now(),
            source=FeedbackSource.CALLER,
            critique_id=body.critique_id,
            refinement_id=body.refinement_id,
            correct=body.correct,
            helpful=body.helpful,
            reference=body.reference,
            edited_response=body.edited_response,
            edited_reference=edited_reference,
            rating=body.rating,
            comment=body.comment,
            metadata=body.metadata,
            grade=None if response is None else grade,
            refinement_grades=regraded,
            grader=graded.grader,
            grade_problem=graded.problem,
        )
        stored = await self._recorder.record(feedback)
        assert isinstance(stored.record, Feedback)
        return stored.record

    async def own_grades(self, interaction: Interaction) -> dict[UUID, Grade]:
        """The grades of an interaction's refinements against its own reference."""
        texts = [_text_of(item) for item in interaction.refinements]
        task = self.tasks.get(interaction.task)
        graded = await self.graded(texts, interaction.reference, question=interaction.question, task=task.name)
        found = zip(interaction.refinements, graded.grades, strict=True)
        return {item.id: grade for item, grade in found if grade is not None}

    async def _stated(self, edited: str | None, *, question: str, task: ServedTask) -> str | None:
        """The answer that an edited response states; None if it states none that answers can be graded against."""
        stated = None if edited is None else task.task.stated_answer(edited)
        if edited is None or stated is None:
            return None
        try:
            await grade_one(self._graders[task.name], Submission(edited, stated, question=question))
        except (UnreadableReference, EngineError):
            return None
        return stated

    def _calibrated(self, critiques: Iterable[Critique], critic: CriticVersion) -> tuple[Critique, ...]:
        """The critiques with the critic's calibrated probability. A supplied critique keeps its probability."""
        calibration = self._critics.pointers.calibration(critic.version)
        if calibration is None:
            return tuple(critiques)
        return tuple(
            item
            if item.supplied
            else replace(item, calibrated_p_right=calibration.p_right(item.p_correct, item.p_incorrect))
            for item in critiques
        )

    async def graded(
        self, texts: Sequence[tuple[str, bool]], reference: str | None, *, question: str, task: str
    ) -> _Graded:
        """The grade of each text, which its token limit cut or not, by a task's grader.

        All are None without a readable reference.

        Where the task's grader is behind an address that does not answer, there is no grade either, and `gadfly
        regrade` gives it later.
        """
        grader = self._graders[task]
        none: list[Grade | None] = [None] * len(texts)
        if reference is None:
            return _Graded(none)
        grades: list[Grade | None] = []
        submissions = [Submission(text, reference, is_cut, question) for text, is_cut in texts]
        try:
            with tracing.span("grade", {"gadfly.task": task, "gadfly.texts": len(submissions)}):
                outcomes = await grader.grade_all(submissions)
        except EngineError as error:
            log.warning("not_graded", reason=str(error))
            return _Graded(none, problem=f"not graded yet: {error}")
        for grade in outcomes:
            if isinstance(grade, UnreadableReference):
                return _Graded(none, grader=grader.version, problem=str(grade))
            grades.append(grade)
        return _Graded(grades, grader=grader.version)

    async def _vote(self, chains: Sequence[Chain], *, task: str) -> tuple[Chain, int]:
        """Majority vote (MV@K): the first chain that ends with the most frequent answer, and its number of votes."""
        cut = {number for number, chain in enumerate(chains) if chain.is_cut}
        with tracing.span("vote", {"gadfly.texts": len(chains)}):
            groups = await group_by_answer(self._graders[task], [chain.text for chain in chains], cut=cut)
        most_frequent = max(groups, key=len)  # of equals, max returns the first
        return chains[most_frequent[0]], len(most_frequent)

    def _record(self, kind: Kind, body: Options, prepared: Prepared) -> Interaction:
        return Interaction(
            id=prepared.interaction_id,
            kind=kind,
            created_at=now(),
            episode_id=prepared.episode_id,
            key_id=prepared.key_id,
            request_id=body.request_id,
            fingerprint=None,
            question=body.question,
            response=body.response,
            reference=body.reference,
            grade=None,
            metadata=body.metadata,
            parameters={},
            model=self._settings.model,
            prompt_set=prepared.task.prompts.name,
            task=prepared.task.name,
            task_version=prepared.task.task.version,
            critic_version=prepared.critic.version,
            adapter_sha256=prepared.critic.adapter_sha256,
            verdict=None,
            refined_response=None,
            stop_reason=None,
            usage=Usage(),
            latency_ms=None,
        )

    async def keep(self, interaction: Interaction) -> None:
        """Return once the record is durable. Raises as `Recorder.record`."""
        recording = asyncio.ensure_future(self._recorder.record(interaction))
        with self._metrics.durable.time(), tracing.span("record", {"gadfly.interaction_id": interaction.id}):
            try:
                await asyncio.shield(recording)
            except asyncio.CancelledError:
                # The caller disconnected. The record is stored all the same; its request id stays claimed until then.
                await asyncio.wait((recording,))
                raise
        self._metrics.observe(interaction)

    @asynccontextmanager
    async def _lease(self, prepared: Prepared, *, places: int) -> AsyncIterator[PromptSet]:
        """Lease a critic for a request, with its prompts; if no engine serves it, load it first.

        `places`: texts that the request generates at the same time.

        Raises:
            NoSlot: the engines have no slot for the critic now.
            EngineUnavailable: no engine can prove the critic, and the caller did not choose it by its number.
            AdapterRefused, BadAdapter: no engine can prove the critic that the caller chose by its number.
        """
        critic = prepared.critic
        line = self._critics.pointers.line(prepared.task.name)
        line.note_use()
        is_live = critic.version in line.answering()
        with self._critics.leases.take(critic.version, is_pinned=not is_live, places=places):
            try:
                yield await self._critics.loader.ready(critic)
            except (AdapterRefused, BadAdapter) as error:
                if prepared.is_named and not is_live:
                    raise
                log.warning("critic_cannot_answer", critic=critic.engine_name, reason=str(error))
                raise EngineUnavailable(f"no engine serves critic {critic.version} as it was published") from error


def _check_named(body: FeedbackRequest, interaction: Interaction) -> None:
    """Raises:
    BadInput: the critique or the refinement that the feedback is about is not the interaction's.
    """
    for field, named, own in (
        ("critique_id", body.critique_id, interaction.critiques),
        ("refinement_id", body.refinement_id, interaction.refinements),
    ):
        if named is not None and named not in {item.id for item in own}:
            kind = field.removesuffix("_id")
            raise BadInput(f"the interaction {interaction.id} has no {kind} {named}", field=field)


def fingerprint_of(body: BaseModel) -> str:
    """sha256 (hex) of a request's fields, which repeats under one request id must have in common.

    What changes only how the answer is sent is not part of it.
    """
    # Defaults are excluded, so that a release with a new option computes the same fingerprint for old requests.
    fields = body.model_dump(
        mode="json", exclude={"stream", "stream_options", "request_id", "brief"}, exclude_defaults=True
    )
    canonical = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(f"{type(body).__name__}:{canonical}".encode()).hexdigest()


def _text_of(refinement: Refinement) -> tuple[str, bool]:
    return refinement.text, refinement.is_cut


def _parameters(prepared: Prepared) -> dict[str, Any]:
    examples = {"examples": prepared.critic.examples} if prepared.critic.examples else {}
    return {
        "temperature": prepared.sampling.temperature,
        "max_tokens": prepared.sampling.max_tokens,
        "seed": prepared.sampling.seed,
        **words_of(prepared.task.prompts),
        **examples,
    }


def words_of(prompts: PromptSet) -> dict[str, Any]:
    """The verdict words of stored critiques, as a parameter of their interaction; nothing for the usual words."""
    words = prompts.words
    return {} if words.are_usual else {VERDICT_WORDS: [words.correct, words.incorrect]}


def _seeded(sampling: Sampling, sample: int) -> Sampling:
    return sampling if sampling.seed is None else replace(sampling, seed=seed_of_sample(sampling.seed, sample))


def _total(parts: tuple[Any, ...]) -> Usage:
    total = Usage()
    for part in parts:
        total += part.usage
    return total
