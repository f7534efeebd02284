"""Records for tests: whole ones by default, each field replaceable."""

import random
import string
from typing import Any
from uuid import UUID

from gadfly.records import (
    Critique,
    Feedback,
    FeedbackSource,
    Interaction,
    Key,
    Kind,
    Refinement,
    StopReason,
    Tier,
    Usage,
    new_id,
    now,
)
from gadfly.verdict import Verdict, VerdictSource


def make_critique(**fields: Any) -> Critique:
    defaults: dict[str, Any] = {
        "id": new_id(),
        "round": 0,
        "sample": 0,
        "text": "Correctness of the final answer: wrong",
        "stated": Verdict.INCORRECT,
        "verdict": Verdict.INCORRECT,
        "verdict_source": VerdictSource.STATED,
        "p_correct": 0.1,
        "p_incorrect": 0.7,
        "finish_reason": "stop",
        "usage": Usage(prompt_tokens=10, completion_tokens=20),
    }
    return Critique(**(defaults | fields))


def make_refinement(critique_id: UUID, **fields: Any) -> Refinement:
    defaults: dict[str, Any] = {
        "id": new_id(),
        "round": 0,
        "sample": 0,
        "critique_id": critique_id,
        "text": "The answer is 4",
        "finish_reason": "stop",
        "grade": None,
        "usage": Usage(prompt_tokens=30, completion_tokens=5),
    }
    return Refinement(**(defaults | fields))


def make_interaction(*, samples: int = 1, refined: bool = False, **fields: Any) -> Interaction:
    """An interaction with a critique per sample and, if `refined`, a refinement with each."""
    critiques = tuple(make_critique(sample=sample) for sample in range(samples))
    refinements = tuple(make_refinement(item.id, sample=item.sample) for item in critiques) if refined else ()
    defaults: dict[str, Any] = {
        "id": new_id(),
        "kind": Kind.REFINE if refined else Kind.CRITIQUE,
        "created_at": now(),
        "episode_id": new_id(),
        "key_id": None,
        "request_id": None,
        "fingerprint": None,
        "question": "What is 2 + 2?",
        "response": "The answer is 5",
        "reference": None,
        "grade": None,
        "metadata": {"app": "test", "nested": [1, 2.5, None, {"deep": True}]},
        "parameters": {"n": samples, "temperature": 0.7, "seed": None},
        "model": "tiny",
        "prompt_set": "stepwise@1",
        "critic_version": 0,
        "adapter_sha256": None,
        "verdict": Verdict.INCORRECT,
        "refined_response": "The answer is 4" if refined else None,
        "stop_reason": StopReason.ROUNDS if refined else None,
        "usage": Usage(prompt_tokens=40, completion_tokens=25),
        "latency_ms": 12.5,
        "critiques": critiques,
        "refinements": refinements,
    }
    return Interaction(**(defaults | fields))


def make_feedback(interaction_id: UUID, **fields: Any) -> Feedback:
    defaults: dict[str, Any] = {
        "id": new_id(),
        "interaction_id": interaction_id,
        "key_id": None,
        "created_at": now(),
        "source": FeedbackSource.CALLER,
    }
    return Feedback(**(defaults | fields))


def make_key(**fields: Any) -> Key:
    defaults: dict[str, Any] = {
        "id": new_id(),
        "name": "test",
        "tier": Tier.CALLER,
        "hint": "gf_test",
        "created_at": now(),
        "expires_at": None,
        "revoked_at": None,
    }
    return Key(**(defaults | fields))


def unrelated_question(number: int) -> str:
    """A question of random words, with no near-duplicate among the others."""
    rng = random.Random(number)
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(8)) + "?"
