"""Policies and groups for tests."""

import random
from pathlib import Path

import torch

from gadfly.trainer.rl.packing import Group
from gadfly.trainer.rl.policy import Policy, Which
from tests.support.tiny_models import VOCABULARY

RANK, ALPHA = 4, 8


def policy_of(
    model: Path, *, seed: int = 0, size: float = 0.1, name: str | None = None, gradient_checkpointing: bool = False
) -> Policy:
    """A policy whose two adapters are random and differ, so that tests notice which one is active."""
    policy = Policy(model, rank=RANK, alpha=ALPHA, seed=seed, name=name, gradient_checkpointing=gradient_checkpointing)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        policy.anchor_here()
        with torch.no_grad():
            for weight in policy.weights.values():
                weight.copy_(torch.randn(weight.shape, generator=generator) * size)
    return policy


def random_groups(count: int, *, seed: int = 0, replies: int = 3, tokens: int = 12) -> list[Group]:
    """Groups of different lengths with random scores, and log-probabilities near those of a random model."""
    rng = random.Random(seed)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(length))

    groups = []
    for _ in range(count):
        texts = tuple(ids(rng.randint(1, tokens)) for _ in range(replies))
        groups.append(
            Group(
                ids(rng.randint(3, 2 * tokens)),
                texts,
                tuple(tuple(-6.0 - rng.random() for _ in text) for text in texts),
                tuple(float(rng.randint(0, 1)) for _ in texts),
            )
        )
    return groups


def bits(policy: Policy, which: Which = Which.POLICY) -> dict[str, bytes]:
    return {name: item.detach().numpy().tobytes() for name, item in policy.parameters(which).items()}
