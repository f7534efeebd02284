"""AdamW over the policy's adapter, alone or on several processes, and its state on disk.

Several processes (accelerate) each take a share of every minibatch. Two ways to share the model:

- Each holds all of it (MULTI_GPU or MULTI_CPU in accelerate). The gradients of a minibatch are summed once, just before
  the step. DistributedDataParallel would overlap that with the backward passes, which saves nothing for a few megabytes
  of adapter, and would need the same number of passes in every process.
- Each holds a part of every layer (`Policy.shard`; FSDP in accelerate). Every pass gathers the layers, so all processes
  must make the same number of passes, which `passes` returns.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from gadfly.trainer.rl.packing import Group
from gadfly.trainer.rl.policy import Policy, like, whole

_STATE = "optimiser.pt"


class Optimiser:
    """`backward` adds up the gradients of a minibatch; `step` then updates the weights.

    Raises:
        ValueError: accelerate shares the model in another way than these two.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        betas: tuple[float, float],
        weight_decay: float,
        max_grad_norm: float,
        accelerator: Accelerator | None = None,
    ) -> None:
        self._policy = policy
        self._max_grad_norm = max_grad_norm
        self._accelerator = accelerator
        kind = DistributedType.NO if accelerator is None else accelerator.distributed_type
        if kind not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU, DistributedType.FSDP):
            raise ValueError(f"the trainer cannot share a model by {kind}")
        if kind is DistributedType.FSDP and not policy.is_sharded:
            policy.shard()
        self._sharded = policy.is_sharded
        self._adam = torch.optim.AdamW(policy.weights.values(), lr=0.0, betas=betas, weight_decay=weight_decay)

    @property
    def processes(self) -> int:
        return 1 if self._accelerator is None else self._accelerator.num_processes

    @property
    def process(self) -> int:
        return 0 if self._accelerator is None else self._accelerator.process_index

    def passes(self, counts: Sequence[int]) -> int:
        """The number of forward passes of this process, where `counts` are the packs of all processes."""
        return max(counts) if self._sharded else counts[self.process]

    def sum(self, item: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        if self._accelerator is None or self.processes == 1:
            return item
        total: Tensor = self._accelerator.reduce(item.to(self._policy.device), reduction="sum")  # NCCL takes no other
        return total.to(item.device)

    def backward(self, loss: Tensor) -> None:
        """Add a pack's gradients. The loss of a minibatch is the sum over all packs of all processes."""
        # FSDP averages gradients over the processes; the sum is needed.
        (loss * self.processes if self._sharded else loss).backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float) -> float:
        """One step of AdamW with the gradients so far; returns their norm before clipping."""
        weights = list(self._policy.weights.values())
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        if self.processes > 1 and not self._sharded:
            flat = self.sum(torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None]))
            for weight, grad in zip(weights, torch.split(flat, [weight.numel() for weight in weights]), strict=True):
                weight.grad = grad.view_as(weight)
        norm = whole(torch.nn.utils.clip_grad_norm_(weights, self._max_grad_norm))
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._adam.step()
        self._adam.zero_grad()
        return float(norm)

    def save(self, folder: Path) -> None:
        """Write the state. All processes must call this; the first one writes."""
        state = self._adam.state_dict()["state"]
        tensors = {key: {name: whole(item).cpu() for name, item in values.items()} for key, values in state.items()}
        if self.process == 0:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(tensors, folder / _STATE)

    def load(self, folder: Path) -> None:
        """Restore the state that `save` wrote."""
        saved: dict[int, dict[str, Tensor]] = torch.load(folder / _STATE, weights_only=True)
        weights = list(self._policy.weights.values())
        state: dict[int, dict[str, Any]] = {
            key: {
                name: like(item, weights[key]) if item.ndim else item  # a step count is a scalar, and never sharded
                for name, item in values.items()
            }
            for key, values in saved.items()
        }
        self._adam.load_state_dict({**self._adam.state_dict(), "state": state})


def cosine(step: int, *, steps: int, warmup: int, peak: float, final: float) -> float:
    """The learning rate at a step, from 0: a linear warm-up of `warmup` steps, then a cosine down to final x peak.

    The last step, `steps` - 1, has the lowest rate.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return peak * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)


def shares(groups: Sequence[Group], indices: Sequence[int], processes: int) -> list[list[int]]:
    """Divide a minibatch's groups among processes about equally: the longest first, each to the least loaded one."""
    parts: list[list[int]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for index in sorted(indices, key=lambda item: (-groups[item].packed_tokens, item)):
        least = loads.index(min(loads))
        parts[least].append(index)
        loads[least] += groups[index].packed_tokens
    return parts


def minibatches(count: int, parts: int, generator: torch.Generator) -> list[list[int]]:
    """Shuffle the indices below `count` into `parts` non-empty sets whose sizes differ by at most one."""
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    parts = min(parts, count)
    bounds = [count * part // parts for part in range(parts + 1)]
    return [order[start:end] for start, end in itertools.pairwise(bounds)]


def generator_of(*numbers: int) -> torch.Generator:
    """A random generator that is seeded with these numbers alone."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(seed)
