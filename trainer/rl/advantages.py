"""From scores to advantages: RLOO with token-level KL, as Critique-RL trains (arXiv 2510.24320 and its code).

1. a_i = the score of critique i minus the mean score of the others of its group. KL is no part of the baseline. (For
   comparison with other methods: `group_normalised` and `minus_batch_mean` in its place.)
2. A token's reward is minus the coefficient times its KL; the last token's also has a_i.
3. A token's return is the sum of the rewards from it to the end (gamma 1).
4. Returns are whitened over all tokens of the step's rollouts.

KL is the k1 estimate: log pi - log anchor of the sampled token. A group whose scores are all equal has a_i = 0 and
still feels KL and whitening.

Axis letters: R replies, N tokens of all replies one after another. Everything is float64, which costs nothing here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gadfly.training import Baseline

_LEAST_VARIANCE = 1e-8
_LEAST_DEVIATION = 1e-6


def advantages(
    scores_R: Tensor, logprobs_N: Tensor, anchor_N: Tensor, *, group_sizes: Sequence[int], lengths_R: Sequence[int],
    kl_coefficient: float, baseline: Baseline = Baseline.LEAVE_ONE_OUT,
) -> Tensor:  # fmt: skip
    """The whitened advantages (N) of a whole rollout batch; all of it, or the whitening is not that of step 4."""
    baselined_R = _BASELINES[baseline](scores_R, group_sizes)
    rewards_N = token_rewards(
        baselined_R, logprobs_N.double() - anchor_N.double(), lengths_R=lengths_R, kl_coefficient=kl_coefficient
    )
    return whiten(returns_to_go(rewards_N, lengths_R))


def leave_one_out(scores_R: Tensor, group_sizes: Sequence[int]) -> Tensor:
    """Each score minus the mean of the others of its group (R).

    Raises:
        ValueError: a group of one, which has no others.
    """
    if min(group_sizes) < 2:
        raise ValueError("a group needs two replies: there is no leave-one-out mean of none")
    return torch.cat(
        [
            scores_K - (scores_K.sum() - scores_K) / (len(scores_K) - 1)
            for scores_K in torch.split(scores_R.double(), list(group_sizes))
        ]
    )


def group_normalised(scores_R: Tensor, group_sizes: Sequence[int]) -> Tensor:
    """Each score minus its group's mean, divided by its group's standard deviation (R); equal ones become 0.

    GRPO (arXiv 2402.03300, section 4.1.2), which CTRL (arXiv 2502.03492) trains critics with.
    """
    return torch.cat(
        [
            (scores_K - scores_K.mean()) / (scores_K.std(correction=0) + _LEAST_DEVIATION)
            for scores_K in torch.split(scores_R.double(), list(group_sizes))
        ]
    )


def minus_batch_mean(scores_R: Tensor, group_sizes: Sequence[int]) -> Tensor:
    """Each score minus the mean of all (R): REINFORCE with one baseline for every question."""
    return scores_R.double() - scores_R.double().mean()


_BASELINES = {
    Baseline.LEAVE_ONE_OUT: leave_one_out,
    Baseline.GROUP_NORM: group_normalised,
    Baseline.BATCH_MEAN: minus_batch_mean,
}


def token_rewards(baselined_R: Tensor, kl_N: Tensor, *, lengths_R: Sequence[int], kl_coefficient: float) -> Tensor:
    """KL's cost at every token, and the baselined score at each reply's last (N)."""
    rewards_N = -kl_coefficient * kl_N.double()
    last_R = torch.tensor(lengths_R, device=kl_N.device).cumsum(0) - 1
    rewards_N[last_R] += baselined_R.double()
    return rewards_N


def returns_to_go(rewards_N: Tensor, lengths_R: Sequence[int]) -> Tensor:
    """At each token the sum of its own and all later rewards of its reply (N)."""
    return torch.cat([item.flip(0).cumsum(0).flip(0) for item in torch.split(rewards_N, list(lengths_R))])


def whiten(values_N: Tensor) -> Tensor:
    """Mean 0 and variance 1 over all values; equal ones become 0."""
    centred_N = values_N - values_N.mean()
    return centred_N * centred_N.square().mean().clamp(min=_LEAST_VARIANCE).rsqrt()
