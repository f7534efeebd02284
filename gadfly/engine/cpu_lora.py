"""Corrected adapters on CPU: rows of the base model stay unchanged, and the rows of one adapter are one matrix product.

vLLM 0.32 selects each row's adapter weights by index, and the index of "no adapter" is -1, which selects the last slot:
base rows in a batch with adapter rows are silently answered with another model's weights. It also copies the weights
once per token, which makes a prompt with an adapter several times slower than one without.
"""

import logging
from typing import Any

logger = logging.getLogger("vllm.gadfly")

# The rows of one adapter in this step: a slice where they are adjacent, otherwise their positions.
_Group = tuple[int, Any]


def install() -> None:
    """Replaces the faulty operation where this vLLM has it. Idempotent."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    if not touches_base_rows(PunicaWrapperCPU):
        logger.info("Adapters on CPU: this vLLM leaves base rows unchanged, nothing to replace.")
        return
    _replace(PunicaWrapperCPU)
    if touches_base_rows(PunicaWrapperCPU):
        raise RuntimeError("The replacement for vLLM's adapters on CPU changes base rows.")
    logger.info("Adapters on CPU: replaced vLLM's operation, which answers base requests with an adapter's weights.")


def touches_base_rows(wrapper_class: Any) -> bool:
    """Whether the operation changes base rows: runs it on one base row and one row of the adapter in the last slot.

    Raises:
        RuntimeError: the operation does not apply the adapter either, so this vLLM is unknown.
    """
    import torch

    wrapper = wrapper_class(2, 2, "cpu")
    wrapper._token_lora_indices[:2] = torch.tensor([-1, 0])
    wrapper.indices_len[0] = 2
    wrapper.no_lora, wrapper.is_prefill = False, False
    y = torch.zeros(2, 1)
    ones = torch.ones(1, 1, 1, 1)
    wrapper.add_lora_linear(y, torch.ones(2, 1), (ones,), (ones,), 1.0, (1,))
    if y[1].item() != 1.0:
        raise RuntimeError("vLLM's adapters on CPU differ from the releases that Gadfly supports.")
    return bool(y[0].item() != 0.0)


def _replace(wrapper_class: Any) -> None:
    import torch

    vllm_update_metadata = wrapper_class.update_metadata

    def update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
        """Called once per step, before any layer."""
        vllm_update_metadata(self, *args, **kwargs)
        self._gadfly_groups = None

    def add_lora_linear(
        self: Any,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Adds the adapter's part to each row of `y`: `x @ a.T @ b.T * scale` for every output slice."""
        if self._gadfly_groups is None:
            self._gadfly_groups = group_rows(self.token_lora_indices)
        y_TO, x_TI = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for slot, rows in self._gadfly_groups:
            x_RI = x_TI[rows].to(torch.float32)
            offset = 0
            for a_stack, b_stack, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                shrunk = (x_RI @ a_stack[slot, 0].to(torch.float32).t()) * scale
                # The same operation for both kinds of `rows`: a row's result must not depend on the rest of its batch.
                y_TO[rows, offset : offset + width] += (shrunk @ b_stack[slot, 0].to(torch.float32).t()).to(y.dtype)
                offset += width

    wrapper_class._gadfly_groups = None
    wrapper_class.update_metadata = update_metadata
    wrapper_class.add_lora_linear = add_lora_linear


def group_rows(slots_T: Any) -> list[_Group]:
    """The rows of each adapter slot in use, from the slot of every row; -1 means no adapter and no group."""
    import torch

    values, counts = torch.unique_consecutive(slots_T, return_counts=True)
    runs: dict[int, list[slice]] = {}
    start = 0
    for slot, count in zip(values.tolist(), counts.tolist(), strict=True):
        if slot >= 0:
            runs.setdefault(slot, []).append(slice(start, start + count))
        start += count
    return [
        (slot, where[0] if len(where) == 1 else (slots_T == slot).nonzero().flatten()) for slot, where in runs.items()
    ]
