"""The PPO-clipped loss of a pack, and what is measured beside it.

Mean over the tokens of a critique, then mean over the critiques of a minibatch. Both are weights of tokens, known
before the first forward pass, so that packs add up to the minibatch's loss however it is cut into packs and processes.

Axis letters: R replies, N tokens of all replies one after another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Measured:
    """Sums over the tokens of a pack (0-d), to be added up and divided by `tokens`; the loss is whole once added up."""

    loss: Tensor
    clipped: Tensor  # tokens at which the clip took the gradient away
    kl: Tensor  # of the weights before the minibatch to those now, by the k3 estimate, in nats
    entropy: Tensor  # in nats
    tokens: Tensor


def token_weights(lengths_R: Sequence[int], *, critiques: int) -> Tensor:
    """Each token's share (N) of the loss of a minibatch of `critiques`: 1 / (tokens of its reply x critiques)."""
    lengths = torch.tensor(lengths_R)
    return (1.0 / (lengths * critiques)).repeat_interleave(lengths)


ROUNDING = 1e-3
"""Nats that rounding explains; between vLLM and transformers in float32 on CPU at most 4e-5 were seen."""


def importance_weights(trainer_N: Tensor, engine_N: Tensor, cap: float | None) -> Tensor:
    """How much likelier the trainer's weights make each sampled token than the engine said, at most `cap` (N).

    Both had the same adapter, so this undoes what differing arithmetic did to the samples. No cap: no correction. Nor
    is there any for a difference that rounding explains: an engine's last digits depend on what shares its batch and
    its prefix cache, and a run that is resumed or repeated must come to the same weights.
    """
    if cap is None:
        return torch.ones_like(trainer_N)
    gap_N = trainer_N - engine_N
    return torch.where(gap_N.abs() < ROUNDING, 0.0, gap_N).exp().clamp(max=cap)


def clipped_loss(
    logprobs_N: Tensor,
    entropies_N: Tensor,
    *,
    old_N: Tensor,
    advantages_N: Tensor,
    importance_N: Tensor,
    weights_N: Tensor,
    clip: float,
) -> Measured:
    """The loss of a pack's tokens: only `logprobs_N` has a gradient.

    `old_N` are log-probabilities by the weights that the rollouts came from, as this trainer computes them.
    """
    log_ratio_N = logprobs_N - old_N
    ratio_N = log_ratio_N.exp()
    plain_N = ratio_N * advantages_N
    limited_N = ratio_N.clamp(1 - clip, 1 + clip) * advantages_N
    loss = -(weights_N * importance_N * torch.minimum(plain_N, limited_N)).sum()
    with torch.no_grad():
        return Measured(
            loss=loss,
            clipped=(limited_N < plain_N).sum(),
            kl=(ratio_N - 1 - log_ratio_N).sum(),
            entropy=entropies_N.sum(),
            tokens=torch.tensor(len(logprobs_N), device=logprobs_N.device),
        )
