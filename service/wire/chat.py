"""Shapes of /v1, as OpenAI's API defines them, with Gadfly's own options and results under `gadfly`.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, field_validator, model_validator

from gadfly.fields import FilledText, Metadata, check_storable
from gadfly.refinement import When
from gadfly.service.front.conversation import Context
from gadfly.service.wire.common import (
    Count,
    CriticChoice,
    CriticView,
    RequestId,
    Seed,
    Temperature,
    Wire,
)
from gadfly.verdict import Verdict

Penalty = Annotated[float, Field(strict=True, ge=-2, le=2, allow_inf_nan=False)]
Stop = Annotated[StrictStr, Field(min_length=1, max_length=200)]


class TextPart(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: Literal["text"]
    text: StrictStr


class ChatMessage(BaseModel):
    """One turn. Other fields of OpenAI's messages (`name`, `tool_calls`, `tool_call_id`) are passed on as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: StrictStr | list[TextPart] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _is_text(cls, content: Any) -> Any:
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type", "text") != "text":
                raise ValueError(f"content of the type {part['type']!r} is not supported: Gadfly judges text")
        return content


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    include_usage: StrictBool | None = None


class GadflyOptions(Wire):
    """Gadfly's own options. With OpenAI's clients: `extra_body={"gadfly": {"rounds": 2}}`."""

    reference: FilledText | None = Field(
        None, description="The right answer, if known. It grades the answer and is never shown to a model."
    )
    context: Context = Field(
        Context.TURNS,
        description="Which turns besides the last user turn the critic sees: `turns` (without system turns), `all`, or "
        "`none`.",
    )
    request_id: RequestId | None = Field(
        None, description="The caller's idempotency key, also accepted as the header `Idempotency-Key`."
    )
    critic: CriticChoice | None = Field(None, description="`refined`: the critic (live, candidate, or a version).")
    critic_temperature: Temperature | None = Field(None, description="`refined`: sampling temperature of the critic.")
    refine_temperature: Temperature | None = Field(None, description="`refined`: sampling temperature of the rewrite.")
    rounds: Count | None = Field(None, description="`refined`: rounds of critique and rewrite; 1 if not given.")
    when: When | None = Field(None, description="`refined`: rewrite `always` (if not given), or `if_incorrect`.")
    samples: Count | None = Field(None, description="`refined`: independent runs, of which the majority answers.")


class ChatRequest(Wire):
    """A request of /v1/chat/completions. Fields that are not listed here are refused."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "refined",
                    "messages": [{"role": "user", "content": "What is 3/4 of 60?"}],
                    "max_tokens": 64,
                    "gadfly": {"when": "if_incorrect", "reference": "45"},
                }
            ]
        }
    )

    model: StrictStr = Field(
        max_length=200,
        description="`actor`, `refined`, `critic` or `critic@N`; of another task than the default one with its name "
        "and a slash in front, as `sql/refined`.",
    )
    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    n: Count | None = Field(None, description="Number of answers (`actor`) or critiques (`critic`).")
    temperature: Temperature | None = Field(None, description="If not given, the deployment's temperature.")
    max_tokens: Count | None = Field(None, description="If not given, the deployment's limit.")
    max_completion_tokens: Count | None = Field(None, description="The same; takes precedence.")
    seed: Seed | None = None
    metadata: Metadata | None = Field(None, description="Stored with the interaction.")
    gadfly: GadflyOptions = GadflyOptions()

    # Options of the actor alone. The actor's endpoint decides whether it supports them.
    stop: Stop | list[Stop] | None = None
    top_p: Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: StrictStr | dict[str, Any] | None = None
    parallel_tool_calls: StrictBool | None = None
    reasoning_effort: StrictStr | None = None

    # Accepted, without effect.
    user: StrictStr | None = None
    store: StrictBool | None = None
    service_tier: StrictStr | None = None
    safety_identifier: StrictStr | None = None
    prompt_cache_key: StrictStr | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_storable(cls, data: Any) -> Any:
        check_storable(data)
        return data

    def turns(self) -> tuple[dict[str, Any], ...]:
        """The messages as the caller sent them, without null fields."""
        return tuple(message.model_dump(mode="json", exclude_none=True) for message in self.messages)

    @property
    def limit(self) -> int | None:
        """The most tokens of a text."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class ChatUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatChoice(BaseModel):
    index: int
    message: dict[str, Any]
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class GadflyResult(BaseModel):
    """What Gadfly adds to an answer: the interaction's id for /feedback, and the critic's verdict where one judged."""

    interaction_id: UUID = Field(description="The interaction of the first choice.")
    interaction_ids: list[UUID] = Field(description="The interaction of each choice, in order.")
    episode_id: UUID
    actor: str | None = Field(description="The model that answered or rewrote.")
    critic: CriticView | None
    verdict: Verdict | None = Field(description="`refined`: of the last critique. `critic`: of the majority.")
    confidence: float | None
    refinement_id: UUID | None = Field(
        None, description="`refined`: the interaction with the first answer, its critiques and its rewrites."
    )
    stop_reason: str | None = Field(None, description="`refined`: why the rounds ended.")


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage
    gadfly: GadflyResult


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["gadfly"] = "gadfly"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorBody(BaseModel):
    """The body of every refusal under /v1."""

    error: OpenAIError
