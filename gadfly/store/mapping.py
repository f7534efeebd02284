"""Rows from records and records from rows, by field name."""

from typing import Any
from uuid import UUID

from gadfly.grading import Grade
from gadfly.records import CriticVersion, Critique, Feedback, Interaction, Key, Refinement, Usage
from gadfly.store.tables import CriticVersionRow, CritiqueRow, FeedbackRow, InteractionRow, KeyRow, RefinementRow


def interaction_values(interaction: Interaction, hash_: bytes) -> dict[str, Any]:
    return {
        "id": interaction.id,
        "kind": interaction.kind,
        "created_at": interaction.created_at,
        "episode_id": interaction.episode_id,
        "question_hash": hash_,
        "key_id": interaction.key_id,
        "request_id": interaction.request_id,
        "fingerprint": interaction.fingerprint,
        "question": interaction.question,
        "response": interaction.response,
        "reference": interaction.reference,
        "grade": interaction.grade,
        "metadata": interaction.metadata,
        "parameters": interaction.parameters,
        "model": interaction.model,
        "prompt_set": interaction.prompt_set,
        "critic_version": interaction.critic_version,
        "adapter_sha256": interaction.adapter_sha256,
        "verdict": interaction.verdict,
        "refined_response": interaction.refined_response,
        "stop_reason": interaction.stop_reason,
        "prompt_tokens": interaction.usage.prompt_tokens,
        "completion_tokens": interaction.usage.completion_tokens,
        "latency_ms": interaction.latency_ms,
    }


def to_interaction(row: InteractionRow, *, is_whole: bool = True) -> Interaction:
    return Interaction(
        id=row.id,
        kind=row.kind,
        created_at=row.created_at,
        episode_id=row.episode_id,
        key_id=row.key_id,
        request_id=row.request_id,
        fingerprint=row.fingerprint,
        question=row.question,
        response=row.response,
        reference=row.reference,
        grade=row.grade,
        metadata=row.metadata_,
        parameters=row.parameters,
        model=row.model,
        prompt_set=row.prompt_set,
        critic_version=row.critic_version,
        adapter_sha256=row.adapter_sha256,
        verdict=row.verdict,
        refined_response=row.refined_response,
        stop_reason=row.stop_reason,
        usage=_to_usage(row),
        latency_ms=row.latency_ms,
        critiques=tuple(map(to_critique, row.critiques)) if is_whole else (),
        refinements=tuple(map(to_refinement, row.refinements)) if is_whole else (),
    )


def critique_values(critique: Critique, interaction_id: UUID, position: int) -> dict[str, Any]:
    return {
        "id": critique.id,
        "interaction_id": interaction_id,
        "position": position,
        "round": critique.round,
        "sample": critique.sample,
        "text": critique.text,
        "stated": critique.stated,
        "verdict": critique.verdict,
        "verdict_source": critique.verdict_source,
        "p_correct": critique.p_correct,
        "p_incorrect": critique.p_incorrect,
        "finish_reason": critique.finish_reason,
        "prompt_tokens": critique.usage.prompt_tokens,
        "completion_tokens": critique.usage.completion_tokens,
        "supplied": critique.supplied,
    }


def to_critique(row: CritiqueRow) -> Critique:
    return Critique(
        id=row.id,
        round=row.round,
        sample=row.sample,
        text=row.text,
        stated=row.stated,
        verdict=row.verdict,
        verdict_source=row.verdict_source,
        p_correct=row.p_correct,
        p_incorrect=row.p_incorrect,
        finish_reason=row.finish_reason,
        usage=_to_usage(row),
        supplied=row.supplied,
    )


def refinement_values(refinement: Refinement, interaction_id: UUID, position: int) -> dict[str, Any]:
    return {
        "id": refinement.id,
        "interaction_id": interaction_id,
        "position": position,
        "round": refinement.round,
        "sample": refinement.sample,
        "critique_id": refinement.critique_id,
        "text": refinement.text,
        "finish_reason": refinement.finish_reason,
        "grade": refinement.grade,
        "prompt_tokens": refinement.usage.prompt_tokens,
        "completion_tokens": refinement.usage.completion_tokens,
    }


def to_refinement(row: RefinementRow) -> Refinement:
    return Refinement(
        id=row.id,
        round=row.round,
        sample=row.sample,
        critique_id=row.critique_id,
        text=row.text,
        finish_reason=row.finish_reason,
        grade=row.grade,
        usage=_to_usage(row),
    )


def feedback_values(feedback: Feedback) -> dict[str, Any]:
    return {
        "id": feedback.id,
        "interaction_id": feedback.interaction_id,
        "key_id": feedback.key_id,
        "created_at": feedback.created_at,
        "source": feedback.source,
        "correct": feedback.correct,
        "reference": feedback.reference,
        "edited_response": feedback.edited_response,
        "rating": feedback.rating,
        "comment": feedback.comment,
        "metadata": feedback.metadata,
        "grade": feedback.grade,
        "refinement_grades": {str(id): grade.value for id, grade in feedback.refinement_grades.items()},
    }


def to_feedback(row: FeedbackRow) -> Feedback:
    return Feedback(
        id=row.id,
        interaction_id=row.interaction_id,
        key_id=row.key_id,
        created_at=row.created_at,
        source=row.source,
        correct=row.correct,
        reference=row.reference,
        edited_response=row.edited_response,
        rating=row.rating,
        comment=row.comment,
        metadata=row.metadata_,
        grade=row.grade,
        refinement_grades={UUID(id): Grade(grade) for id, grade in row.refinement_grades.items()},
    )


def _to_usage(row: InteractionRow | CritiqueRow | RefinementRow) -> Usage:
    return Usage(prompt_tokens=row.prompt_tokens, completion_tokens=row.completion_tokens)


def to_critic_version(row: CriticVersionRow) -> CriticVersion:
    return CriticVersion(
        version=row.version,
        parent=row.parent,
        base_model=row.base_model,
        adapter_path=row.adapter_path,
        adapter_sha256=row.adapter_sha256,
        created_at=row.created_at,
        run_id=row.run_id,
        prompt_set=row.prompt_set,
    )


def to_key(row: KeyRow) -> Key:
    return Key(
        id=row.id,
        name=row.name,
        tier=row.tier,
        hint=row.hint,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
