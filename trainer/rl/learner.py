"""The update of one rollout step: from scored critiques to new weights.

Critique-RL (arXiv 2510.24320): advantages as in `trainer/rl/advantages.py`, then a few epochs of PPO-clipped
minibatches. Every process computes the log-probabilities of its share; they are summed over the processes, so
advantages, whitening and minibatches are the same in all of them.

Axis letters: R replies, N tokens of all replies one after another, in the order of the groups.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from gadfly.trainer.rl.advantages import advantages
from gadfly.trainer.rl.loss import Measured, clipped_loss, importance_weights, token_weights
from gadfly.trainer.rl.optimiser import Optimiser, cosine, generator_of, minibatches, shares
from gadfly.trainer.rl.packing import Group, Pack, pack
from gadfly.trainer.rl.policy import Policy, Which
from gadfly.training import Baseline, TrainConfig


class Learner:
    """The policy's optimiser for one stage.

    Args:
        kl_coefficient: of the stage, towards the policy's anchor.
        first_step, steps: the stage's first step in the run, and its number of steps. Each stage has a learning rate
            schedule of its own. Default: the run is one stage.
        accelerator: the processes that share the work. None: this process alone.
    """

    def __init__(
        self,
        policy: Policy,
        config: TrainConfig,
        *,
        kl_coefficient: float,
        first_step: int = 0,
        steps: int | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self._policy = policy
        self._config = config
        self._first_step = first_step
        self._steps = config.steps if steps is None else steps
        self._kl_coefficient = kl_coefficient
        self._optimiser = Optimiser(
            policy,
            betas=(config.beta_1, config.beta_2),
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            accelerator=accelerator,
        )

    def update(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        """Learn from one step's rollouts; returns the step's metrics.

        All processes get the same groups. `step` counts the run's rollout steps over all stages from 0. The learning
        rate depends on the step's place in the stage, the minibatches on the step and the config's seed, so a resumed
        run does the same as an unbroken one.

        A step whose scores tell no critique from another is skipped: without them the whitened advantages are noise
        around KL. Weights and optimiser stay, and the metrics are those of the scores with `skipped` = 1.
        """
        started = time.perf_counter()
        config = self._config
        statistics = _score_statistics(groups)
        told_apart = informative(groups)
        if not (told_apart or (config.baseline is Baseline.BATCH_MEAN and statistics["reward_std"])):
            return {**statistics, "skipped": 1.0, "seconds": time.perf_counter() - started}
        if config.skip_zero_advantage and told_apart:
            groups = told_apart
        raw_N, old_N, anchor_N = self._logprobs(groups)
        engine_N = torch.tensor([value for group in groups for reply in group.engine_logprobs for value in reply])
        scores_R = torch.tensor([score for group in groups for score in group.scores])
        sizes = [len(group.replies) for group in groups]
        lengths_R = [len(reply) for group in groups for reply in group.replies]
        advantages_N = advantages(
            scores_R,
            old_N,
            anchor_N,
            group_sizes=sizes,
            lengths_R=lengths_R,
            kl_coefficient=self._kl_coefficient,
            baseline=config.baseline,
        ).float()
        importance_N = importance_weights(raw_N, engine_N, config.importance_cap)

        rate = cosine(
            step - self._first_step,
            steps=self._steps,
            warmup=config.warmup_steps,
            peak=config.learning_rate,
            final=config.final_learning_rate,
        )
        totals: list[Tensor] = []
        norms: list[float] = []
        packed = 0
        generator = generator_of(config.fixed_seed, step)
        for _ in range(config.inner_epochs):
            for chosen in minibatches(len(groups), config.minibatches, generator):
                measured, tokens = self._minibatch(groups, chosen, old_N, advantages_N, importance_N)
                norms.append(self._optimiser.step(rate))
                totals.append(measured)
                packed += tokens
        loss, clipped, moved, entropy, tokens_seen, packed_all = self._optimiser.sum(
            torch.cat([torch.stack(totals).sum(0), torch.tensor([float(packed)], dtype=torch.float64)])
        ).tolist()
        gap_N = (raw_N - engine_N).abs()
        return {
            "loss": loss / len(totals),
            "kl": float((old_N - anchor_N).sum()) / len(lengths_R),
            "entropy": entropy / tokens_seen,
            "clip_fraction": clipped / tokens_seen,
            "approximate_kl": moved / tokens_seen,
            "logprob_gap_mean": float(gap_N.mean()),
            "logprob_gap_max": float(gap_N.max()),
            "importance_weight_mean": float(importance_N.mean()),
            "grad_norm": sum(norms) / len(norms),
            "learning_rate": rate,
            **statistics,
            "skipped": 0.0,
            "tokens": float(len(old_N)),
            "packed_tokens": packed_all,
            "seconds": time.perf_counter() - started,
        }

    def save(self, folder: Path) -> None:
        """Write both adapters and the optimiser's state. All processes must call this."""
        for which in (Which.POLICY, Which.ANCHOR):
            self._policy.save_adapter(folder / which.value, which, write=self._optimiser.process == 0)
        self._optimiser.save(folder)

    def load(self, folder: Path) -> None:
        """Restore the state that `save` wrote. The next update gives the same bits as in an unbroken run."""
        for which in (Which.POLICY, Which.ANCHOR):
            self._policy.load_adapter(folder / which.value, which)
        self._optimiser.load(folder)

    @torch.no_grad()
    def _logprobs(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of all groups' reply tokens as the weights are now, each (N) on the CPU, in nats.

        By the policy at temperature 1, as the engine reports its own; by the policy and by the anchor at the
        temperature that the replies were sampled at.
        """
        starts, temperature = _starts(groups), self._config.temperature
        found_3N = torch.zeros(3, starts[-1], device=self._policy.device)
        for row, weight in self._packs(groups, range(len(groups))):
            (raw_N, _), (old_N, _) = self._policy.forward_at(row, Which.POLICY, (1.0, temperature))
            anchor_N, _ = self._policy.forward(row, Which.ANCHOR, temperature=temperature)
            if weight:
                found_3N[:, _tokens_of(row.groups, starts)] = torch.stack([raw_N, old_N, anchor_N])
        raw_N, old_N, anchor_N = self._optimiser.sum(found_3N).cpu()
        return raw_N, old_N, anchor_N

    def _minibatch(
        self, groups: Sequence[Group], chosen: Sequence[int], old_N: Tensor, advantages_N: Tensor, importance_N: Tensor
    ) -> tuple[Tensor, int]:
        """Add up the gradients of this process's share; returns its sums, as `_as_row`, and its packed tokens."""
        starts = _starts(groups)
        critiques = sum(len(groups[index].replies) for index in chosen)
        sums = torch.zeros(5, dtype=torch.float64)
        packed = 0
        for row, weight in self._packs(groups, chosen):
            logprobs_N, entropies_N = self._policy.forward(row, temperature=self._config.temperature)
            place_N = _tokens_of(row.groups, starts)
            measured = clipped_loss(
                logprobs_N,
                entropies_N,
                old_N=old_N[place_N].to(self._policy.device),
                advantages_N=advantages_N[place_N].to(self._policy.device),
                importance_N=importance_N[place_N].to(self._policy.device),
                weights_N=(token_weights(row.lengths_R, critiques=critiques) * weight).to(self._policy.device),
                clip=self._config.clip,
            )
            self._optimiser.backward(measured.loss)
            if weight:
                sums += _as_row(measured)
                packed += len(row.tokens_T)
        return sums, packed

    def _packs(self, groups: Sequence[Group], chosen: Sequence[int]) -> list[tuple[Pack, int]]:
        """This process's packs of these groups, with weight 1, and filler packs with weight 0 (see `Optimiser.passes`).

        Packs name groups by their index in `groups`.
        """
        laid_out = [
            [item.renumbered(part) for item in pack([groups[index] for index in part], self._config.micro_batch_tokens)]
            for part in shares(groups, chosen, self._optimiser.processes)
        ]
        mine = [(item, 1) for item in laid_out[self._optimiser.process]]
        extra = self._optimiser.passes([len(packs) for packs in laid_out]) - len(mine)
        return mine + [(laid_out[0][0], 0)] * extra


def informative(groups: Sequence[Group]) -> list[Group]:
    """The groups whose scores differ."""
    return [group for group in groups if len(set(group.scores)) > 1]


def _score_statistics(groups: Sequence[Group]) -> dict[str, float]:
    scores_R = torch.tensor([score for group in groups for score in group.scores])
    return {
        "reward_mean": float(scores_R.mean()),
        "reward_std": float(scores_R.std(correction=0)),
        "zero_advantage": sum(len(set(group.scores)) == 1 for group in groups) / len(groups),
    }


def _starts(groups: Sequence[Group]) -> list[int]:
    starts = [0]
    for group in groups:
        starts.append(starts[-1] + group.reply_tokens)
    return starts


def _tokens_of(indices: Sequence[int], starts: Sequence[int]) -> Tensor:
    """The places of some groups' reply tokens among those of all groups."""
    return torch.cat([torch.arange(starts[index], starts[index + 1]) for index in indices])


def _as_row(measured: Measured) -> Tensor:
    return (
        torch.stack([measured.loss.detach(), measured.clipped, measured.kl, measured.entropy, measured.tokens])
        .double()
        .cpu()
    )
