"""Answers LiteLLM's generic guardrail API: judges what other models answer, behind a proxy that its callers know.

LiteLLM calls before a model with the conversation, and after it with the answers alone; its call id joins the two. The
conversation waits in Postgres for a quarter of an hour, because another replica may get the second call.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog

from gadfly import store
from gadfly.concurrency import gather
from gadfly.errors import BadInput, PromptTooLong
from gadfly.records import Interaction, Kind, Usage, new_id, now
from gadfly.refinement import When
from gadfly.service.answering.answer import Answerer
from gadfly.service.front.conversation import Asked, Context, read_question
from gadfly.service.keyring import Caller
from gadfly.service.wire.answers import CritiqueRequest, CritiqueResult, RefineRequest, RefineResult, result_of
from gadfly.service.wire.guardrail import GuardMode, GuardrailRequest, GuardrailResponse, GuardrailResult
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.verdict import Verdict

log = structlog.get_logger(__name__)

KEPT = timedelta(minutes=15)


class Guardrail:
    """Decides about the answers of models behind LiteLLM."""

    def __init__(self, database: Database, *, settings: Settings, answerer: Answerer) -> None:
        self._database = database
        self._settings = settings
        self._answerer = answerer

    async def decide(self, caller: Caller, body: GuardrailRequest) -> GuardrailResponse:
        """Keep the conversation before a call; after it, judge each answer. One that cannot be judged passes.

        Raises:
            BadInput: the conversation of an answer is not known.
            NotFound: the task is not served.
            NotAllowed: the caller's key may not use the task.
            StoreUnavailable: the conversation cannot be kept or read.
        """
        caller.require_task(self._answerer.tasks.get(body.options.task).name)
        if body.input_type == "request":
            await self._keep(caller, body)
            return _passed([])
        texts = body.texts or []
        messages = await self._messages(caller, body)
        try:
            asked = read_question(messages, context=Context.TURNS, max_chars=self._settings.max_text_chars)
        except BadInput as error:  # no question in words: a critic cannot judge the answer, so it passes
            log.info("answer_not_guarded", call=body.litellm_call_id, reason=str(error))
            return _passed([])
        judge = {GuardMode.LOG: self._log, GuardMode.BLOCK: self._block, GuardMode.REWRITE: self._rewrite}
        decide = judge[body.options.mode]

        async def one(text: str) -> GuardrailResponse:
            try:
                return await decide(caller, body, messages, asked, text)
            except PromptTooLong as error:
                log.info("answer_not_guarded", call=body.litellm_call_id, reason=str(error))
                return _passed([])

        return _joined(texts, await gather(*(one(text) for text in texts if text.strip())))

    async def _keep(self, caller: Caller, body: GuardrailRequest) -> None:
        if body.litellm_call_id is None or not body.structured_messages:
            return
        async with self._database.session() as session:
            await store.guarded.keep(session, body.litellm_call_id, body.turns(), key_id=caller.key_id, keep_for=KEPT)

    async def _messages(self, caller: Caller, body: GuardrailRequest) -> list[dict[str, Any]]:
        if body.structured_messages:
            return body.turns()
        found = None
        if body.litellm_call_id is not None:
            async with self._database.session() as session:
                found = await store.guarded.read(session, body.litellm_call_id, key_id=caller.key_id)
        if found is None:
            raise BadInput(
                "the conversation of this answer is not known: set the guardrail's mode to [pre_call, post_call], so "
                "that LiteLLM sends the question too",
                field="litellm_call_id",
            )
        return found

    async def _log(
        self, caller: Caller, body: GuardrailRequest, messages: list[dict[str, Any]], asked: Asked, text: str
    ) -> GuardrailResponse:
        task = self._answerer.tasks.get(body.options.task)
        interaction = Interaction(
            id=new_id(),
            kind=Kind.CHAT,
            created_at=now(),
            episode_id=new_id(),
            key_id=caller.key_id,
            request_id=None,
            fingerprint=None,
            question=asked.question,
            response=text,
            reference=None,
            grade=None,
            metadata=_metadata(body),
            parameters={"model": body.model, "actor": {}, "finish_reason": None},
            model=body.model or "unknown",
            prompt_set=None,
            task=task.name,
            task_version=task.task.version,
            critic_version=None,
            adapter_sha256=None,
            verdict=None,
            refined_response=None,
            stop_reason=None,
            usage=Usage(),
            latency_ms=0.0,
            conversation={"messages": [*messages, {"role": "assistant", "content": text}]},
            critique_due=True,
        )
        await self._answerer.keep(interaction)
        return _passed([interaction.id])

    async def _block(
        self, caller: Caller, body: GuardrailRequest, messages: list[dict[str, Any]], asked: Asked, text: str
    ) -> GuardrailResponse:
        request = CritiqueRequest(
            task=body.options.task,
            question=asked.question,
            response=text,
            critic=body.options.critic,
            metadata=_metadata(body),
        )
        interaction = await self._answerer.answer(caller, request, conversation={"messages": messages})
        result = result_of(interaction)
        assert isinstance(result, CritiqueResult)
        confidence = 1.0 if result.confidence is None else result.confidence
        if result.verdict is not Verdict.INCORRECT or confidence < body.options.threshold:
            return _passed([interaction.id])
        reason = (
            f"The critic (critic@{interaction.critic_version}) judges the answer incorrect, with a confidence of "
            f"{100 * confidence:.0f} %. Its critique is in the interaction {interaction.id}."
        )
        ids = GuardrailResult(interaction_ids=[interaction.id])
        return GuardrailResponse(action="BLOCKED", blocked_reason=reason, gadfly=ids)

    async def _rewrite(
        self, caller: Caller, body: GuardrailRequest, messages: list[dict[str, Any]], asked: Asked, text: str
    ) -> GuardrailResponse:
        request = RefineRequest(
            task=body.options.task,
            question=asked.question,
            response=text,
            critic=body.options.critic,
            when=When.IF_INCORRECT,
            metadata=_metadata(body),
        )
        interaction = await self._answerer.answer(caller, request, conversation={"messages": messages})
        result = result_of(interaction)
        assert isinstance(result, RefineResult)
        if result.refined_response == text:
            return _passed([interaction.id])
        ids = GuardrailResult(interaction_ids=[interaction.id])
        rewritten = [result.refined_response]
        return GuardrailResponse(action="GUARDRAIL_INTERVENED", texts=rewritten, gadfly=ids)


def _metadata(body: GuardrailRequest) -> dict[str, Any]:
    found = {"litellm_call_id": body.litellm_call_id, "litellm_trace_id": body.litellm_trace_id, "model": body.model}
    return {name: value for name, value in found.items() if value is not None}


def _passed(ids: list[UUID]) -> GuardrailResponse:
    return GuardrailResponse(action="NONE", gadfly=GuardrailResult(interaction_ids=ids))


def _joined(texts: list[str], decisions: Sequence[GuardrailResponse]) -> GuardrailResponse:
    """One decision about all choices: a blocked one blocks all, and the texts of the others stay as they are."""
    ids = GuardrailResult(interaction_ids=[id for each in decisions for id in each.gadfly.interaction_ids])
    for decision in decisions:
        if decision.action == "BLOCKED":
            return decision.model_copy(update={"gadfly": ids})
    if all(decision.action == "NONE" for decision in decisions):
        return GuardrailResponse(action="NONE", gadfly=ids)
    left = iter(decisions)
    replaced = [(next(left).texts or [text])[0] if text.strip() else text for text in texts]
    return GuardrailResponse(action="GUARDRAIL_INTERVENED", texts=replaced, gadfly=ids)
