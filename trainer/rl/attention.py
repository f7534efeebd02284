"""Attention within a pack: each group separately, and in it each reply over the prompt and itself.

One mask over the whole row would give the same result, but most of its computation would be masked out: the cost here
grows with the number of groups, not with its square.

Axis letters: T tokens of a row, Q tokens of a group's replies, S tokens of a group; states are (1, heads, T, size).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gadfly.trainer.rl.packing import Pack

NAME = "gadfly_pack"  # as transformers knows it


@dataclass(frozen=True, slots=True)
class Block:
    """One group's place in a row: its prompt from `start`, its replies from `middle`, and its end."""

    start: int
    middle: int
    end: int
    mask_QS: Tensor | None  # True where a reply's token attends; None: a single reply, plainly causal


def blocks(row: Pack, device: torch.device) -> tuple[Block, ...]:
    group_T, reply_T = torch.tensor(row.group_T), torch.tensor(row.reply_T)
    result: list[Block] = []
    start = 0
    for size in torch.bincount(group_T).tolist():
        reply_S = reply_T[start : start + size]
        middle = int((reply_S == -1).sum())
        mask_QS = None
        if middle < size and int(reply_S[middle:].max()) > int(reply_S[middle:].min()):
            same_QS = (reply_S[middle:, None] == reply_S) | (reply_S == -1)
            mask_QS = (same_QS & torch.ones(size, size, dtype=torch.bool).tril()[middle:]).to(device)
        result.append(Block(start, start + middle, start + size, mask_QS))
        start += size
    return tuple(result)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    scaling: float | None = None, pack_blocks: tuple[Block, ...] | None = None, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The attention function that transformers calls. Without blocks it is ordinary scaled dot product attention.

    Raises:
        ValueError: the model's attention has a soft cap, or a window shorter than the pack.
    """
    if pack_blocks is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)  # type: ignore[no-any-return]
    window = options.get("sliding_window")
    if options.get("softcap") is not None or (window is not None and window < query.shape[2]):
        raise ValueError("packs do not support soft-capped attention, or sliding windows shorter than the pack")
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.device.type != "cpu":  # CUDA has no fast kernel for grouped heads with a mask
        key, value = repeat_kv(key, module.num_key_value_groups), repeat_kv(value, module.num_key_value_groups)
        grouped = False
    parts: list[Tensor] = []
    for block in pack_blocks:
        prompt, replies = slice(block.start, block.middle), slice(block.middle, block.end)
        whole = slice(block.start, block.end)
        plain = whole if block.mask_QS is None else prompt
        parts.append(
            scaled_dot_product_attention(
                query[:, :, plain], key[:, :, plain], value[:, :, plain],
                is_causal=True, scale=scaling, enable_gqa=grouped,
            )
        )  # fmt: skip
        if block.mask_QS is not None:
            parts.append(
                scaled_dot_product_attention(
                    query[:, :, replies], key[:, :, whole], value[:, :, whole],
                    attn_mask=block.mask_QS, scale=scaling, enable_gqa=grouped,
                )
            )  # fmt: skip
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1), None


def register() -> None:
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
