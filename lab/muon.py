"""Muon: gradient descent with orthogonalised updates of matrices (Jordan et al., 2024,
https://kellerjordan.github.io/posts/muon/).

With it the lab's model learns to add in a quarter of an hour on two cores; with AdamW it does not
(docs/experiments.md). `torch.optim.Muon` is the same method, one matrix at a time in bfloat16, which on a processor
without bfloat16 units takes longer than a step of the model. Here matrices of one shape are processed together, in
float32.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, as published
_ITERATIONS = 5


def orthogonal(update_NRC: Tensor) -> Tensor:
    """The nearest matrices (N, rows, columns) with all singular values near 1 (0.7 to 1.2)."""
    is_tall = update_NRC.shape[1] > update_NRC.shape[2]
    result: Tensor = update_NRC.mT if is_tall else update_NRC
    result = result / result.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = result @ result.mT
        result = a * result + (b * gram + c * gram @ gram) @ result
    return result.mT if is_tall else result


class Muon:
    """An optimiser of matrices, with Nesterov momentum.

    Args:
        matrices: weights of two dimensions, except embeddings and the output.
        weight_decay: per unit of the learning rate, as in AdamW.
    """

    def __init__(self, matrices: Sequence[Tensor], *, momentum: float = 0.95, weight_decay: float = 0.05) -> None:
        self._momentum, self._weight_decay = momentum, weight_decay
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.shape, []).append(matrix)
        self._groups = list(by_shape.values())
        self._moving = [torch.zeros(len(group), *group[0].shape) for group in self._groups]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update every matrix."""
        for group, moving_NRC in zip(self._groups, self._moving, strict=True):
            gradient_NRC = torch.stack([_gradient(matrix) for matrix in group])
            moving_NRC.lerp_(gradient_NRC, 1 - self._momentum)
            update_NRC = orthogonal(gradient_NRC.lerp(moving_NRC, self._momentum))
            rows, columns = group[0].shape
            scale = learning_rate * max(1.0, rows / columns) ** 0.5
            for matrix, update in zip(group, update_NRC, strict=True):
                matrix.mul_(1 - learning_rate * self._weight_decay).sub_(update, alpha=scale)


def _gradient(matrix: Tensor) -> Tensor:
    assert matrix.grad is not None
    return matrix.grad
