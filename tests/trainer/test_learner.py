import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gadfly.trainer.rl.advantages import advantages
from gadfly.trainer.rl.learner import Learner
from gadfly.trainer.rl.optimiser import cosine, minibatches, shares
from gadfly.trainer.rl.packing import Group, pack
from gadfly.trainer.rl.policy import Policy, Which
from gadfly.training import Baseline, TrainConfig
from tests.support.policies import bits, policy_of, random_groups

CONFIG = TrainConfig(
    seed=7,
    steps_stage_1=3,
    steps_stage_2=3,
    prompts_per_step=6,
    minibatches=2,
    inner_epochs=2,
    learning_rate=1e-3,
    warmup_steps=1,
    micro_batch_tokens=48,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows(step: int) -> list[Group]:
    return random_groups(6, seed=step)


def naive_logprobs(policy: Policy, groups: list[Group], which: Which, temperature: float = 1.0) -> list[Tensor]:
    """The log-probabilities of each reply by itself, one row at a time."""
    return [
        policy.forward(pack([Group.unscored(group.prompt, reply)], 1)[0], which, temperature=temperature)[0]
        for group in groups
        for reply in group.replies
    ]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_step_follows_the_definition(model: Path, temperature: float) -> None:
    """One optimiser step on all groups at once equals the definition, written out with one row per reply.

    Ratio and KL are of the distribution that the replies were sampled from; the comparison with the engine is at
    temperature 1, at which the engine reports its log-probabilities.
    """
    changes = {"minibatches": 1, "inner_epochs": 1, "importance_cap": 1.5, "temperature": temperature}
    config = CONFIG.model_copy(update=changes)
    groups = rows(0)
    policy, plain = policy_of(model), policy_of(model)
    metrics = Learner(policy, config, kl_coefficient=0.05).update(groups, 0)

    with torch.no_grad():
        raw = torch.cat(naive_logprobs(plain, groups, Which.POLICY))
        old, anchor = (
            torch.cat(naive_logprobs(plain, groups, which, temperature)) for which in (Which.POLICY, Which.ANCHOR)
        )
    lengths = [len(reply) for group in groups for reply in group.replies]
    scores = torch.tensor([score for group in groups for score in group.scores])
    advantage = advantages(scores, old, anchor, group_sizes=[3] * 6, lengths_R=lengths, kl_coefficient=0.05).float()
    engine = torch.tensor([value for group in groups for reply in group.engine_logprobs for value in reply])
    importance = (raw - engine).exp().clamp(max=1.5)
    ratio = (torch.cat(naive_logprobs(plain, groups, Which.POLICY, temperature)) - old).exp()
    surrogate = importance * torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    loss = -torch.stack([reply.mean() for reply in torch.split(surrogate, lengths)]).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    adam = torch.optim.AdamW(plain.weights.values(), lr=0.5e-3, betas=(0.9, 0.95), weight_decay=0.0)
    norm = torch.nn.utils.clip_grad_norm_(plain.weights.values(), 1.0)
    adam.step()

    for (name, found), expected in zip(policy.weights.items(), plain.weights.values(), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0, msg=name)
    assert bits(policy, Which.ANCHOR) == bits(plain, Which.ANCHOR)
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert metrics["kl"] == pytest.approx((old - anchor).sum().item() / 18, rel=1e-4)
    assert metrics["logprob_gap_max"] == pytest.approx((raw - engine).abs().max().item(), rel=1e-4)
    assert metrics["importance_weight_mean"] == pytest.approx(importance.mean().item(), rel=1e-4)
    assert metrics["reward_mean"] == pytest.approx(scores.mean().item())
    assert metrics["clip_fraction"] == 0.0  # the first step starts from the weights of the rollouts
    assert metrics["approximate_kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["tokens"] == sum(lengths)
    assert metrics["packed_tokens"] == sum(group.packed_tokens for group in groups)


def test_replies_with_higher_scores_become_likelier(model: Path) -> None:
    policy = policy_of(model)
    learner = Learner(policy, CONFIG.model_copy(update={"learning_rate": 3e-3}), kl_coefficient=0.0)
    [group] = random_groups(1, replies=2, tokens=8)
    group = Group(group.prompt, group.replies, group.engine_logprobs, (1.0, 0.0))

    def lead() -> float:
        with torch.no_grad():
            good, bad = naive_logprobs(policy, [group], Which.POLICY)
        return float(good.mean() - bad.mean())

    before = lead()
    for step in range(3):
        learner.update([group], step)
    assert lead() > before + 0.1


def test_a_step_whose_groups_teach_nothing_is_skipped(model: Path, tmp_path: Path) -> None:
    """Also where the anchor differs: whitened, the least KL would be an update of full size."""
    groups = [replace(group, scores=(0.5,) * 3) for group in random_groups(4, tokens=6)]
    policy = policy_of(model)
    learner = Learner(policy, CONFIG, kl_coefficient=0.1)
    learner.update(rows(0), 1)
    before = bits(policy)
    learner.save(tmp_path / "before")
    metrics = learner.update(groups, 2)
    learner.save(tmp_path / "after")
    assert bits(policy) == before
    assert metrics.items() >= {"skipped": 1.0, "zero_advantage": 1.0, "reward_std": 0.0}.items()
    for file in (tmp_path / "before").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "after" / file.relative_to(tmp_path / "before")).read_bytes()


def test_a_group_teaches_by_its_mean_where_the_baseline_is_the_steps_mean(model: Path) -> None:
    groups = [replace(group, scores=(float(number % 2),) * 3) for number, group in enumerate(rows(0))]
    for baseline, is_skipped in ((Baseline.BATCH_MEAN, 0.0), (Baseline.LEAVE_ONE_OUT, 1.0)):
        config = CONFIG.model_copy(update={"baseline": baseline})
        assert Learner(policy_of(model), config, kl_coefficient=0.0).update(groups, 0)["skipped"] == is_skipped


def test_groups_whose_scores_are_equal_can_be_left_out(model: Path) -> None:
    config = CONFIG.model_copy(update={"skip_zero_advantage": True})
    groups = [replace(group, scores=(0.0, 1.0, 1.0)) for group in rows(0)]
    uniform = [replace(group, scores=(1.0, 1.0, 1.0)) for group in random_groups(3, seed=9)]
    skipping, plain = policy_of(model), policy_of(model)
    metrics = Learner(skipping, config, kl_coefficient=0.05).update([*groups, *uniform], 0)
    Learner(plain, CONFIG, kl_coefficient=0.05).update(groups, 0)
    assert bits(skipping) == bits(plain)
    assert metrics["zero_advantage"] == pytest.approx(3 / 9), "the metric counts them nevertheless"


@pytest.mark.parametrize("saved_after", [1, 2, 3])
def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(model: Path, tmp_path: Path, saved_after: int) -> None:
    unbroken = policy_of(model)
    learner = Learner(unbroken, CONFIG, kl_coefficient=0.01)
    metrics = [learner.update(rows(step), step) for step in range(4)]

    killed = policy_of(model)
    learner = Learner(killed, CONFIG, kl_coefficient=0.01)
    for step in range(saved_after):
        learner.update(rows(step), step)
    learner.save(tmp_path)
    learner.update(rows(99), saved_after)  # lost with the process

    resumed = policy_of(model, seed=5)
    learner = Learner(resumed, CONFIG, kl_coefficient=0.01)
    learner.load(tmp_path)
    again = [learner.update(rows(step), step) for step in range(saved_after, 4)]
    assert bits(resumed) == bits(unbroken)
    assert bits(resumed, Which.ANCHOR) == bits(unbroken, Which.ANCHOR)
    for found, expected in zip(again, metrics[saved_after:], strict=True):
        assert {**found, "seconds": 0} == {**expected, "seconds": 0}


def test_minibatches_depend_on_seed_and_step(model: Path) -> None:
    def after(config: TrainConfig, step: int) -> dict[str, bytes]:
        policy = policy_of(model)
        Learner(policy, config, kl_coefficient=0.01).update(rows(0), step)
        return bits(policy)

    flat = CONFIG.model_copy(update={"final_learning_rate": 1.0, "warmup_steps": 0})
    assert after(flat, 1) == after(flat, 1)
    assert after(flat, 1) != after(flat, 2)
    assert after(flat, 1) != after(flat.model_copy(update={"seed": 8}), 1)


def test_minibatches_hold_every_group_once() -> None:
    for count, parts, sizes in ((7, 3, [2, 2, 3]), (2, 4, [1, 1]), (8, 4, [2, 2, 2, 2])):
        found = minibatches(count, parts, torch.Generator().manual_seed(0))
        assert sorted(index for batch in found for index in batch) == list(range(count))
        assert sorted(map(len, found)) == sizes


def test_processes_get_whole_groups_of_about_equal_work() -> None:
    groups = [Group.unscored(range(1, size + 1), [1]) for size in (9, 1, 5, 4, 2)]
    assert shares(groups, [0, 1, 2, 3, 4], 2) == [[0, 4], [2, 3, 1]]
    assert shares(groups, [3], 2) == [[3], []]


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [cosine(step, steps=7, warmup=1, peak=2.0, final=0.1) for step in range(8)]
    # Half the peak, then a cosine over five steps: 0.1 + 0.9 x (1 + cos(i x 36 degrees)) / 2, times the peak.
    expected = [1.0] + [2 * (0.1 + 0.9 * (1 + math.cos(math.pi * i / 5)) / 2) for i in range(6)] + [0.2]
    assert rates == pytest.approx(expected)
    assert cosine(0, steps=1, warmup=0, peak=2.0, final=0.1) == 2.0
