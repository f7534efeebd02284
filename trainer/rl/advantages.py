"""From scores to advantages: RLOO with token-level KL, as in Critique-RL (arXiv 2510.24320 and its code).

1. a_i is the score of critique i minus the mean score of the others in its group. The baseline does not include KL.
   (`group_normalised` and `minus_batch_mean` replace it for comparison with other methods.)
2. The reward of a token is minus the KL coefficient times its KL; the reward of the last token also includes a_i.
3. The return of a token is the sum of the rewards from it to the end (gamma 1).
4. The returns are whitened over all tokens of the step's rollouts.

KL is the k1 estimate: log pi - log anchor of the sampled token. A group whose scores are all equal has a_i = 0, but its
returns still contain KL and are whitened.

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
    """The whitened advantages (N) of a whole rollout batch. With a part of it, the whitening would not be step 4."""
    baselined_R = _BASELINES[baseline](scores_R, group_sizes)
    rewards_N = token_rewards(
        baselined_R, logprobs_N.double() - anchor_N.double(), lengths_R=lengths_R, kl_coefficient=kl_coefficient
    )
    return whiten(returns_to_go(rewards_N, lengths_R))


def leave_one_out(scores_R: Tensor, group_sizes: Sequence[int]) -> Tensor:
    """Each score minus the mean of the others in its group (R).

    Raises:
        ValueError: a group has a single reply.
    """
    if min(group_sizes) < 2:
        raise ValueError("a group needs at least two replies: the leave-one-out mean is over the others")
    return torch.cat(
        [
            scores_K - (scores_K.sum() - scores_K) / (len(scores_K) - 1)
            for scores_K in torch.split(scores_R.double(), list(group_sizes))
        ]
    )


def group_normalised(scores_R: Tensor, group_sizes: Sequence[int]) -> Tensor:
    """Each score minus its group's mean, divided by the group's standard deviation (R); 0 where all scores are equal.

    GRPO (arXiv 2402.03300, section 4.1.2), as CTRL (arXiv 2502.03492) trains critics.
    """
    return torch.cat(
        [
            (scores_K - scores_K.mean()) / (scores_K.std(correction=0) + _LEAST_DEVIATION)
            for scores_K in torch.split(scores_R.double(), list(group_sizes))
        ]
    )


def minus_batch_mean(scores_R: Tensor, group_sizes: Sequence[int]) -> Tensor:
    """Each score minus the mean of all scores (R): REINFORCE with one baseline for all questions."""
    return scores_R.double() - scores_R.double().mean()


_BASELINES = {
    Baseline.LEAVE_ONE_OUT: leave_one_out,
    Baseline.GROUP_NORM: group_normalised,
    Baseline.BATCH_MEAN: minus_batch_mean,
}


def token_rewards(baselined_R: Tensor, kl_N: Tensor, *, lengths_R: Sequence[int], kl_coefficient: float) -> Tensor:
    """The rewards (N): minus the KL penalty at every token, plus the baselined score at the last token of a reply."""
    rewards_N = -kl_coefficient * kl_N.double()
    last_R = torch.tensor(lengths_R, device=kl_N.device).cumsum(0) - 1
    rewards_N[last_R] += baselined_R.double()
    return rewards_N


def returns_to_go(rewards_N: Tensor, lengths_R: Sequence[int]) -> Tensor:
    """At each token, the sum of its own reward and all later ones of its reply (N)."""
    return torch.cat([item.flip(0).cumsum(0).flip(0) for item in torch.split(rewards_N, list(lengths_R))])


def whiten(values_N: Tensor) -> Tensor:
    """Scaled to mean 0 and variance 1; 0 where all values are equal."""
    centred_N = values_N - values_N.mean()
    return centred_N * centred_N.square().mean().clamp(min=_LEAST_VARIANCE).rsqrt()
