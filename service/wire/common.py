"""Shapes that several routes share."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
)

from gadfly.fields import FilledText
from gadfly.records import Interaction

RequestId = Annotated[FilledText, Field(max_length=200)]
Count = Annotated[StrictInt, Field(ge=1, le=1_000_000)]
Temperature = Annotated[float, Field(strict=True, ge=0, le=2, allow_inf_nan=False)]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**62)]
Reason = Annotated[FilledText, Field(max_length=2000)]
CriticChoice = Literal["live", "candidate"] | Annotated[StrictInt, Field(ge=0, lt=2**31)]


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, from_attributes=True)

    @classmethod
    def of(cls, record: object, **given: Any) -> Self:
        """The view of a record: its fields of the same names, and the given ones."""
        values = {name: getattr(record, name) for name in cls.model_fields if name not in given}
        return cls.model_validate(values | given)


class UsageView(Wire):
    """Tokens as counted by the engine. Reading a critique's confidence takes one completion token."""

    prompt_tokens: int
    completion_tokens: int


class CriticView(Wire):
    """The critic that answered. `adapter_sha256` is null for version 0, the base model under the critic's prompt."""

    version: int
    adapter_sha256: str | None


class Problem(BaseModel):
    """An RFC 9457 problem document."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: list[dict[str, Any]] | None = None


def critic_of(interaction: Interaction) -> CriticView | None:
    if interaction.critic_version is None:
        return None
    return CriticView(version=interaction.critic_version, adapter_sha256=interaction.adapter_sha256)
