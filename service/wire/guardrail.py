"""Shapes of LiteLLM's generic guardrail API. Unknown fields are ignored, because LiteLLM adds some in its releases.

Source: https://docs.litellm.ai/docs/adding_provider/generic_guardrail_api
"""

from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StrictStr, model_validator

from gadfly.fields import check_storable
from gadfly.service.wire.common import CriticChoice, TaskName

Action = Literal["NONE", "BLOCKED", "GUARDRAIL_INTERVENED"]


_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


def _texts(content: Any) -> Any:
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    return [
        part
        for part in content
        if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)
    ]


class GuardMode(StrEnum):
    """What happens to an answer that the critic judges incorrect."""

    LOG = "log"  # nothing: it is stored, and judged in the background
    BLOCK = "block"
    REWRITE = "rewrite"


class GuardOptions(BaseModel):
    """Gadfly's options: `additional_provider_specific_params` in LiteLLM's configuration, or in a request to it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    mode: GuardMode = Field(
        GuardMode.LOG,
        description="For an answer that is judged incorrect: `log` lets it pass and judges it in the background, "
        "`block` refuses it, `rewrite` replaces it by a rewrite.",
    )
    threshold: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="`block`: the least confidence of the verdict; below it the answer passes."
    )
    critic: CriticChoice = Field("live", description="live, candidate, or a version.")
    task: TaskName | None = Field(
        None, description="The task that the answers belong to; null: the deployment's default task."
    )


class GuardrailRequest(BaseModel):
    """A call before a model (`request`) or after it (`response`)."""

    model_config = ConfigDict(
        extra="ignore",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "input_type": "response",
                    "litellm_call_id": "6f1c-of-one-call",
                    "structured_messages": [{"role": "user", "content": "What is 3/4 of 60?"}],
                    "texts": ["3/4 of 60 is 40. The answer is 40."],
                    "additional_provider_specific_params": {"mode": "block", "threshold": 0.6},
                }
            ]
        },
    )

    input_type: Literal["request", "response"]
    texts: list[StrictStr] | None = Field(None, max_length=128, description="Of a response: the text of each choice.")
    structured_messages: list[dict[str, Any]] | None = Field(
        None, max_length=10_000, description="The conversation, which LiteLLM sends before the call only."
    )
    litellm_call_id: Annotated[StrictStr, Field(min_length=1, max_length=200)] | None = Field(
        None, description="The same before and after the call."
    )
    litellm_trace_id: Annotated[StrictStr, Field(max_length=200)] | None = None
    model: Annotated[StrictStr, Field(max_length=200)] | None = Field(None, description="The model that is called.")
    additional_provider_specific_params: GuardOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_storable(cls, data: Any) -> Any:
        check_storable(data)
        return data

    @property
    def options(self) -> GuardOptions:
        return self.additional_provider_specific_params or GuardOptions()

    def turns(self) -> list[dict[str, Any]]:
        """The conversation as far as a critic reads it: turns of known roles, without images and other media."""
        return [
            {**message, "content": _texts(message.get("content"))}
            for message in self.structured_messages or ()
            if message.get("role") in _ROLES
        ]


class GuardrailResult(BaseModel):
    """What Gadfly adds to a decision."""

    interaction_ids: list[UUID] = Field(description="The interaction of each choice, for /feedback.")


class GuardrailResponse(BaseModel):
    """The decision."""

    action: Action = Field(description="Let it pass, refuse it, or use `texts` in its place.")
    blocked_reason: str | None = None
    texts: list[str] | None = Field(None, description="As many as were sent.")
    gadfly: GuardrailResult
