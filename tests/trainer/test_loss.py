"""Numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from gadfly.trainer.rl.loss import Measured, clipped_loss, importance_weights, token_weights


def test_weights_are_mean_over_tokens_then_over_critiques() -> None:
    assert token_weights([2, 1], critiques=4).tolist() == pytest.approx([1 / 8, 1 / 8, 1 / 4])


def loss_of(ratios: list[float], advantages: list[float], weights: list[float]) -> tuple[Measured, Tensor]:
    logprobs = torch.tensor([math.log(ratio) - 1.0 for ratio in ratios], dtype=torch.float64, requires_grad=True)
    found = clipped_loss(
        logprobs,
        torch.full_like(logprobs, 0.25),
        old_N=torch.full_like(logprobs, -1.0),
        advantages_N=torch.tensor(advantages, dtype=torch.float64),
        importance_N=torch.ones_like(logprobs),
        weights_N=torch.tensor(weights, dtype=torch.float64),
        clip=0.2,
    )
    found.loss.backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None
    return found, logprobs.grad


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "why"),
    [
        (1.0, 2.0, -2.0, -2.0, "the policy gradient, at the old weights"),
        (1.1, 2.0, -2.2, -2.2, "a ratio within the clip"),
        (1.5, 2.0, -2.4, 0.0, "a good token, already much likelier: 1.2 x 2, no gradient"),
        (0.5, 2.0, -1.0, -1.0, "a good token, less likely: not clipped"),
        (0.5, -2.0, 1.6, 0.0, "a bad token, already much less likely: 0.8 x -2, no gradient"),
        (1.5, -2.0, 3.0, 3.0, "a bad token, likelier: not clipped"),
    ],
)
def test_clipping(ratio: float, advantage: float, loss: float, gradient: float, why: str) -> None:
    found, grad = loss_of([ratio], [advantage], [1.0])
    assert found.loss.item() == pytest.approx(loss), why
    assert grad.item() == pytest.approx(gradient), why
    assert found.clipped.item() == (gradient == 0.0)


def test_tokens_are_weighted_and_measured() -> None:
    # -(1/4 x 1.1 x 1 + 1/4 x 1.2 x 2 + 1/2 x 0.5 x -1 clipped to 0.8 x -1) = -(0.275 + 0.6 - 0.4)
    found, _ = loss_of([1.1, 1.5, 0.5], [1.0, 2.0, -1.0], [0.25, 0.25, 0.5])
    assert found.loss.item() == pytest.approx(-0.475)
    assert found.clipped.item() == 2
    assert found.tokens.item() == 3
    assert found.entropy.item() == pytest.approx(0.75)
    kl = (0.1 - math.log(1.1)) + (0.5 - math.log(1.5)) + (-0.5 - math.log(0.5))
    assert found.kl.item() == pytest.approx(kl)


def test_importance_weights_are_truncated_above() -> None:
    trainer = torch.tensor([-1.0, -1.0, -1.0])
    engine = torch.tensor([-1.0, -1.0 - math.log(3.0), -1.0 + math.log(2.0)])
    assert importance_weights(trainer, engine, 2.0).tolist() == pytest.approx([1.0, 2.0, 0.5])
    assert importance_weights(trainer, engine, None).tolist() == [1.0, 1.0, 1.0]


def test_differences_within_rounding_are_not_corrected() -> None:
    trainer, engine = torch.tensor([-1.0, -1.0]), torch.tensor([-1.0 - 5e-4, -1.0 + 5e-4])
    assert importance_weights(trainer, engine, 2.0).tolist() == [1.0, 1.0]


def test_importance_weights_scale_loss_and_gradient() -> None:
    logprobs = torch.tensor([-1.0, -1.0], requires_grad=True)
    found = clipped_loss(
        logprobs,
        torch.zeros(2),
        old_N=torch.full((2,), -1.0),
        advantages_N=torch.tensor([1.0, 1.0]),
        importance_N=torch.tensor([0.5, 2.0]),
        weights_N=torch.tensor([0.5, 0.5]),
        clip=0.2,
    )
    found.loss.backward()  # type: ignore[no-untyped-call]
    assert found.loss.item() == pytest.approx(-1.25)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.25, -1.0])
