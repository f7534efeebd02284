"""The PPO-clipped loss of a pack, and the measurements beside it.

The loss is the mean over the tokens of a critique, then over the critiques of a minibatch. Both means are weights of
tokens, known before the first forward pass, so the losses of packs add up to the minibatch's, however it is divided
into packs and among processes.

Axis letters: R replies, N tokens of all replies one after another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Measured:
    """Sums over the tokens of a pack (0-d tensors).

    The losses add up to the minibatch's; the other sums are added up and divided by `tokens`.
    """

    loss: Tensor
    clipped: Tensor  # tokens whose gradient the clip removed
    kl: Tensor  # k3 estimate from the weights of the rollouts to the present ones, in nats
    entropy: Tensor  # in nats
    tokens: Tensor


def token_weights(lengths_R: Sequence[int], *, critiques: int) -> Tensor:
    """Each token's share (N) of the loss of a minibatch of `critiques`: 1 / (tokens of its reply x critiques)."""
    lengths = torch.tensor(lengths_R)
    return (1.0 / (lengths * critiques)).repeat_interleave(lengths)


ROUNDING = 1e-3
"""Nats up to which a difference may be rounding. In float32 on CPU vLLM and transformers differed by at most 4e-5."""


def importance_weights(trainer_N: Tensor, engine_N: Tensor, cap: float | None) -> Tensor:
    """The ratio of each sampled token's probability in the trainer to that in the engine, at most `cap` (N).

    Both use the same adapter, so the ratio corrects for differences in arithmetic. Without a cap there is no
    correction, nor for differences that rounding explains: an engine's last digits depend on the other requests in its
    batch and on its prefix cache, and a run that is resumed or repeated must end with the same weights.
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
    """The loss of a pack's tokens. Only `logprobs_N` has a gradient.

    `old_N` are the log-probabilities by the weights of the rollouts, computed by the trainer.
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
