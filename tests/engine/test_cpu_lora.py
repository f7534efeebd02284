"""The replaced adapter operation, compared with a loop over rows and with itself in other batches."""

import importlib
import warnings
from typing import Any

import pytest
import torch

from gadfly.engine import cpu_lora

SLOTS, IN, OUT, RANK = 3, 8, (6, 4), 2


@pytest.fixture(scope="module")
def wrapper_class() -> Any:
    """vLLM's class with the replaced operation, installed twice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cls = importlib.import_module("vllm.lora.punica_wrapper.punica_cpu").PunicaWrapperCPU
        cpu_lora.install()
        cpu_lora.install()
    return cls


@pytest.fixture
def weights() -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    a = tuple(torch.randn(SLOTS, 1, RANK, IN, generator=generator) for _ in OUT)
    b = tuple(torch.randn(SLOTS, 1, width, RANK, generator=generator) for width in OUT)
    return a, b


def _apply(wrapper_class: Any, weights: Any, slots: list[int], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    wrapper = wrapper_class(64, 64, "cpu")
    wrapper._token_lora_indices[: len(slots)] = torch.tensor(slots)
    wrapper.indices_len[0] = len(slots)
    result = y.clone()
    wrapper.add_lora_linear(result, x, *(tuple(w.to(y.dtype) for w in part) for part in weights), 0.5, OUT)
    return result


def _row_by_row(weights: Any, slots: list[int], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    result = y.to(torch.float64)
    for row, slot in enumerate(slots):
        if slot >= 0:
            parts = [
                x[row].double() @ a[slot, 0].double().T @ b[slot, 0].double().T for a, b in zip(*weights, strict=True)
            ]
            result[row] += 0.5 * torch.cat(parts)
    return result


BATCHES = [  # slots of the rows, why
    ([-1, -1, -1], "base only"),
    ([2, 2, 2], "one adapter only, in the last slot"),
    ([-1, 0, 1, 2], "one of each"),
    ([0, -1, 0, -1, 0], "separated rows of one adapter"),
    ([-1, -1, 1, 1, 1, 0, 2, 2, 1], "adjacent and separated rows"),
    ([], "no rows"),
]


@pytest.mark.parametrize(("slots", "why"), BATCHES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_every_row_gets_its_adapter(
    wrapper_class: Any, weights: Any, slots: list[int], why: str, dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(len(slots), IN, generator=generator).to(dtype)
    y = torch.randn(len(slots), sum(OUT), generator=generator).to(dtype)

    result = _apply(wrapper_class, weights, slots, x, y)

    torch.testing.assert_close(
        result.double(), _row_by_row(weights, slots, x, y), atol=tolerance, rtol=tolerance, msg=why
    )
    base = [row for row, slot in enumerate(slots) if slot < 0]
    assert torch.equal(result[base], y[base])


def test_a_row_does_not_depend_on_the_rest_of_its_batch(wrapper_class: Any, weights: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(6, IN, generator=generator), torch.randn(6, sum(OUT), generator=generator)
    together = _apply(wrapper_class, weights, [1, 1, 1, 0, 0, 0], x, y)[:3]
    apart = _apply(wrapper_class, weights, [1, 0, 1, 0, 1, 0], x[[0, 3, 1, 4, 2, 5]], y[[0, 3, 1, 4, 2, 5]])[::2]
    assert torch.equal(together, apart)


def test_adjacent_rows_are_grouped_as_slices() -> None:
    groups = cpu_lora.group_rows(torch.tensor([2, 2, -1, 0, 1, 0]))
    assert [(slot, rows if isinstance(rows, slice) else rows.tolist()) for slot, rows in groups] == [
        (2, slice(0, 2)),
        (0, [3, 5]),
        (1, slice(4, 5)),
    ]


def test_a_correct_operation_is_not_replaced(wrapper_class: Any) -> None:
    assert not cpu_lora.touches_base_rows(wrapper_class)
    before = wrapper_class.add_lora_linear
    cpu_lora.install()
    assert wrapper_class.add_lora_linear is before


def test_an_unknown_operation_stops_the_engine(wrapper_class: Any) -> None:
    class Idle(wrapper_class):  # type: ignore[misc]  # vllm is Any here
        def add_lora_linear(self, *args: Any, **kwargs: Any) -> None:
            pass

    with pytest.raises(RuntimeError, match="differ from the releases"):
        cpu_lora.touches_base_rows(Idle)
