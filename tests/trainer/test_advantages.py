"""Numbers worked out by hand."""

import math

import pytest
import torch

from gadfly.trainer.rl.advantages import (
    advantages,
    group_normalised,
    leave_one_out,
    minus_batch_mean,
    returns_to_go,
    token_rewards,
    whiten,
)
from gadfly.training import Baseline


def test_leave_one_out() -> None:
    # Group 1: 1 - (0 + 0 + 1)/3 = 2/3, 0 - (1 + 0 + 1)/3 = -2/3. Group 2: equal scores. Group 3: 1.2 - 0.2.
    scores = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.7, 0.7, 0.7, 1.2, 0.2], dtype=torch.float64)
    expected = [2 / 3, -2 / 3, -2 / 3, 2 / 3, 0, 0, 0, 1.0, -1.0]
    assert leave_one_out(scores, [4, 3, 2]).tolist() == pytest.approx(expected, abs=1e-12)


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="two replies"):
        leave_one_out(torch.tensor([1.0, 2.0, 3.0]), [2, 1])


def test_the_last_token_gets_the_score_and_every_token_the_kl_penalty() -> None:
    rewards = token_rewards(
        torch.tensor([2.0, -1.0]), torch.tensor([0.5, -0.5, 1.0, 3.0]), lengths_R=[3, 1], kl_coefficient=0.1
    )
    # -0.1 x 0.5, -0.1 x -0.5, 2 - 0.1 x 1 | -1 - 0.1 x 3
    assert rewards.tolist() == pytest.approx([-0.05, 0.05, 1.9, -1.3])


def test_a_return_sums_the_rewards_from_its_token_to_the_end_of_the_reply() -> None:
    rewards = torch.tensor([-0.05, 0.05, 1.9, -1.3], dtype=torch.float64)
    assert returns_to_go(rewards, [3, 1]).tolist() == pytest.approx([1.9, 1.95, 1.9, -1.3])


def test_whitening_has_mean_0_and_variance_1() -> None:
    # 1, 3, 5: mean 3, variance (4 + 0 + 4) / 3 = 8/3.
    found = whiten(torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([-2 / math.sqrt(8 / 3), 0.0, 2 / math.sqrt(8 / 3)])
    assert whiten(torch.full((4,), 2.5)).tolist() == [0.0] * 4


def test_all_together() -> None:
    # Two groups of two. Scores 1, 0 -> a = 1, -1; scores 0.5, 0.5 -> a = 0, 0. KL of each token, coefficient 0.5:
    # reply 1: 0.2, 0.4 -> rewards -0.1, 0.8 -> returns 0.7, 0.8
    # reply 2: 0      -> reward -1 -> return -1
    # reply 3: 1.0    -> reward -0.5 -> return -0.5: KL counts in a group of equal scores, too
    # reply 4: 0      -> 0
    # Mean of 0.7, 0.8, -1, -0.5, 0 is 0; squares 0.49, 0.64, 1, 0.25, 0: variance 2.38 / 5 = 0.476.
    logprobs = torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0])
    anchor = logprobs - torch.tensor([0.2, 0.4, 0.0, 1.0, 0.0])
    found = advantages(
        torch.tensor([1.0, 0.0, 0.5, 0.5]),
        logprobs,
        anchor,
        group_sizes=[2, 2],
        lengths_R=[2, 1, 1, 1],
        kl_coefficient=0.5,
    )
    deviation = math.sqrt(0.476)
    expected = [0.7 / deviation, 0.8 / deviation, -1 / deviation, -0.5 / deviation, 0.0]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_scores_are_in_units_of_their_groups_standard_deviation() -> None:
    # Mean 0.5 and deviation 0.5; then a group of equal scores, whose advantages are 0.
    found = group_normalised(torch.tensor([1.0, 0.0, 1.0, 0.0, 3.0, 3.0]), [4, 2])
    assert found.tolist() == pytest.approx([1, -1, 1, -1, 0, 0], abs=1e-5)


def test_with_one_baseline_for_all_questions_equal_scores_have_an_advantage() -> None:
    assert minus_batch_mean(torch.tensor([1.0, 1.0, 0.0, 2.0]), [2, 2]).tolist() == [0.0, 0.0, -1.0, 1.0]


BASELINES = [
    (Baseline.LEAVE_ONE_OUT, [0.343, -0.343, 1.372, -1.372]),  # 1, -1, 4, -4 over sqrt(8.5)
    (Baseline.GROUP_NORM, [1.0, -1.0, 1.0, -1.0]),
    (Baseline.BATCH_MEAN, [-0.3906, -0.9113, 1.6925, -0.3906]),  # minus 1.75, over sqrt(3.6875)
]


@pytest.mark.parametrize(("baseline", "expected"), BASELINES)
def test_the_baseline_is_a_setting(baseline: Baseline, expected: list[float]) -> None:
    logprobs = torch.zeros(4)
    found = advantages(
        torch.tensor([1.0, 0.0, 5.0, 1.0]), logprobs, logprobs,
        group_sizes=[2, 2], lengths_R=[1, 1, 1, 1], kl_coefficient=0.0, baseline=baseline,
    )  # fmt: skip
    assert found.tolist() == pytest.approx(expected, abs=1e-3)
