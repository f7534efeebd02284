"""Answers chat completions: the actor's answer, a refined one, or a critique, each stored as an interaction.

The pipeline is that of /critique and /refine (`gadfly.service.answering`); only the actor's own answers are generated
here. The response of a chat interaction is always the text that the caller got, because feedback is about that. A
refined answer therefore has two interactions in one episode: the one of /refine, with the actor's first answer and its
critiques, and the one whose id the caller gets.
"""

import random
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol
from uuid import UUID, uuid5

from gadfly import tracing
from gadfly.actor import Actor
from gadfly.chat import Chat, ChatReply, OnDelta
from gadfly.concurrency import gather
from gadfly.errors import BadInput, NotFound
from gadfly.records import Interaction, Kind, Usage, new_id, now
from gadfly.refinement import Role as Part
from gadfly.service.answering.answer import Answerer, fingerprint_of
from gadfly.service.answering.idempotency import Idempotency
from gadfly.service.critics.leases import Leases
from gadfly.service.front.conversation import Asked, read_answer, read_question, response_of
from gadfly.service.front.models import FrontModel, Writer, model_of
from gadfly.service.front.pieces import Trimmed
from gadfly.service.history import History
from gadfly.service.keyring import Caller
from gadfly.service.quotas import Quotas
from gadfly.service.wire.answers import CritiqueRequest, RefineRequest, RefineResult, result_of
from gadfly.service.wire.chat import ChatRequest
from gadfly.service.wire.feedback import FeedbackRequest
from gadfly.settings import Settings
from gadfly.storable import storable_text
from gadfly.tasks import ServedTask

# The caller's options that reach the actor under the same name.
_ACTOR_OPTIONS = (
    "stop", "top_p", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs",
    "response_format", "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort",
)  # fmt: skip
_NEUTRAL = {"top_p": 1, "response_format": {"type": "text"}, "tool_choice": "none"}  # they change nothing
_REFINED_OPTIONS = ("critic", "critic_temperature", "refine_temperature", "rounds", "when", "samples")


class ChatListener(Protocol):
    """Gets the progress of an answer while it is generated."""

    async def on_start(self, interaction_id: UUID, critic: int | None) -> None:
        """Called once, first. Not called for a repeated request id."""

    async def on_delta(self, choice: int, delta: dict[str, Any], logprobs: dict[str, Any] | None) -> None:
        """Called with each piece of an answer, in the form of OpenAI's chunks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """A durable answer: an interaction for each choice; of a critic, one interaction with a critique for each choice.

    `logprobs` are not stored, so an answer that is repeated for its request id lacks them.
    """

    interactions: tuple[Interaction, ...]
    logprobs: dict[int, dict[str, Any] | None] = field(default_factory=dict)  # by choice


class ChatAnswerer:
    """Answers /v1/chat/completions."""

    def __init__(
        self,
        *,
        settings: Settings,
        actor: Actor,
        answerer: Answerer,
        requests: Idempotency,
        history: History,
        leases: Leases,
        quotas: Quotas,
    ) -> None:
        self._settings = settings
        self._actor = actor
        self._answerer = answerer
        self._requests = requests
        self._history = history
        self._leases = leases
        self._quotas = quotas

    async def answer(
        self, caller: Caller, body: ChatRequest, *, request_id: str | None, listener: ChatListener | None = None
    ) -> Answered:
        """The durable answer; for a repeated request id, that of the first request.

        Raises:
            NotFound: no such model, critic or task.
            NotAllowed: the caller's key may not use the task.
            BadInput: an option does not fit the model or exceeds a limit, or the request id belongs to another request.
        """
        model = model_of(body.model)
        task = self._answerer.tasks.get(model.task)
        caller.require_task(task.name)
        _check_options(body, model, max_samples=self._settings.max_samples)
        if model.role is Writer.CRITIC:
            return await self._critique(caller, body, model, request_id, listener)
        read = partial(read_question, context=body.gadfly.context, max_chars=self._settings.max_text_chars)
        asked = read(body.turns())
        work = partial(self._work, caller, body, model, asked, request_id, listener)
        if request_id is None:
            return await work(None)
        own: list[Answered] = []

        async def first() -> Interaction:
            own.append(await work(fingerprint))
            return own[0].interactions[0]

        fingerprint = fingerprint_of(body)
        interaction = await self._requests.once(caller, request_id, fingerprint, first)
        if own and own[0].interactions[0].id == interaction.id:
            return own[0]
        others = [UUID(id) for id in interaction.parameters.get("choices", ())[1:]]
        return Answered(interactions=(interaction, *await gather(*(self._history.find(caller, id) for id in others))))

    async def _work(
        self,
        caller: Caller,
        body: ChatRequest,
        model: FrontModel,
        asked: Asked,
        request_id: str | None,
        listener: ChatListener | None,
        fingerprint: str | None,
    ) -> Answered:
        ids = [new_id() for _ in range(body.n or 1)]
        if listener is not None:
            await listener.on_start(ids[0], None)
        started = time.perf_counter()
        task = self._answerer.tasks.get(model.task)
        draft = replace(self._draft(caller, body, asked, ids[0], task), request_id=request_id, fingerprint=fingerprint)
        if model.role is Writer.ACTOR:
            replies = await self._converse(caller, body, None if listener is None else listener.on_delta)
            drafts = [replace(draft, id=id, request_id=None, fingerprint=None) for id in ids[1:]]
            answers = [
                _answered(each, body, reply, {"choice": place, "choices": [str(id) for id in ids]})
                for place, (each, reply) in enumerate(zip([draft, *drafts], replies, strict=True))
            ]
        else:
            replies = await self._converse(caller, body, None)
            answers = [await self._refined(caller, body, draft, replies[0], listener)]
        cut = [reply.finish_reason == "length" for reply in replies] if model.role is Writer.ACTOR else [False]
        texts = [(each.response or "", is_cut) for each, is_cut in zip(answers, cut, strict=True)]
        graded = await self._answerer.graded(texts, body.gadfly.reference, question=asked.question, task=task.name)
        latency_ms = (time.perf_counter() - started) * 1000
        stored = [
            replace(
                each,
                grade=grade,
                grader=graded.grader,
                grade_problem=graded.problem,
                latency_ms=latency_ms,
                critique_due=self._is_due(each),
            )
            for each, grade in zip(answers, graded.grades, strict=True)
        ]
        # The one with the request id last: where it is stored, all are.
        await gather(*(self._answerer.keep(each) for each in reversed(stored)))
        return Answered(
            interactions=tuple(stored), logprobs={place: reply.logprobs for place, reply in enumerate(replies)}
        )

    async def _converse(self, caller: Caller, body: ChatRequest, on_delta: OnDelta | None) -> tuple[ChatReply, ...]:
        options = {name: value for name in _ACTOR_OPTIONS if (value := getattr(body, name)) is not None}
        if body.seed is not None:
            options["seed"] = body.seed
        chat = Chat(
            messages=body.turns(),
            max_tokens=body.limit or self._settings.max_tokens,
            n=body.n or 1,
            options=options | {"temperature": self._temperature(body)},
        )
        with self._quotas.work(caller, calls=chat.n) as meter, self._leases.converse(places=chat.n):

            async def on_metered(choice: int, delta: dict[str, Any], logprobs: dict[str, Any] | None) -> None:
                meter.pieces += 1
                assert on_delta is not None
                await on_delta(choice, delta, logprobs)

            with tracing.span("solve", {"gadfly.actor": self._actor.name}):
                replies = await self._actor.converse(chat, on_delta=None if on_delta is None else on_metered)
        spent = sum((reply.usage for reply in replies), start=Usage())
        self._quotas.spend(caller, spent.prompt_tokens + spent.completion_tokens)
        return replies

    def _temperature(self, body: ChatRequest) -> float:
        return self._settings.temperature if body.temperature is None else body.temperature

    def _draft(self, caller: Caller, body: ChatRequest, asked: Asked, id: UUID, task: ServedTask) -> Interaction:
        options = {name: value for name in _ACTOR_OPTIONS if (value := getattr(body, name)) is not None}
        options.pop("tools", None)  # stored with the conversation
        return Interaction(
            id=id,
            kind=Kind.CHAT,
            created_at=now(),
            episode_id=new_id(),
            key_id=caller.key_id,
            request_id=None,
            fingerprint=None,
            question=asked.question,
            response="",
            reference=body.gadfly.reference,
            grade=None,
            metadata=body.metadata or {},
            parameters={
                "model": body.model,
                "actor": {
                    "temperature": self._temperature(body),
                    "max_tokens": body.limit or self._settings.max_tokens,
                    "seed": body.seed,
                    **options,
                },
            },
            model=self._actor.name,
            prompt_set=None,
            task=task.name,
            task_version=task.task.version,
            critic_version=None,
            adapter_sha256=None,
            verdict=None,
            refined_response=None,
            stop_reason=None,
            usage=Usage(),
            latency_ms=None,
        )

    async def _refined(
        self, caller: Caller, body: ChatRequest, draft: Interaction, reply: ChatReply, listener: ChatListener | None
    ) -> Interaction:
        """The interaction of an answer that was critiqued and rewritten; a reply without text stays as it is."""
        text = storable_text(reply.text)
        if not text.strip() or reply.message.get("tool_calls"):
            return _answered(draft, body, reply, {})
        given = {name: value for name in _REFINED_OPTIONS if (value := getattr(body.gadfly, name)) is not None}
        if "critic_temperature" in given:
            given["temperature"] = given.pop("critic_temperature")
        request = RefineRequest(
            task=draft.task,
            question=draft.question,
            response=text,
            reference=body.gadfly.reference,
            max_tokens=body.limit,
            seed=body.seed,
            **given,
        )
        shown = None if listener is None or request.samples > 1 else _LastRewrite(listener, request.rounds - 1)
        inner = await self._answerer.answer(caller, request, listener=shown)
        result = result_of(inner)
        assert isinstance(result, RefineResult)
        last = result.rounds[-1]
        rewrites = [each.refinement for each in result.rounds if each.refinement is not None]
        outcome = {
            "interaction_id": str(inner.id),
            "critic_version": inner.critic_version,
            "adapter_sha256": inner.adapter_sha256,
            "examples": inner.parameters.get("examples", 0),
            "verdict": last.critique.verdict.value,
            "confidence": last.critique.confidence,
            "stop_reason": result.stop_reason.value,
            "prompt_tokens": inner.usage.prompt_tokens,
            "completion_tokens": inner.usage.completion_tokens,
        }
        rewritten = replace(
            reply,
            message={"role": "assistant", "content": result.refined_response},
            finish_reason=rewrites[-1].finish_reason if rewrites else reply.finish_reason,
        )
        return replace(_answered(draft, body, rewritten, {"refined": outcome}), episode_id=inner.episode_id)

    async def _critique(
        self,
        caller: Caller,
        body: ChatRequest,
        model: FrontModel,
        request_id: str | None,
        listener: ChatListener | None,
    ) -> Answered:
        turns = body.turns()
        asked = read_answer(turns, context=body.gadfly.context, max_chars=self._settings.max_text_chars)
        request = CritiqueRequest(
            task=model.task,
            question=asked.question,
            response=asked.response,
            reference=body.gadfly.reference,
            critic=model.critic,
            n=body.n or 1,
            temperature=body.temperature,
            max_tokens=body.limit,
            seed=body.seed,
            request_id=request_id,
            metadata=body.metadata or {},
        )
        interaction = await self._answerer.answer(
            caller,
            request,
            listener=None if listener is None else _Critiques(listener),
            conversation={"messages": list(turns)},
        )
        return Answered(interactions=(interaction,))

    async def pass_feedback_on(self, caller: Caller, body: FeedbackRequest, interaction: Interaction) -> None:
        """Store what feedback about a refined answer says about the first answer too.

        A reference grades both answers; `correct` is about both only if no round changed the first one. The critic
        judged the first answer, so its verdict is compared with this label.
        """
        refined = interaction.parameters.get("refined") if interaction.kind is Kind.CHAT else None
        if refined is None:
            return
        try:
            first = await self._history.find(caller, UUID(refined["interaction_id"]))
        except NotFound:
            return  # it was deleted by itself
        correct = body.correct if first.response == interaction.response else None
        if correct is None and body.reference is None:
            return
        about_first = FeedbackRequest(
            feedback_id=None if body.feedback_id is None else uuid5(body.feedback_id, str(first.id)),
            interaction_id=first.id,
            correct=correct,
            reference=body.reference,
            metadata=body.metadata,
        )
        await self._answerer.feedback(about_first, first, key_id=caller.key_id)

    def _is_due(self, interaction: Interaction) -> bool:
        """Whether the live critic judges this answer in the background: a share of the answers that are text."""
        is_text = bool((interaction.response or "").strip()) and not _message_of(interaction).get("tool_calls")
        return is_text and random.random() < self._settings.chat_critique_share  # noqa: S311  # a sample, no secret


class _Critiques:
    """The critic's pieces as deltas of the choices: a choice is a sample."""

    def __init__(self, listener: ChatListener) -> None:
        self._listener = listener

    async def on_critic(self, version: int, interaction_id: UUID) -> None:
        await self._listener.on_start(interaction_id, version)

    async def on_piece(self, role: Part, round: int, sample: int, text: str) -> None:
        await self._listener.on_delta(sample, {"content": text}, None)


class _LastRewrite:
    """The pieces of the rewrite of the last round, which is the answer; without the white space around it."""

    def __init__(self, listener: ChatListener, last_round: int) -> None:
        self._listener = listener
        self._last_round = last_round
        self._trimmed = Trimmed()

    async def on_critic(self, version: int, interaction_id: UUID) -> None:
        """The answer has an interaction of its own, and has begun."""

    async def on_piece(self, role: Part, round: int, sample: int, text: str) -> None:
        if role is Part.REFINEMENT and round == self._last_round and (piece := self._trimmed.next(text)):
            await self._listener.on_delta(0, {"content": piece}, None)


def _answered(draft: Interaction, body: ChatRequest, reply: ChatReply, parameters: dict[str, Any]) -> Interaction:
    conversation: dict[str, Any] = {"messages": [*body.turns(), reply.message]}
    if body.tools:
        conversation["tools"] = body.tools
    return replace(
        draft,
        response=response_of(reply.message),
        conversation=conversation,
        parameters=draft.parameters | {"finish_reason": reply.finish_reason} | parameters,
        usage=reply.usage,
    )


def _message_of(interaction: Interaction) -> dict[str, Any]:
    assert interaction.conversation is not None
    message: dict[str, Any] = interaction.conversation["messages"][-1]
    return message


def _check_options(body: ChatRequest, model: FrontModel, *, max_samples: int) -> None:
    """Check that the options fit the model.

    Raises:
        BadInput: one does not; the message names it.
    """
    if body.n is not None and body.n > max_samples:
        raise BadInput(f"n must be at most {max_samples}", field="n")
    if model.role is not Writer.ACTOR:
        for name in _ACTOR_OPTIONS:
            value = getattr(body, name)
            if value and value != _NEUTRAL.get(name):
                raise BadInput(f"{name} is an option of the model actor, and not of {body.model}", field=name)
    if model.role is not Writer.REFINED:
        for name in _REFINED_OPTIONS:
            if getattr(body.gadfly, name) is not None:
                raise BadInput(
                    f"gadfly.{name} is an option of the model refined, and not of {body.model}", field=f"gadfly.{name}"
                )
    elif (body.n or 1) > 1:
        raise BadInput("the model refined gives one answer: n must be 1 (gadfly.samples runs several)", field="n")
