"""A linear layer with its LoRA adapter as one operation: y = x W' + b + s (x A') B'.

PEFT's own forward pass writes the adapter's output, a scaled copy and the sum to three tensors, and autograd does the
same in the backward pass. Here both products are accumulated in one tensor.

Axis letters: N tokens, I inputs, O outputs, R rank.
"""

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn


def fuse(model: nn.Module) -> None:
    """Make every LoRA layer of a model compute this way, with its active adapter."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.forward = partial(_forward, module)


def _forward(layer: Any, x: Tensor) -> Tensor:
    base = layer.get_base_layer()
    if layer.disable_adapters:
        return nn.functional.linear(x, base.weight, base.bias)
    [active] = layer.active_adapters
    result: Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
        x, base.weight, base.bias, layer.lora_A[active].weight, layer.lora_B[active].weight, layer.scaling[active]
    )
    return result


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scaling: float
    ) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        low_NR = x_NI @ a_RI.T.to(x.dtype)
        y_NO = nn.functional.linear(x_NI, w_OI, bias_O)
        y_NO.addmm_(low_NR, b_OR.T.to(x.dtype), alpha=scaling)
        ctx.save_for_backward(x_NI, low_NR, w_OI, a_RI, b_OR)
        ctx.scaling, ctx.shape = scaling, x.shape
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, Tensor | None, None]:
        x_NI, low_NR, w_OI, a_RI, b_OR = ctx.saved_tensors
        grad_NO = grad.reshape(-1, grad.shape[-1])
        low_grad_NR = (grad_NO @ b_OR.to(grad.dtype)).mul_(ctx.scaling)
        b_grad_OR = (grad_NO.T @ low_NR).mul_(ctx.scaling).to(b_OR.dtype) if ctx.needs_input_grad[4] else None
        a_grad_RI = (low_grad_NR.T @ x_NI).to(a_RI.dtype) if ctx.needs_input_grad[3] else None
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = (grad_NO @ w_OI).addmm_(low_grad_NR, a_RI.to(grad.dtype)).view(ctx.shape)
        return x_grad, None, None, a_grad_RI, b_grad_OR, None
