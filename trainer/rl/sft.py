"""Supervised fine-tuning of the policy's adapter, for the warm start of a critic that cannot keep the format.

The loss is the negative log-likelihood of the reply's tokens: mean over a reply, then over the replies of a batch.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from gadfly.trainer.rl.loss import token_weights
from gadfly.trainer.rl.optimiser import Optimiser, cosine, generator_of, minibatches, shares
from gadfly.trainer.rl.packing import Group, pack
from gadfly.trainer.rl.policy import Policy, Which
from gadfly.training import TrainConfig

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""A prompt and the reply to learn, as token ids."""

_STREAM = 1  # makes the shuffles differ from those of the rollout steps


class FineTuning:
    """The policy's optimiser for the warm start. A batch has `config.prompts_per_step` x `samples_per_prompt` replies.

    Over all epochs the learning rate falls on a cosine from `warm_start_learning_rate` to that times
    `final_learning_rate`.
    """

    def __init__(self, policy: Policy, config: TrainConfig, *, accelerator: Accelerator | None = None) -> None:
        self._policy = policy
        self._config = config
        self._optimiser = Optimiser(
            policy,
            betas=(config.beta_1, config.beta_2),
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            accelerator=accelerator,
        )

    def epoch(self, pairs: Sequence[Pair], epoch: int) -> dict[str, float]:
        """Learn from every pair once, in an order that depends on the seed and the epoch (from 0) alone."""
        started = time.perf_counter()
        config = self._config
        size = config.prompts_per_step * config.samples_per_prompt
        batches = minibatches(len(pairs), -(-len(pairs) // size), generator_of(config.fixed_seed, epoch, _STREAM))
        losses: list[float] = []
        norms: list[float] = []
        for number, batch in enumerate(batches):
            losses.append(self._batch([pairs[index] for index in batch]))
            norms.append(
                self._optimiser.step(
                    cosine(
                        epoch * len(batches) + number,
                        steps=config.warm_start_epochs * len(batches),
                        warmup=0,
                        peak=config.warm_start_learning_rate,
                        final=config.final_learning_rate,
                    )
                )
            )
        return {
            "loss": sum(losses) / len(losses),
            "grad_norm": sum(norms) / len(norms),
            "batches": float(len(batches)),
            "tokens": float(sum(len(reply) for _, reply in pairs)),
            "seconds": time.perf_counter() - started,
        }

    def save(self, folder: Path) -> None:
        """Write the adapter and the optimiser's state. All processes must call this."""
        self._policy.save_adapter(folder / Which.POLICY.value, write=self._optimiser.process == 0)
        self._optimiser.save(folder)

    def load(self, folder: Path) -> None:
        """Restore the state that `save` wrote."""
        self._policy.load_adapter(folder / Which.POLICY.value)
        self._optimiser.load(folder)

    def _batch(self, pairs: Sequence[Pair]) -> float:
        by_prompt: dict[tuple[int, ...], list[tuple[int, ...]]] = defaultdict(list)
        for prompt, reply in pairs:
            by_prompt[prompt].append(reply)
        groups = [Group.unscored(prompt, *replies) for prompt, replies in by_prompt.items()]
        packs = [
            pack([groups[index] for index in part], self._config.micro_batch_tokens)
            for part in shares(groups, range(len(groups)), self._optimiser.processes)
        ]
        mine = packs[self._optimiser.process]
        total = torch.zeros((), device=self._policy.device)
        for number in range(self._optimiser.passes([len(item) for item in packs])):
            is_real = number < len(mine)
            row = mine[number] if is_real else packs[0][0]
            weights_N = token_weights(row.lengths_R, critiques=len(pairs)).to(self._policy.device) * is_real
            logprobs_N, _ = self._policy.forward(row)
            loss = -(weights_N * logprobs_N).sum()
            self._optimiser.backward(loss)
            total += loss.detach()
        return float(self._optimiser.sum(total))
