"""The critique-refine loop: K rounds, each a critique and the actor's rewrite with it, with one critic throughout.

Rounds are memoryless, as in the code released with Critique-RL (arXiv 2510.24320): each uses the question and the last
answer. The paper's formula uses the whole history.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from gadfly import tracing
from gadfly.actor import Actor
from gadfly.critique import critique
from gadfly.engine_client import OnText, Reply, Sampling
from gadfly.engine_pool import EnginePool
from gadfly.prompts import PromptSet
from gadfly.records import Critique, Refinement, StopReason, new_id
from gadfly.seeds import seed_of_round
from gadfly.verdict import Verdict


class When(StrEnum):
    """When the actor rewrites: always (the paper's soft gate), or only answers that the critic judges incorrect."""

    ALWAYS = "always"
    IF_INCORRECT = "if_incorrect"


class Role(StrEnum):
    CRITIQUE = "critique"
    REFINEMENT = "refinement"


OnPiece = Callable[[Role, int, int, str], Awaitable[None]]
"""Called with (role, round, sample, new text) for each piece of streamed text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """One run of the loop. `text` is the final answer: the last refinement, or the first answer without one."""

    critiques: tuple[Critique, ...]
    refinements: tuple[Refinement, ...]
    text: str
    stopped: StopReason

    @property
    def is_cut(self) -> bool:
        """Whether a token limit ended `text`. The first answer's end is not known and counts as its own."""
        return bool(self.refinements) and self.refinements[-1].is_cut


async def refine_chain(
    engines: EnginePool,
    actor: Actor,
    prompts: PromptSet,
    *,
    critic: str,
    question: str,
    response: str,
    rounds: int,
    when: When,
    critique_sampling: Sampling,
    refine_sampling: Sampling,
    sample: int = 0,
    first_critique: Critique | None = None,
    on_piece: OnPiece | None = None,
) -> Chain:
    """Run up to `rounds` rounds on `response`; `first_critique`, when given, replaces the critic in round 0.

    Raises the errors of `gadfly.engine_client.Engine.chat` and `gadfly.actor.Actor.chat`.
    """
    critiques: list[Critique] = []
    refinements: list[Refinement] = []
    answer = response
    for round in range(rounds):
        with tracing.span("round", {"gadfly.round": round, "gadfly.sample": sample}):
            if round == 0 and first_critique is not None:
                judged = first_critique
            else:
                (judged,) = await critique(
                    engines,
                    prompts,
                    model=critic,
                    question=question,
                    response=answer,
                    sampling=_shifted(critique_sampling, round),
                    round=round,
                    sample=sample,
                    on_text=_piece(on_piece, Role.CRITIQUE, round, sample),
                )
            critiques.append(judged)
            if when is When.IF_INCORRECT and judged.verdict is Verdict.CORRECT:
                return Chain(
                    critiques=tuple(critiques),
                    refinements=tuple(refinements),
                    text=answer,
                    stopped=StopReason.JUDGED_CORRECT,
                )
            refined = await refine(
                actor,
                prompts,
                question=question,
                response=answer,
                judged=judged,
                sampling=_shifted(refine_sampling, round),
                round=round,
                sample=sample,
                on_piece=on_piece,
            )
            refinements.append(refined)
            answer = refined.text
    return Chain(critiques=tuple(critiques), refinements=tuple(refinements), text=answer, stopped=StopReason.ROUNDS)


async def refine(
    actor: Actor,
    prompts: PromptSet,
    *,
    question: str,
    response: str,
    judged: Critique,
    sampling: Sampling,
    round: int = 0,
    sample: int = 0,
    on_piece: OnPiece | None = None,
) -> Refinement:
    """Have the actor rewrite one answer with one critique. The refinement is not graded yet."""
    reply = await rewrite(
        actor,
        prompts,
        question=question,
        response=response,
        critique=judged.text,
        sampling=sampling,
        on_text=_piece(on_piece, Role.REFINEMENT, round, sample),
    )
    return Refinement(
        id=new_id(),
        round=round,
        sample=sample,
        critique_id=judged.id,
        text=reply.text.strip(),
        finish_reason=reply.finish_reason,
        grade=None,
        usage=reply.usage,
    )


async def rewrite(
    actor: Actor,
    prompts: PromptSet,
    *,
    question: str,
    response: str,
    critique: str,
    sampling: Sampling,
    on_text: OnText | None = None,
) -> Reply:
    """The actor's reply to the prompt for a rewrite of an answer with a critique."""
    with tracing.span("rewrite", {"gadfly.actor": actor.name}):
        (reply,) = await actor.chat(
            prompts.refine(question=question, response=response, critique=critique), sampling=sampling, on_text=on_text
        )
        return reply


def _shifted(sampling: Sampling, round: int) -> Sampling:
    """The same sampling with a separate seed for each round, so that equal answers get new critiques."""
    return sampling if sampling.seed is None else replace(sampling, seed=seed_of_round(sampling.seed, round))


def _piece(
    on_piece: OnPiece | None, role: Role, round: int, sample: int
) -> Callable[[int, str], Awaitable[None]] | None:
    if on_piece is None:
        return None

    async def on_text(_: int, text: str) -> None:
        await on_piece(role, round, sample, text)

    return on_text
