"""The policy: one base model in memory, with the adapter that is trained and the adapter of its KL anchor.

The base weights are loaded once and never copied; the active adapter is switched. `policy` has gradients, `anchor` has
none, `base` is the model without an adapter.

Axis letters: T tokens of a row, N reply tokens.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, logging

from gadfly.adapters import TARGET_MODULES, WEIGHTS, BadAdapter
from gadfly.errors import BadSettings
from gadfly.trainer.rl import attention, lora
from gadfly.trainer.rl.attention import Block, blocks
from gadfly.trainer.rl.logprobs import token_logprobs
from gadfly.trainer.rl.packing import Group, Pack, pack


class Which(StrEnum):
    """The weights that a forward pass uses."""

    POLICY = "policy"
    ANCHOR = "anchor"
    BASE = "base"


@dataclass(frozen=True, slots=True)
class Greedy:
    """A greedily decoded reply, with log-probabilities in nats."""

    tokens: tuple[int, ...]  # with the end-of-turn token, unless the reply was cut
    logprobs: tuple[float, ...]
    base_logprobs: tuple[float, ...]  # of the same tokens, by the base model
    leads: tuple[float, ...]  # log-probability of the token minus that of the second likeliest


class Policy:
    """A base model with two LoRA adapters, on one device.

    Args:
        model: folder (or hub id) of the base model.
        rank, alpha: of both adapters.
        seed: of the initial A; B is 0, so policy and anchor start as the base model.
        name: the base model's name in saved adapters. Default: `model`.
        device: default: a GPU if there is one. With several GPUs, a process uses that of its accelerator.
        gradient_checkpointing: recompute each layer in the backward pass: more time, less memory.

    Raises:
        BadSettings: the model's logits are not a plain product of hidden states and head.
    """

    def __init__(
        self,
        model: Path | str,
        *,
        rank: int,
        alpha: int,
        seed: int,
        name: str | None = None,
        device: torch.device | str | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.rank, self.alpha = rank, alpha
        self._name = name or str(model)
        self._config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=0.0,
            target_modules=list(TARGET_MODULES),
            task_type="CAUSAL_LM",
        )
        base = _load_base(model, self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted = get_peft_model(base, self._config, adapter_name=Which.POLICY.value)
            adapted.add_adapter(Which.ANCHOR.value, self._config)
        lora.fuse(adapted)
        self._model = Inside(adapted)
        if gradient_checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # Only modules in training mode are recomputed. There is no dropout, so the mode changes nothing else.
        adapted.train(gradient_checkpointing)
        self._adapted = adapted
        self._active: Which | None = None
        self.end_tokens = _end_tokens(model, base)
        self._switch(Which.POLICY)
        self.anchor_here()

    def shard(self) -> None:
        """Keep only this process's part of every tensor (FSDP2); a pass gathers each layer when it reaches it.

        All processes must then make the same passes. Uses torch directly, since accelerate shards on GPUs alone.
        """
        base = self._adapted.get_base_model()
        for layer in [item for item in base.modules() if type(item).__name__ in base._no_split_modules]:
            fully_shard(layer)
        fully_shard(self._model)

    @property
    def is_sharded(self) -> bool:
        """Whether this process holds only a part of each tensor (FSDP)."""
        return any(isinstance(item, DTensor) for item in self.weights.values())

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The trained tensors, in an order that depends on the model alone."""
        return self.parameters(Which.POLICY)

    def parameters(self, which: Which) -> dict[str, nn.Parameter]:
        """An adapter's tensors by PEFT's names, without the name of the adapter."""
        mark = f".{which.value}."
        return {
            name.replace(mark, "."): parameter
            for name, parameter in self._adapted.named_parameters()
            if ".lora_" in name and mark in name
        }

    def forward(self, row: Pack, which: Which = Which.POLICY, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of each reply token of a pack at a temperature, float32 (N), in nats.

        Only the policy's log-probabilities have a gradient, and only where torch records one.
        """
        [found] = self.forward_at(row, which, (temperature,))
        return found

    def forward_at(self, row: Pack, which: Which, temperatures: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """`forward` at several temperatures, with one pass through the layers."""
        self._switch(which)
        with torch.set_grad_enabled(torch.is_grad_enabled() and which is Which.POLICY):
            task = partial(_score, inputs=Inputs.of(row, self.device), temperatures=temperatures)
            found: list[tuple[Tensor, Tensor]] = self._model(task)
        return found

    @torch.inference_mode()
    def greedy(self, prompt: Sequence[int], max_tokens: int, which: Which = Which.POLICY) -> Greedy:
        """The greedy reply to a prompt, of at most `max_tokens`."""
        self._switch(which)
        tokens: list[int] = []
        logprobs: list[float] = []
        leads: list[float] = []
        cache: Any = None
        following = list(prompt)
        while len(tokens) < max_tokens and not (tokens and tokens[-1] in self.end_tokens):
            output = self._model(partial(_next, tokens_1T=torch.tensor([following], device=self.device), cache=cache))
            cache = output.past_key_values
            best, second = output.logits[0, -1].float().log_softmax(-1).topk(2).values.tolist()
            following = [int(output.logits[0, -1].argmax())]
            tokens += following
            logprobs.append(best)
            leads.append(best - second)
        base_N, _ = self.forward(pack([Group.unscored(prompt, tokens)], 1)[0], Which.BASE)
        return Greedy(tuple(tokens), tuple(logprobs), tuple(base_N.tolist()), tuple(leads))

    @torch.no_grad()
    def anchor_here(self) -> None:
        """Copy the policy's weights to the anchor."""
        for anchor, policy in zip(
            self.parameters(Which.ANCHOR).values(), self.parameters(Which.POLICY).values(), strict=True
        ):
            anchor.copy_(policy)

    def save_adapter(self, folder: Path, which: Which = Which.POLICY, *, write: bool = True) -> None:
        """Write an adapter in PEFT's format, as vLLM loads it: the names of tensors do not hold the adapter's name.

        All processes must call this; only those with `write` write.
        """
        tensors = {name: whole(item).cpu().contiguous() for name, item in self.parameters(which).items()}
        if not write:
            return
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config = copy(self._config)
        config.inference_mode = True
        config.base_model_name_or_path = self._name  # peft sets it to the folder that it loaded
        config.save_pretrained(folder)

    @torch.no_grad()
    def load_adapter(self, folder: Path, which: Which = Which.POLICY) -> None:
        """Load the weights of a saved adapter.

        Raises:
            BadAdapter: its tensors, shapes or alpha differ from those of this policy's adapters.
        """
        tensors = load_file(folder / WEIGHTS)
        parameters = self.parameters(which)
        if {name: item.shape for name, item in tensors.items()} != {
            name: item.shape for name, item in parameters.items()
        }:
            raise BadAdapter(f"{folder} has other tensors or another rank than the adapters of this run")
        alpha = LoraConfig.from_pretrained(folder).lora_alpha
        if alpha != self.alpha:
            raise BadAdapter(f"{folder} has alpha {alpha}, and the adapters of this run have {self.alpha}")
        for name, parameter in parameters.items():
            parameter.copy_(like(tensors[name], parameter))

    def _switch(self, which: Which) -> None:
        """Activate weights. The policy's always keep requires_grad, since FSDP and DDP wrappers rely on it."""
        if which is self._active:
            return
        self._active = which
        if which is Which.BASE:
            self._adapted.base_model.disable_adapter_layers()
        else:
            self._adapted.base_model.enable_adapter_layers()
            self._adapted.set_adapter(which.value, inference_mode=which is not Which.POLICY)
        for parameter in self.weights.values():
            parameter.requires_grad_(True)


@dataclass(frozen=True, slots=True)
class Inputs:
    """A pack as tensors."""

    tokens_1T: Tensor
    positions_1T: Tensor
    blocks: tuple[Block, ...]
    read_N: Tensor
    targets_N: Tensor

    @classmethod
    def of(cls, row: Pack, device: torch.device) -> "Inputs":
        return cls(
            torch.tensor([row.tokens_T], device=device),
            torch.tensor([row.positions_T], device=device),
            blocks(row, device),
            torch.tensor(row.read_N, device=device),
            torch.tensor(row.targets_N, device=device),
        )


class Inside(nn.Module):
    """Runs a function of the model inside a module's forward pass, where a sharded model's hooks gather its parts."""

    def __init__(self, adapted: PeftModel) -> None:
        super().__init__()
        self.adapted = adapted

    def forward(self, task: Callable[[Any], Any]) -> Any:
        return task(self.adapted.get_base_model())


def _score(base: Any, *, inputs: Inputs, temperatures: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    hidden_TD = base.base_model(
        input_ids=inputs.tokens_1T,
        # Attention follows the blocks. This mask is not read; without one transformers would build its own.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=inputs.tokens_1T.device),
        position_ids=inputs.positions_1T,
        use_cache=False,
        pack_blocks=inputs.blocks,
    ).last_hidden_state[0]
    hidden_ND, head_VD = hidden_TD[inputs.read_N], base.get_output_embeddings().weight
    return [
        token_logprobs(hidden_ND, head_VD, inputs.targets_N, temperature=temperature) for temperature in temperatures
    ]


def _next(base: Any, *, tokens_1T: Tensor, cache: Any) -> Any:
    return base(input_ids=tokens_1T, past_key_values=cache, use_cache=True, logits_to_keep=1)


def _load_base(model: Path | str, device: torch.device) -> Any:
    attention.register()
    logging.disable_progress_bar()  # it would fill the run's log
    config = AutoConfig.from_pretrained(model)
    if hasattr(config, "attention_dropout"):
        config.attention_dropout = 0.0
    if getattr(config, "final_logit_softcapping", None) or getattr(config, "logit_scale", None):
        raise BadSettings(f"{model} cannot be trained: it caps or scales its logits")
    base = AutoModelForCausalLM.from_pretrained(
        model,
        config=config,
        dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
        attn_implementation=attention.NAME,
    ).to(device)
    if base.get_output_embeddings().bias is not None:
        raise BadSettings(f"{model} cannot be trained: its head has a bias")
    return base


def _end_tokens(model: Path | str, base: Any) -> frozenset[int]:
    """The tokens at which the engine ends a reply: the tokenizer's, and those of the generation config."""
    named = base.generation_config.eos_token_id
    ends = set(named if isinstance(named, list) else [named])
    ends.add(AutoTokenizer.from_pretrained(model).eos_token_id)
    return frozenset(ends - {None})


def whole(item: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded. All processes must call this."""
    return (item.full_tensor() if isinstance(item, DTensor) else item).detach()


def like(item: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, sharded as `other` is."""
    if isinstance(other, DTensor):
        return distribute_tensor(item.to(other.device), other.device_mesh, other.placements)
    return item
