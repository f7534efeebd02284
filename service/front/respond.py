"""Responses of /v1/chat/completions and /v1/completions: one JSON document, or server-sent events."""

from collections import Counter
from functools import partial
from typing import Any
from uuid import UUID

import orjson
from fastapi import Request
from fastapi.responses import Response

from gadfly.records import Interaction, Kind, Usage
from gadfly.service.answering.streaming import (
    CLIENT_CLOSED_REQUEST,
    AnswerStream,
    critic_header,
    stream_response,
    until_disconnect,
)
from gadfly.service.container import Service
from gadfly.service.front.answer import Answered
from gadfly.service.front.errors import openai_error
from gadfly.service.keyring import Caller
from gadfly.service.wire.answers import CritiqueResult, result_of
from gadfly.service.wire.chat import (
    ChatChoice,
    ChatCompletion,
    ChatRequest,
    ChatUsage,
    GadflyResult,
)
from gadfly.service.wire.common import CriticView, Problem, critic_of
from gadfly.service.wire.completions import Completion, CompletionChoice, CompletionLogprobs
from gadfly.verdict import Verdict

_DONE = b"data: [DONE]\n\n"


async def respond(
    service: Service,
    caller: Caller,
    request: Request,
    body: ChatRequest,
    *,
    request_id: str | None,
    as_text: bool = False,
) -> Response:
    """Answer a request, or return the stored answer of its request id; `as_text`: in the form of /v1/completions."""
    service.require_started()
    service.room.require()
    if body.stream:
        stream = TextStream if as_text else ChatStream
        return await stream_response(request, stream(service, caller, body, request_id))
    answered = await until_disconnect(request, service.chat.answer(caller, body, request_id=request_id))
    if answered is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    completion = completion_of(answered, model=body.model)
    content = text_of(completion) if as_text else completion
    return Response(content.model_dump_json(), media_type="application/json", headers=_headers_of(completion.gadfly))


def completion_of(answered: Answered, *, model: str) -> ChatCompletion:
    """The body of an answer, from its records."""
    first = answered.interactions[0]
    usage = sum((_usage_of(each) for each in answered.interactions), start=Usage())
    choices = (
        _critiques_of(first) if first.kind is Kind.CRITIQUE else [_choice_of(each) for each in answered.interactions]
    )
    return ChatCompletion(
        id=_completion_id(first.id),
        created=int(first.created_at.timestamp()),
        model=model,
        choices=[
            ChatChoice(index=index, message=message, finish_reason=reason, logprobs=answered.logprobs.get(index))
            for index, (message, reason) in enumerate(choices)
        ],
        usage=ChatUsage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
        ),
        gadfly=_result_of(answered, choices=len(choices)),
    )


def text_of(completion: ChatCompletion) -> Completion:
    """The same answer in the form of /v1/completions."""
    return Completion(
        id=completion.id.replace("chatcmpl-", "cmpl-"),
        created=completion.created,
        model=completion.model,
        choices=[
            CompletionChoice(
                index=choice.index,
                text=choice.message["content"] or "",
                logprobs=CompletionLogprobs.of(choice.logprobs),
                finish_reason=choice.finish_reason,
            )
            for choice in completion.choices
        ],
        usage=completion.usage,
        gadfly=completion.gadfly,
    )


def _completion_id(interaction_id: UUID) -> str:
    return f"chatcmpl-{interaction_id}"


def _choice_of(interaction: Interaction) -> tuple[dict[str, Any], str | None]:
    assert interaction.conversation is not None
    message = interaction.conversation["messages"][-1]
    content = None if message.get("tool_calls") and not message.get("content") else message.get("content")
    return message | {"content": content, "refusal": message.get("refusal")}, interaction.parameters["finish_reason"]


def _critiques_of(interaction: Interaction) -> list[tuple[dict[str, Any], str | None]]:
    return [
        ({"role": "assistant", "content": critique.text, "refusal": None}, critique.finish_reason)
        for critique in interaction.critiques
    ]


def _usage_of(interaction: Interaction) -> Usage:
    refined = interaction.parameters.get("refined")
    if refined is None:
        return interaction.usage
    return interaction.usage + Usage(
        prompt_tokens=refined["prompt_tokens"], completion_tokens=refined["completion_tokens"]
    )


def _result_of(answered: Answered, *, choices: int) -> GadflyResult:
    first = answered.interactions[0]
    ids = [each.id for each in answered.interactions]
    common: dict[str, Any] = {
        "interaction_id": first.id,
        "interaction_ids": ids if len(ids) == choices else ids * choices,
        "episode_id": first.episode_id,
        "actor": first.model,
    }
    if first.kind is Kind.CRITIQUE:
        result = result_of(first)
        assert isinstance(result, CritiqueResult)
        judged = {"critic": critic_of(first), "verdict": result.verdict, "confidence": result.confidence}
        return GadflyResult(**common | {"actor": None}, **judged)
    refined = first.parameters.get("refined")
    if refined is None:
        return GadflyResult(**common, critic=None, verdict=None, confidence=None)
    return GadflyResult(
        **common,
        critic=CriticView.answered(
            refined["critic_version"], refined["adapter_sha256"], examples=refined.get("examples", 0)
        ),
        verdict=Verdict(refined["verdict"]),
        confidence=refined["confidence"],
        refinement_id=UUID(refined["interaction_id"]),
        stop_reason=refined["stop_reason"],
    )


def _headers_of(result: GadflyResult) -> dict[str, str]:
    return interaction_header(result.interaction_id) | critic_header(_version_of(result))


def _version_of(result: GadflyResult) -> int | None:
    return None if result.critic is None else result.critic.version


def interaction_header(interaction_id: UUID) -> dict[str, str]:
    """The header that names the interaction of an answer."""
    return {"x-gadfly-interaction-id": str(interaction_id)}


class ChatStream(AnswerStream[Answered]):
    """An answer as chunks. The last ones, with `finish_reason` and `gadfly`, are sent when the record is durable."""

    def __init__(self, service: Service, caller: Caller, body: ChatRequest, request_id: str | None) -> None:
        super().__init__()
        self._model = body.model
        self._counts_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        self._answer = partial(service.chat.answer, caller, body, request_id=request_id)
        self._interaction_id: UUID | None = None
        self._critic: int | None = None
        self._created = 0
        self._begun: set[int] = set()

    async def work(self) -> Answered:
        return await self._answer(listener=self)

    async def on_start(self, interaction_id: UUID, critic: int | None) -> None:
        self._interaction_id, self._critic = interaction_id, critic
        self._created = _created_at(interaction_id)

    async def on_delta(self, choice: int, delta: dict[str, Any], logprobs: dict[str, Any] | None) -> None:
        self.send(self._chunk([self._piece(choice, delta, logprobs)]))

    def ended(self, result: Answered) -> bytes:
        completion = completion_of(result, model=self._model)
        self._interaction_id = completion.gadfly.interaction_id
        self._critic = _version_of(completion.gadfly)
        self._created = _created_at(self._interaction_id)
        events = [
            self._chunk([self._piece(choice.index, _as_delta(choice.message), choice.logprobs)])
            for choice in completion.choices
            if choice.index not in self._begun
        ]
        for choice in completion.choices:
            is_last = choice is completion.choices[-1]
            events.append(
                self._chunk(
                    [self._finish(choice)], gadfly=completion.gadfly.model_dump(mode="json") if is_last else None
                )
            )
        if self._counts_usage:
            events.append(self._chunk([], usage=completion.usage.model_dump()))
        return b"".join([*events, _DONE])

    def failed(self, document: Problem) -> bytes:
        return b"data: " + openai_error(document)[1].model_dump_json().encode() + b"\n\n"

    def headers(self) -> dict[str, str]:
        known = {} if self._interaction_id is None else interaction_header(self._interaction_id)
        return known | critic_header(self._critic)

    def _piece(self, choice: int, delta: dict[str, Any], logprobs: dict[str, Any] | None) -> dict[str, Any]:
        if choice not in self._begun:
            self._begun.add(choice)
            delta = {"content": "", **delta, "role": "assistant"}
        return {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _finish(self, choice: ChatChoice) -> dict[str, Any]:
        return {"index": choice.index, "delta": {}, "logprobs": None, "finish_reason": choice.finish_reason}

    def _head(self, interaction_id: UUID) -> dict[str, Any]:
        return {"id": _completion_id(interaction_id), "object": "chat.completion.chunk"}

    def _chunk(
        self,
        choices: list[dict[str, Any]],
        *,
        gadfly: dict[str, Any] | None = None,
        usage: dict[str, int] | None = None,
    ) -> bytes:
        assert self._interaction_id is not None
        chunk: dict[str, Any] = {
            **self._head(self._interaction_id),
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        if self._counts_usage:
            chunk["usage"] = usage
        if gadfly is not None:
            chunk["gadfly"] = gadfly
        return b"data: " + orjson.dumps(chunk) + b"\n\n"


class TextStream(ChatStream):
    """An answer in the form of /v1/completions, as chunks."""

    def __init__(self, service: Service, caller: Caller, body: ChatRequest, request_id: str | None) -> None:
        super().__init__(service, caller, body, request_id)
        self._sent: Counter[int] = Counter()  # characters by choice

    def _piece(self, choice: int, delta: dict[str, Any], logprobs: dict[str, Any] | None) -> dict[str, Any]:
        self._begun.add(choice)
        text = delta.get("content") or ""
        found = CompletionLogprobs.of(logprobs, offset=self._sent[choice])
        self._sent[choice] += len(text)
        return {"index": choice, "text": text, "logprobs": found and found.model_dump(), "finish_reason": None}

    def _finish(self, choice: ChatChoice) -> dict[str, Any]:
        return {"index": choice.index, "text": "", "logprobs": None, "finish_reason": choice.finish_reason}

    def _head(self, interaction_id: UUID) -> dict[str, Any]:
        return {"id": f"cmpl-{interaction_id}", "object": "text_completion"}


def _created_at(interaction_id: UUID) -> int:
    """The seconds since 1970 in a UUIDv7."""
    return (interaction_id.int >> 80) // 1000


def _as_delta(message: dict[str, Any]) -> dict[str, Any]:
    calls = [{"index": index, **call} for index, call in enumerate(message.get("tool_calls") or ())]
    return message | ({"tool_calls": calls} if calls else {})
