"""What callers send and get: the shapes of the HTTP API, and how records become answers.

An answer is built from the stored record alone, so a repeat of a request and a read of the interaction show what the
first answer showed.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    model_validator,
)

from core.critique import majority_verdict
from core.fields import FilledText, Metadata
from core.grading import Grade
from core.queries import Filters
from core.records import (
    CriticVersion,
    Critique,
    Feedback,
    FeedbackSource,
    Interaction,
    Kind,
    Pointer,
    Receipt,
    Refinement,
    StopReason,
    Swap,
    SwapKind,
    SwapStatus,
    Usage,
)
from core.refinement import When
from core.training import GateOutcome
from core.verdict import Verdict, VerdictSource, parse_critique
from service.critics import History

RequestId = Annotated[FilledText, Field(max_length=200)]
Count = Annotated[StrictInt, Field(ge=1, le=1_000_000)]
Temperature = Annotated[float, Field(strict=True, ge=0, le=2, allow_inf_nan=False)]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**62)]
Reason = Annotated[FilledText, Field(max_length=2000)]
CriticChoice = Literal["live", "candidate"] | Annotated[StrictInt, Field(ge=0, lt=2**31)]


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# ---------------------------------------------------------------------------------------------------------- requests


class Options(Wire):
    """What /critique and /refine both take."""

    question: FilledText = Field(description="The question that was asked.")
    response: FilledText = Field(description="The answer to judge.")
    reference: FilledText | None = Field(
        None, description="The right answer, if known. It grades the response and is never shown to the model."
    )
    critic: CriticChoice = Field("live", description="Which critic answers: live, candidate, or a version.")
    temperature: Temperature | None = Field(None, description="Sampling temperature of the critic.")
    max_tokens: Count | None = Field(None, description="Longest critique, and longest refinement, in tokens.")
    seed: Seed | None = Field(None, description="Same seed, same critic, same input: same answer.")
    stream: StrictBool = Field(False, description="Answer as server-sent events.")
    episode_id: UUID | None = Field(None, description="Groups what is said about one question; pins the critic.")
    request_id: RequestId | None = Field(
        None, description="Idempotency key of the caller: a repeat returns the first result."
    )
    metadata: Metadata = Field(default_factory=dict, description="The caller's own JSON, kept with the interaction.")


class CritiqueRequest(Options):
    n: Count = Field(1, description="How many critiques to sample.")


class RefineRequest(Options):
    critique: FilledText | None = Field(None, description="A critique to refine with, instead of asking the critic.")
    critique_id: UUID | None = Field(None, description="An earlier critique to refine with.")
    rounds: Count = Field(1, description="Rounds of critique and rewrite.")
    when: When = Field(When.ALWAYS, description="Rewrite always, or only what the critic calls incorrect.")
    samples: Count = Field(1, description="Independent runs; the answer that most of them end with is returned.")
    refine_temperature: Temperature = Field(0.0, description="Sampling temperature of the actor's rewrite.")

    @model_validator(mode="after")
    def _one_critique(self) -> Self:
        if self.critique is not None and self.critique_id is not None:
            raise ValueError("give either critique or critique_id, not both")
        return self


class FeedbackRequest(Wire):
    """Something said about an interaction, named by its id or by the request id it was asked with."""

    interaction_id: UUID | None = None
    request_id: RequestId | None = None
    correct: StrictBool | None = Field(None, description="Was the interaction's `response` correct?")
    reference: FilledText | None = Field(None, description="The right answer: grades the response again.")
    edited_response: FilledText | None = Field(None, description="How the answer should have read.")
    rating: Annotated[StrictInt, Field(ge=1, le=5)] | None = Field(None, description="1 (worst) to 5 (best).")
    comment: FilledText | None = None
    metadata: Metadata = Field(default_factory=dict)

    @model_validator(mode="after")
    def _about_one_thing(self) -> Self:
        if (self.interaction_id is None) == (self.request_id is None):
            raise ValueError("give exactly one of interaction_id and request_id")
        said = (self.correct, self.reference, self.edited_response, self.rating, self.comment)
        if all(value is None for value in said):
            raise ValueError("say at least one of correct, reference, edited_response, rating, comment")
        return self


class PromoteRequest(Wire):
    version: StrictInt = Field(ge=0, lt=2**31, description="The critic that is to be live.")
    reason: Reason | None = Field(None, description="Why, for whoever reads it later.")


class RollbackRequest(Wire):
    from_version: StrictInt | None = Field(
        None, ge=0, lt=2**31, description="The critic that must be live: a repeat then does not go forward again."
    )
    reason: Reason | None = Field(None, description="Why, for whoever reads it later.")


# ----------------------------------------------------------------------------------------------------------- answers


class UsageView(Wire):
    """Tokens as the engine counted them. Reading a critique's confidence is one completion token more."""

    prompt_tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> Self:
        return cls(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)


class CriticView(Wire):
    """Which critic answered. `adapter_sha256` is null for version 0, the base model under the critic's prompt."""

    version: int
    adapter_sha256: str | None


class StepView(Wire):
    text: str
    verdict: Verdict
    explanation: str


class ProbabilitiesView(Wire):
    """Full-vocabulary probabilities of the two verdict tokens after the verdict field."""

    correct: float
    incorrect: float


class CritiqueView(Wire):
    id: UUID
    round: int
    sample: int
    text: str
    steps: list[StepView]
    explanation: str
    verdict: Verdict
    stated_verdict: Verdict
    verdict_source: VerdictSource
    confidence: float | None
    probabilities: ProbabilitiesView | None
    finish_reason: str | None
    supplied: bool
    usage: UsageView

    @classmethod
    def of(cls, critique: Critique) -> Self:
        parsed = parse_critique(critique.text)
        probabilities = None
        if critique.p_correct is not None and critique.p_incorrect is not None:
            probabilities = ProbabilitiesView(correct=critique.p_correct, incorrect=critique.p_incorrect)
        return cls(
            id=critique.id,
            round=critique.round,
            sample=critique.sample,
            text=critique.text,
            steps=[StepView(text=s.text, verdict=s.verdict, explanation=s.explanation) for s in parsed.steps],
            explanation=parsed.explanation,
            verdict=critique.verdict,
            stated_verdict=critique.stated,
            verdict_source=critique.verdict_source,
            confidence=critique.confidence,
            probabilities=probabilities,
            finish_reason=critique.finish_reason,
            supplied=critique.supplied,
            usage=UsageView.of(critique.usage),
        )


class RefinementView(Wire):
    id: UUID
    critique_id: UUID
    round: int
    sample: int
    text: str
    grade: Grade | None
    finish_reason: str | None
    usage: UsageView

    @classmethod
    def of(cls, refinement: Refinement) -> Self:
        return cls(
            id=refinement.id,
            critique_id=refinement.critique_id,
            round=refinement.round,
            sample=refinement.sample,
            text=refinement.text,
            grade=refinement.grade,
            finish_reason=refinement.finish_reason,
            usage=UsageView.of(refinement.usage),
        )


class RoundView(Wire):
    """One round: its critique, and the rewrite unless the loop stopped before it."""

    critique: CritiqueView
    refinement: RefinementView | None


class SampleView(Wire):
    """One run of the loop: its rounds, the answer it ended with, and why it stopped."""

    sample: int
    rounds: list[RoundView]
    refined_response: str
    stop_reason: StopReason


class CritiqueResult(Wire):
    """The answer of /critique. `verdict`, `critique`, `steps` are the majority's over all samples.

    A tie has no verdict and no confidence; `critique` is then the first sample's.
    """

    id: UUID
    kind: Literal[Kind.CRITIQUE] = Kind.CRITIQUE
    episode_id: UUID
    request_id: str | None
    created_at: datetime
    critic: CriticView
    model: str
    prompt_set: str
    verdict: Verdict
    confidence: float | None
    verdict_source: VerdictSource
    critique: str
    steps: list[StepView]
    explanation: str
    critiques: list[CritiqueView]
    grade: Grade | None = Field(description="The response against the reference, when one is known.")
    usage: UsageView
    latency_ms: float

    @classmethod
    def of(cls, interaction: Interaction) -> Self:
        critiques = [CritiqueView.of(critique) for critique in interaction.critiques]
        verdict = majority_verdict(tuple(critique.verdict for critique in interaction.critiques))
        of_majority = [critique for critique in critiques if critique.verdict is verdict]
        chosen = of_majority[0] if of_majority else critiques[0]  # none has the verdict of a tie
        return cls(
            **_common(interaction),
            verdict=verdict,
            confidence=chosen.confidence if of_majority else None,
            verdict_source=chosen.verdict_source if of_majority else VerdictSource.NONE,
            critique=chosen.text,
            steps=chosen.steps,
            explanation=chosen.explanation,
            critiques=critiques,
        )


class RefineResult(Wire):
    """The answer of /refine. `verdict` is the critic's last one on the run that is returned."""

    id: UUID
    kind: Literal[Kind.REFINE] = Kind.REFINE
    episode_id: UUID
    request_id: str | None
    created_at: datetime
    critic: CriticView
    model: str
    prompt_set: str
    refined_response: str
    stop_reason: StopReason
    verdict: Verdict
    chosen_sample: int
    votes: int = Field(description="How many samples ended with the answer that is returned.")
    samples: list[SampleView]
    rounds: list[RoundView] = Field(description="The rounds of the sample that is returned.")
    grade: Grade | None = Field(description="The first response against the reference, when one is known.")
    refined_grade: Grade | None = Field(description="The refined response against the reference, when one is known.")
    usage: UsageView
    latency_ms: float

    @classmethod
    def of(cls, interaction: Interaction) -> Self:
        samples = _samples(interaction)
        chosen = next(sample for sample in samples if sample.refined_response == interaction.refined_response)
        last = chosen.rounds[-1]
        refined = [item.refinement for item in chosen.rounds if item.refinement is not None]
        return cls(
            **_common(interaction),
            refined_response=chosen.refined_response,
            stop_reason=chosen.stop_reason,
            verdict=last.critique.verdict,
            chosen_sample=chosen.sample,
            votes=interaction.parameters["votes"],
            samples=samples,
            rounds=chosen.rounds,
            refined_grade=refined[-1].grade if refined else interaction.grade,
        )


class FeedbackView(Wire):
    id: UUID
    interaction_id: UUID
    created_at: datetime
    source: FeedbackSource
    correct: bool | None
    reference: str | None
    edited_response: str | None
    rating: int | None
    comment: str | None
    metadata: dict[str, Any]
    grade: Grade | None = Field(description="The interaction's response against this feedback's reference.")

    @classmethod
    def of(cls, feedback: Feedback) -> Self:
        return cls(
            id=feedback.id,
            interaction_id=feedback.interaction_id,
            created_at=feedback.created_at,
            source=feedback.source,
            correct=feedback.correct,
            reference=feedback.reference,
            edited_response=feedback.edited_response,
            rating=feedback.rating,
            comment=feedback.comment,
            metadata=feedback.metadata,
            grade=feedback.grade,
        )


class InteractionSummary(Wire):
    """One line of GET /interactions."""

    id: UUID
    kind: Kind
    episode_id: UUID
    request_id: str | None
    created_at: datetime
    question: str
    response: str
    verdict: Verdict | None
    grade: Grade | None
    critic: CriticView | None

    @classmethod
    def of(cls, interaction: Interaction) -> Self:
        return cls(
            id=interaction.id,
            kind=interaction.kind,
            episode_id=interaction.episode_id,
            request_id=interaction.request_id,
            created_at=interaction.created_at,
            question=interaction.question,
            response=interaction.response,
            verdict=interaction.verdict,
            grade=interaction.grade,
            critic=critic_of(interaction),
        )


class InteractionView(InteractionSummary):
    """Everything kept about one interaction: what was sent, what was answered, and the feedback so far."""

    reference: str | None
    metadata: dict[str, Any]
    parameters: dict[str, Any]
    result: CritiqueResult | RefineResult | None = Field(
        description="As it was answered, with grades against the newest reference; null for imported rows."
    )
    feedback: list[FeedbackView]

    @classmethod
    def whole(cls, interaction: Interaction, feedback: list[Feedback]) -> Self:
        return cls(
            **dict(InteractionSummary.of(interaction)),
            reference=interaction.reference,
            metadata=interaction.metadata,
            parameters=interaction.parameters,
            result=result_of(interaction) if interaction.kind is not Kind.IMPORT else None,
            feedback=[FeedbackView.of(item) for item in feedback],
        )


class InteractionQuery(Wire):
    """Which interactions GET /interactions shows."""

    cursor: str | None = Field(None, max_length=200, description="`next_cursor` of the page before.")
    limit: int = Field(50, ge=1, le=200)
    kind: Kind | None = None
    verdict: Verdict | None = None
    grade: Grade | None = None
    episode_id: UUID | None = None
    critic_version: int | None = Field(None, ge=0, lt=2**31)
    has_feedback: bool | None = None
    since: AwareDatetime | None = Field(None, description="Created at or after this time.")
    until: AwareDatetime | None = Field(None, description="Created before this time.")

    def filters(self) -> Filters:
        return Filters(
            kind=self.kind,
            verdict=self.verdict,
            grade=self.grade,
            episode_id=self.episode_id,
            critic_version=self.critic_version,
            has_feedback=self.has_feedback,
            created_from=self.since,
            created_before=self.until,
        )


class InteractionPage(Wire):
    items: list[InteractionSummary]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last.")


class CriticVersionView(Wire):
    version: int
    parent: int | None
    base_model: str
    adapter_sha256: str | None
    created_at: datetime
    pointers: list[Pointer]

    @classmethod
    def of(cls, critic: CriticVersion, pointers: Mapping[Pointer, int]) -> Self:
        names = sorted(name for name, version in pointers.items() if version == critic.version)
        return cls(
            version=critic.version,
            parent=critic.parent,
            base_model=critic.base_model,
            adapter_sha256=critic.adapter_sha256,
            created_at=critic.created_at,
            pointers=names,
        )


class SwapView(Wire):
    """One move of the live pointer: asked for, done or refused."""

    id: UUID
    version: int
    from_version: int
    kind: SwapKind
    status: SwapStatus
    requested_at: datetime
    finished_at: datetime | None
    reason: str | None = Field(description="Why it was asked for, or why it was refused. For admins.")

    @classmethod
    def of(cls, swap: Swap) -> Self:
        return cls(
            id=swap.id,
            version=swap.version,
            from_version=swap.from_version,
            kind=swap.kind,
            status=swap.status,
            requested_at=swap.requested_at,
            finished_at=swap.finished_at,
            reason=swap.reason,
        )


class ReceiptView(Wire):
    """What one service proved and did when this version went live there."""

    swap_id: UUID
    replica_id: UUID
    created_at: datetime
    details: dict[str, Any] = Field(
        description="Hashes, each engine's proof, requests in flight at the move, how many were lost, and times."
    )

    @classmethod
    def of(cls, receipt: Receipt) -> Self:
        return cls(
            swap_id=receipt.swap_id,
            replica_id=receipt.replica_id,
            created_at=receipt.created_at,
            details=receipt.details,
        )


class CriticHistoryView(CriticVersionView):
    """One critic with where it comes from and how it went live."""

    run_id: UUID | None = Field(description="The training run that made it.")
    prompt_set: str | None
    outcome: GateOutcome | None = Field(description="What the gate of its run decided.")
    gate: dict[str, Any] | None = Field(description="The report of the gate.")
    swaps: list[SwapView] = Field(description="Newest first, those that were refused too.")
    receipts: list[ReceiptView] = Field(description="Newest first.")

    @classmethod
    def whole(
        cls, critic: CriticVersion, pointers: Mapping[Pointer, int], history: History, *, for_admin: bool
    ) -> Self:
        swaps, receipts = history.swaps, history.receipts
        if not for_admin:
            swaps = [replace(swap, reason=None) for swap in swaps]
            receipts = [replace(receipt, details=_without_engines(receipt.details)) for receipt in receipts]
        return cls(
            **dict(CriticVersionView.of(critic, pointers)),
            run_id=critic.run_id,
            prompt_set=critic.prompt_set,
            outcome=history.outcome,
            gate=history.gate,
            swaps=[SwapView.of(swap) for swap in swaps],
            receipts=[ReceiptView.of(receipt) for receipt in receipts],
        )


def _without_engines(details: dict[str, Any]) -> dict[str, Any]:
    proofs = [{name: value for name, value in proof.items() if name != "engine"} for proof in details["engines"]]
    return details | {"engines": proofs}


class Problem(BaseModel):
    """An RFC 9457 problem document."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: list[dict[str, Any]] | None = None


def result_of(interaction: Interaction) -> CritiqueResult | RefineResult:
    """The answer that an interaction of /critique or /refine was, or will be, given."""
    return CritiqueResult.of(interaction) if interaction.kind is Kind.CRITIQUE else RefineResult.of(interaction)


def critic_of(interaction: Interaction) -> CriticView | None:
    if interaction.critic_version is None:
        return None
    return CriticView(version=interaction.critic_version, adapter_sha256=interaction.adapter_sha256)


def _common(interaction: Interaction) -> dict[str, Any]:
    return {
        "id": interaction.id,
        "episode_id": interaction.episode_id,
        "request_id": interaction.request_id,
        "created_at": interaction.created_at,
        "critic": critic_of(interaction),
        "model": interaction.model,
        "prompt_set": interaction.prompt_set,
        "grade": interaction.grade,
        "usage": UsageView.of(interaction.usage),
        "latency_ms": interaction.latency_ms,
    }


def _samples(interaction: Interaction) -> list[SampleView]:
    rewrites = {refinement.critique_id: RefinementView.of(refinement) for refinement in interaction.refinements}
    runs: dict[int, list[RoundView]] = {}
    for critique in sorted(interaction.critiques, key=lambda item: (item.sample, item.round)):
        runs.setdefault(critique.sample, []).append(
            RoundView(critique=CritiqueView.of(critique), refinement=rewrites.get(critique.id))
        )
    samples = []
    for sample, rounds in runs.items():
        texts = [item.refinement.text for item in rounds if item.refinement is not None]
        samples.append(
            SampleView(
                sample=sample,
                rounds=rounds,
                refined_response=texts[-1] if texts else interaction.response,
                stop_reason=StopReason.ROUNDS if rounds[-1].refinement is not None else StopReason.JUDGED_CORRECT,
            )
        )
    return samples
