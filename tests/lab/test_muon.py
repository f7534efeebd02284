"""Updates are orthogonal, and steps reach a target."""

import torch
from torch.nn import Parameter

from gadfly.lab.muon import Muon, orthogonal


def test_an_update_has_singular_values_near_one() -> None:
    for shape in ((3, 16, 16), (2, 48, 16), (2, 16, 48)):
        turned = orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        assert turned.shape == shape
        values = torch.linalg.svdvals(turned)
        # The smallest singular value of a square matrix may be near 0, and then stays small.
        assert float(values.max()) < 1.3
        assert float(values.median()) > 0.6


def test_a_matrix_learns_its_target() -> None:
    torch.manual_seed(0)
    wanted = [torch.randn(8, 8), torch.randn(24, 8), torch.randn(8, 8)]
    weights = [Parameter(torch.zeros_like(matrix)) for matrix in wanted]
    optimiser = Muon(weights, weight_decay=0.0)

    def loss() -> torch.Tensor:
        return sum((weight - matrix).square().mean() for weight, matrix in zip(weights, wanted, strict=True))  # type: ignore[return-value]

    before = float(loss().detach())
    for step in range(200):
        for weight in weights:
            weight.grad = None
        loss().backward()
        optimiser.step(0.1 * (1 - step / 200))
    assert float(loss().detach()) < 0.02 * before
