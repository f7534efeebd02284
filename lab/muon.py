"""Muon: gradient descent whose every update of a matrix turns all of its directions alike (Jordan et al., 2024,
https://kellerjordan.github.io/posts/muon/).

In a quarter of an hour on two cores it teaches the lab's model to add where AdamW does not (docs/experiments.md).
`torch.optim.Muon` is the same method, matrix by matrix in bfloat16: on a processor without bfloat16 units a step of it
takes longer than the model's; here matrices of one shape are turned together, in float32.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, as published
_ITERATIONS = 5


def orthogonal(update_NRC: Tensor) -> Tensor:
    """The nearest matrices (N, rows, columns) whose singular values are all about 1 (0.7 to 1.2)."""
    is_tall = update_NRC.shape[1] > update_NRC.shape[2]
    turned: Tensor = update_NRC.mT if is_tall else update_NRC
    turned = turned / turned.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = turned @ turned.mT
        turned = a * turned + (b * gram + c * gram @ gram) @ turned
    return turned.mT if is_tall else turned


class Muon:
    """The optimiser of these matrices, with Nesterov's momentum.

    Args:
        matrices: Weights of two dimensions; not embeddings, not the output's.
        weight_decay: As AdamW's: a share of the learning rate.
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
        """Move every matrix along its gradient."""
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
