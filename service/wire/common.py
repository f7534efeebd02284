"""Shapes that several routes share."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
)

from gadfly.fields import FilledText
from gadfly.records import CriticStatus, Interaction

RequestId = Annotated[FilledText, Field(max_length=200)]
Count = Annotated[StrictInt, Field(ge=1, le=1_000_000)]
Temperature = Annotated[float, Field(strict=True, ge=0, le=2, allow_inf_nan=False)]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**62)]
Reason = Annotated[FilledText, Field(max_length=2000)]


def _critic_choice(value: Any) -> Any:
    """One sentence in place of one for each member of the union."""
    if value in ("live", "candidate") or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ValueError(f"must be live, candidate, or the number of a version, not {str(value)[:40]!r}")


CriticChoice = Annotated[
    Literal["live", "candidate"] | Annotated[StrictInt, Field(ge=0, lt=2**31)], BeforeValidator(_critic_choice)
]


TaskName = Annotated[StrictStr, Field(pattern=r"^[a-z][a-z0-9-]{0,39}$", description="The name of a task.")]


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
    """The critic that answered. `adapter_sha256` is null for the base model."""

    version: int
    adapter_sha256: str | None
    status: CriticStatus = Field(
        description="`untrained`: version 0, the base model under the critic's prompt, which no gate has measured. "
        "`examples`: the base model with labelled examples in the critic's prompt."
    )

    @classmethod
    def answered(cls, version: int, adapter_sha256: str | None, *, examples: int = 0) -> Self:
        """The critic with this version, this adapter, and this number of examples in its prompt."""
        status = CriticStatus.of(adapter_sha256=adapter_sha256, examples=examples)
        return cls(version=version, adapter_sha256=adapter_sha256, status=status)


class FieldProblem(BaseModel):
    """What is wrong with one field of a request."""

    field: str
    message: str


class Problem(BaseModel):
    """An RFC 9457 problem document."""

    type: str = Field(description="Stable name of the kind of problem, as urn:gadfly:problem:NAME.")
    title: str
    status: int
    detail: str = Field(description="One sentence for a person.")
    instance: str | None = Field(None, description="The path of the request.")
    errors: list[FieldProblem] | None = Field(None, description="Each invalid field.")


def critic_of(interaction: Interaction) -> CriticView | None:
    if interaction.critic_version is None:
        return None
    examples = interaction.parameters.get("examples", 0)
    return CriticView.answered(interaction.critic_version, interaction.adapter_sha256, examples=examples)
