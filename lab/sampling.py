"""The value of more samples: majority vote and Pass@K against their cost in tokens, with a critic and without.

Without a critic, the actor answers K times. With a critic, it answers once, and K critiques and refinements of that
answer are sampled (arXiv 2510.24320, figure 4). Tokens are those written by actor and critic, including the first
answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from gadfly.lab import arena
from gadfly.store.training_data import LabelledAnswer
from gadfly.trainer.data import seed_of
from gadfly.trainer.measure.evaluate import Bench, graded_samples, several_samples
from gadfly.trainer.measure.metrics import Samples, measure_samples

SAMPLES = 16
KS = (1, 2, 4, 8, 16)
TEMPERATURE = 0.7


def measure(samples: Sequence[Samples]) -> list[dict[str, Any]]:
    """The rates for each number of samples."""
    return [asdict(measured) for measured in (measure_samples(samples, k) for k in KS) if measured is not None]


async def with_critic(
    bench: Bench, answers: Sequence[LabelledAnswer], *, model: str, seed: int, count: Callable[[str], int]
) -> list[Samples]:
    """`SAMPLES` chains of one critique and one refinement for each answer; `count` gives a text's tokens."""
    samples = await several_samples(
        bench, answers, model=model, samples=SAMPLES, temperature=TEMPERATURE, seed=seed_of(seed, "samples")
    )
    # The first answer is written once for all samples; its tokens count in the first one.
    return [
        replace(each, tokens=(each.tokens[0] + count(answer.response), *each.tokens[1:]))
        for each, answer in zip(samples, answers, strict=True)
    ]


async def actor_alone(bench: Bench, answers: Sequence[LabelledAnswer], *, seed: int) -> list[Samples]:
    """`SAMPLES` answers of the actor to each question."""

    async def one(answer: LabelledAnswer) -> Samples:
        assert answer.reference is not None
        sampling = bench.sampling(
            bench.max_answer_tokens, temperature=arena.TEMPERATURE, seed=seed_of(seed, answer.question_hash.hex())
        )
        replies = await bench.actor.chat(
            bench.prompts.solve(question=answer.question), sampling=replace(sampling, n=SAMPLES)
        )
        texts = [reply.text.strip() for reply in replies]
        tokens = [reply.usage.completion_tokens for reply in replies]
        cut = [reply.is_cut for reply in replies]
        return await graded_samples(bench.grader, answer, answer.reference, texts, tokens, cut=cut)

    return await bench.each(one, answers)
