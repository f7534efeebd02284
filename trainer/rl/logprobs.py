"""Log-probabilities of tokens from hidden states, without the table of logits.

Axis letters: N tokens, D hidden size, V vocabulary, C tokens of a chunk.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK = 128  # tokens; with 49,152 tokens of vocabulary two tables of 25 MB


def token_logprobs(
    hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, *, temperature: float = 1.0, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """The log p(target) and the entropy at each place, both float32 (N), in nats; p is softmax(logits / temperature).

    At most two (C, V) tables exist at a time, for any N. Otherwise, N = 360 and V = 49,152 would take 71 MB for the
    logits, as much for their probabilities, and as much for the gradient of each.

    The gradient of log p(t) with respect to the hidden state is (W[t] - p W) / temperature, which does not depend on
    the later layers. So the forward pass computes it while a chunk's p exists, and keeps it instead of p (N x D instead
    of N x V); the backward pass multiplies it by one number per token. Only a trained head needs p again, which is then
    recomputed chunk by chunk. Entropies have no gradient.
    """
    logprobs_N, entropies_N = _TokenLogprobs.apply(hidden_ND, head_VD, targets_N, temperature, chunk)  # type: ignore[no-untyped-call]
    return logprobs_N, entropies_N


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        count = len(targets_N)
        logprobs_N = torch.empty(count, dtype=torch.float32, device=hidden_ND.device)
        entropies_N = torch.empty_like(logprobs_N)
        slopes_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            logits_CV = (hidden_ND[part] @ head_VD.T).float() / temperature
            logits_CV -= logits_CV.amax(-1, keepdim=True)
            p_CV = logits_CV.exp()
            total_C1 = p_CV.sum(-1, keepdim=True)
            p_CV /= total_C1
            log_total_C = total_C1[:, 0].log()
            logprobs_N[part] = logits_CV.gather(-1, targets_N[part, None])[:, 0] - log_total_C
            # A matrix product needs no table of summands, and takes a fifth of vecdot's time on CPU.
            entropies_N[part] = log_total_C - (p_CV[:, None] @ logits_CV[:, :, None])[:, 0, 0]
            if slopes_ND is not None:
                slopes_ND[part] = (head_VD[targets_N[part]] - p_CV.to(head_VD.dtype) @ head_VD) / temperature
        ctx.chunk, ctx.temperature = chunk, temperature
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(slopes_ND, hidden_ND, head_VD, targets_N)
        else:
            ctx.save_for_backward(slopes_ND)
        ctx.mark_non_differentiable(entropies_N)
        return logprobs_N, entropies_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        slopes_ND, *kept = ctx.saved_tensors
        grad_ND = None if slopes_ND is None else grad_N[:, None].to(slopes_ND.dtype) * slopes_ND
        if not ctx.needs_input_grad[1]:
            return grad_ND, None, None, None, None
        hidden_ND, head_VD, targets_N = kept
        grad_VD = torch.zeros_like(head_VD)
        grad_N = grad_N / ctx.temperature
        grad_VD.index_add_(0, targets_N, grad_N[:, None].to(hidden_ND.dtype) * hidden_ND)
        for start in range(0, len(targets_N), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            p_CV = ((hidden_ND[part] @ head_VD.T).float() / ctx.temperature).softmax(-1)
            grad_VD.addmm_((grad_N[part, None] * p_CV).to(hidden_ND.dtype).T, hidden_ND[part], alpha=-1)
        return grad_ND, grad_VD, None, None, None
