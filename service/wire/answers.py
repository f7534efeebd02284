"""Shapes of /critique and /refine.

An answer is built from the stored record alone, so a repeated request and a read of the interaction show the same as
the first answer.
"""

from datetime import datetime
from typing import Literal, Self
from uuid import UUID

from pydantic import (
    ConfigDict,
    Field,
    StrictBool,
    model_validator,
)

from gadfly.critique import majority_verdict
from gadfly.fields import FilledText, Metadata
from gadfly.grading import Grade
from gadfly.records import Critique, Interaction, Kind, StopReason
from gadfly.refinement import When
from gadfly.service.wire.common import (
    Count,
    CriticChoice,
    CriticView,
    RequestId,
    Seed,
    TaskName,
    Temperature,
    UsageView,
    Wire,
    critic_of,
)
from gadfly.task_names import DEFAULT_TASK
from gadfly.verdict import USUAL_WORDS, Verdict, VerdictSource, VerdictWords, parse_critique

VERDICT_WORDS = "verdict_words"
"""The parameter of an interaction with the verdict words of its critiques, where they are not the usual ones."""

_CONFIDENCE = "The critic's own probability of the verdict, among the two verdict words."
_CALIBRATED = (
    "The probability that the verdict is right, in the deployment's own traffic: calibrated on held-out answers. "
    "Null where the critic has no calibration (GET /critics/{version})."
)


class Options(Wire):
    """Fields that /critique and /refine share."""

    question: FilledText = Field(description="The question.")
    response: FilledText = Field(description="The answer to judge.")
    task: TaskName | None = Field(
        None, description="The task that question and answer belong to; null: the deployment's default task."
    )
    reference: FilledText | None = Field(
        None, description="The right answer, if known. It grades the response and is never shown to the model."
    )
    critic: CriticChoice = Field("live", description="Which critic of the task answers: live, candidate, or a version.")
    temperature: Temperature | None = Field(None, description="Sampling temperature of the critic.")
    max_tokens: Count | None = Field(
        None, description="Maximum length of each critique and each refinement, in tokens."
    )
    seed: Seed | None = Field(None, description="The same seed, critic and input give the same answer.")
    stream: StrictBool = Field(False, description="Send the answer as server-sent events.")
    brief: StrictBool = Field(
        False,
        description="Leave out what the answer would hold twice: `critiques` of a single critique, and `samples` of a "
        "single sample, are empty.",
    )
    episode_id: UUID | None = Field(
        None, description="Groups the interactions about one question; `live` then means the critic of the first."
    )
    request_id: RequestId | None = Field(
        None, description="The caller's idempotency key: a repeat returns the first result."
    )
    metadata: Metadata = Field(default_factory=dict, description="The caller's own JSON, stored with the interaction.")
    store: StrictBool = Field(
        True, description="false: a trial, of which nothing is stored. It has no request id, and belongs to no episode."
    )

    @model_validator(mode="after")
    def _a_trial_names_nothing(self) -> Self:
        if not self.store and (self.request_id is not None or self.episode_id is not None):
            raise ValueError("with store false, request_id and episode_id must not be given")
        return self


class CritiqueRequest(Options):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "question": "A box holds 3 pens. How many pens are in 2 boxes and 1 loose pen?",
                    "response": "2 * 3 = 6. The answer is 6.",
                }
            ]
        }
    )

    n: Count = Field(1, description="How many critiques to sample.")


class RefineRequest(Options):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "question": "A box holds 3 pens. How many pens are in 2 boxes and 1 loose pen?",
                    "response": "2 * 3 = 6. The answer is 6.",
                    "when": "if_incorrect",
                }
            ]
        }
    )

    critique: FilledText | None = Field(None, description="The caller's own critique to use instead of the critic's.")
    critique_id: UUID | None = Field(None, description="An earlier critique to use.")
    rounds: Count = Field(1, description="Rounds of critique and rewrite.")
    when: When = Field(When.ALWAYS, description="Rewrite always, or only if the critic judges the answer incorrect.")
    samples: Count = Field(1, description="Independent runs. The most frequent final answer is returned.")
    refine_temperature: Temperature = Field(0.0, description="Sampling temperature of the actor's rewrite.")

    @model_validator(mode="after")
    def _one_critique(self) -> Self:
        if self.critique is not None and self.critique_id is not None:
            raise ValueError("give either critique or critique_id, not both")
        return self


class StepView(Wire):
    text: str
    verdict: Verdict
    explanation: str


class ProbabilitiesView(Wire):
    """Probabilities, over the full vocabulary, of the two verdict tokens after the verdict field."""

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
    confidence: float | None = Field(description=_CONFIDENCE)
    calibrated_confidence: float | None = Field(description=_CALIBRATED)
    probabilities: ProbabilitiesView | None
    finish_reason: str | None
    supplied: bool
    usage: UsageView


class RefinementView(Wire):
    id: UUID
    critique_id: UUID
    round: int
    sample: int
    text: str
    grade: Grade | None
    finish_reason: str | None
    usage: UsageView


class RoundView(Wire):
    """One round: its critique, and its rewrite unless the loop stopped before it."""

    critique: CritiqueView
    refinement: RefinementView | None


class SampleView(Wire):
    """One run of the loop: its rounds, its final answer, and the reason it stopped."""

    sample: int
    rounds: list[RoundView]
    refined_response: str
    stop_reason: StopReason


class CritiqueResult(Wire):
    """The answer of /critique. `verdict` is the majority verdict of all samples.

    `critique`, `steps`, `explanation` and both confidences are those of the first sample with that verdict. A tie gives
    `unparsed` without a confidence, and the critique of the first unparsed sample, else of the first sample.
    """

    id: UUID
    kind: Literal[Kind.CRITIQUE] = Kind.CRITIQUE
    episode_id: UUID
    request_id: str | None
    created_at: datetime
    critic: CriticView
    model: str = Field(description="The critic's base model.")
    prompt_set: str
    task: str = Field(DEFAULT_TASK, description="The task that it belongs to.")
    verdict: Verdict
    confidence: float | None = Field(description=_CONFIDENCE)
    calibrated_confidence: float | None = Field(description=_CALIBRATED)
    verdict_source: VerdictSource
    critique: str
    steps: list[StepView]
    explanation: str
    critiques: list[CritiqueView]
    grade: Grade | None = Field(description="Grade of the response against the reference, if known.")
    grade_problem: str | None = Field(None, description="Why the reference cannot be read: there is no grade.")
    usage: UsageView
    latency_ms: float


class RefineResult(Wire):
    """The answer of /refine. `verdict` and both confidences are of the last critique in the sample that is returned."""

    id: UUID
    kind: Literal[Kind.REFINE] = Kind.REFINE
    episode_id: UUID
    request_id: str | None
    created_at: datetime
    critic: CriticView
    instead_of: int | None = Field(
        None,
        description="The version in whose place `critic` answered, because it learned verdicts only and not what helps "
        "a rewrite; null: `critic` is the one that was asked for.",
    )
    model: str = Field(description="The actor that rewrote the answer.")
    prompt_set: str
    task: str = Field(DEFAULT_TASK, description="The task that it belongs to.")
    refined_response: str
    stop_reason: StopReason
    verdict: Verdict
    confidence: float | None = Field(description=_CONFIDENCE)
    calibrated_confidence: float | None = Field(description=_CALIBRATED)
    chosen_sample: int
    votes: int = Field(description="Number of samples that ended with the returned answer.")
    samples: list[SampleView]
    rounds: list[RoundView] = Field(description="The rounds of the returned sample.")
    grade: Grade | None = Field(description="Grade of the original response against the reference, if known.")
    refined_grade: Grade | None = Field(description="Grade of the refined response against the reference, if known.")
    grade_problem: str | None = Field(None, description="Why the reference cannot be read: there is no grade.")
    usage: UsageView
    latency_ms: float


def result_of(interaction: Interaction, *, brief: bool = False) -> CritiqueResult | RefineResult:
    """The answer of /critique or /refine, or the critique of a chat answer, from the interaction's record.

    `brief`: without the lists that hold nothing new.
    """
    if interaction.kind is Kind.REFINE:
        refined = _refine_result(interaction)
        return refined.model_copy(update={"samples": []}) if brief and len(refined.samples) == 1 else refined
    judged = _critique_result(interaction)
    return judged.model_copy(update={"critiques": []}) if brief and len(judged.critiques) == 1 else judged


def _critique_result(interaction: Interaction) -> CritiqueResult:
    words = _words_of(interaction)
    critiques = [_critique(critique, words) for critique in interaction.critiques]
    verdict = majority_verdict(tuple(critique.verdict for critique in interaction.critiques))
    of_majority = [critique for critique in critiques if critique.verdict is verdict]
    chosen = of_majority[0] if of_majority else critiques[0]  # a tie's verdict may be no sample's
    return CritiqueResult.of(
        interaction,
        kind=Kind.CRITIQUE,
        critic=critic_of(interaction),
        verdict=verdict,
        confidence=chosen.confidence if of_majority else None,
        calibrated_confidence=chosen.calibrated_confidence if of_majority else None,
        verdict_source=chosen.verdict_source if of_majority else VerdictSource.NONE,
        critique=chosen.text,
        steps=chosen.steps,
        explanation=chosen.explanation,
        critiques=critiques,
    )


def _refine_result(interaction: Interaction) -> RefineResult:
    samples = _samples(interaction)
    chosen = next(sample for sample in samples if sample.refined_response == interaction.refined_response)
    last = chosen.rounds[-1].critique
    refined = [item.refinement for item in chosen.rounds if item.refinement is not None]
    return RefineResult.of(
        interaction,
        critic=critic_of(interaction),
        refined_response=chosen.refined_response,
        stop_reason=chosen.stop_reason,
        verdict=last.verdict,
        confidence=last.confidence,
        calibrated_confidence=last.calibrated_confidence,
        chosen_sample=chosen.sample,
        votes=interaction.parameters["votes"],
        instead_of=interaction.parameters.get("instead_of"),
        samples=samples,
        rounds=chosen.rounds,
        refined_grade=refined[-1].grade if refined else interaction.grade,
    )


def _words_of(interaction: Interaction) -> VerdictWords:
    given = interaction.parameters.get(VERDICT_WORDS)
    return USUAL_WORDS if given is None else VerdictWords(*given)


def _critique(critique: Critique, words: VerdictWords) -> CritiqueView:
    parsed = parse_critique(critique.text, words)
    probabilities = None
    if critique.p_correct is not None and critique.p_incorrect is not None:
        probabilities = ProbabilitiesView(correct=critique.p_correct, incorrect=critique.p_incorrect)
    return CritiqueView.of(
        critique,
        steps=parsed.steps,
        explanation=parsed.explanation,
        stated_verdict=critique.stated,
        probabilities=probabilities,
    )


def _samples(interaction: Interaction) -> list[SampleView]:
    rewrites = {refinement.critique_id: RefinementView.of(refinement) for refinement in interaction.refinements}
    runs: dict[int, list[RoundView]] = {}
    words = _words_of(interaction)
    for critique in sorted(interaction.critiques, key=lambda item: (item.sample, item.round)):
        runs.setdefault(critique.sample, []).append(
            RoundView(critique=_critique(critique, words), refinement=rewrites.get(critique.id))
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
