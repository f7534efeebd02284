"""Shapes of /v1/completions, as OpenAI's API defines them, with Gadfly's own options and results under `gadfly`.

Source: https://platform.openai.com/docs/api-reference/completions
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

from gadfly.errors import BadInput
from gadfly.fields import FilledText, Metadata, check_storable
from gadfly.service.front.models import Writer, model_of
from gadfly.service.wire.chat import (
    ChatMessage,
    ChatRequest,
    ChatUsage,
    GadflyOptions,
    GadflyResult,
    Penalty,
    Stop,
    StreamOptions,
)
from gadfly.service.wire.common import Count, Seed, Temperature, Wire

OneText = Annotated[list[FilledText], Field(min_length=1, max_length=1)]


class CompletionRequest(Wire):
    """A request of /v1/completions. The prompt is a user's turn; other fields than these are refused."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "actor", "prompt": "What is 3/4 of 60?", "max_tokens": 64}]}
    )

    model: StrictStr = Field(
        max_length=200, description="`actor` or `refined`; of another task than the default one as `sql/refined`."
    )
    prompt: FilledText | OneText = Field(description="One text, or a list with one text.")
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    n: Count | None = Field(None, description="Number of answers (`actor`).")
    temperature: Temperature | None = Field(None, description="If not given, the deployment's temperature.")
    max_tokens: Count | None = Field(None, description="If not given, the deployment's limit.")
    seed: Seed | None = None
    metadata: Metadata | None = Field(None, description="Stored with the interaction.")
    gadfly: GadflyOptions = GadflyOptions()

    # Options of the actor alone. The actor's endpoint decides whether it supports them.
    stop: Stop | list[Stop] | None = None
    top_p: Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = Field(
        None, description="Log-probabilities of the tokens, with so many alternatives of each."
    )

    # Accepted at the value without effect.
    user: StrictStr | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None

    @model_validator(mode="before")
    @classmethod
    def _is_storable(cls, data: Any) -> Any:
        check_storable(data)
        return data

    def to_chat(self) -> ChatRequest:
        """The same request of /v1/chat/completions.

        Raises:
            BadInput: the model judges an answer, and a prompt has none.
            NotFound: there is no such model.
        """
        if model_of(self.model).role is Writer.CRITIC:
            raise BadInput(f"{self.model} judges an assistant turn: use /v1/chat/completions", field="model")
        prompt = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        fields = self.model_dump(exclude={"prompt", "logprobs", "echo", "best_of", "suffix"}, exclude_unset=True)
        if self.logprobs is not None:
            fields |= {"logprobs": True, "top_logprobs": self.logprobs or None}
        return ChatRequest(messages=[ChatMessage(role="user", content=prompt)], **fields)


class CompletionLogprobs(BaseModel):
    """Log-probabilities by token. `text_offset` counts characters from the beginning of the text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]

    @classmethod
    def of(cls, logprobs: dict[str, Any] | None, *, offset: int = 0) -> "CompletionLogprobs | None":
        """From those of a chat completion; `offset` is where their text begins."""
        if logprobs is None or logprobs.get("content") is None:
            return None
        tokens = logprobs["content"]
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token["token"])
        return cls(
            tokens=[token["token"] for token in tokens],
            token_logprobs=[token["logprob"] for token in tokens],
            top_logprobs=[{each["token"]: each["logprob"] for each in token["top_logprobs"]} for token in tokens],
            text_offset=offsets,
        )


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: ChatUsage
    gadfly: GadflyResult
