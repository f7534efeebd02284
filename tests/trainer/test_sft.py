from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gadfly.trainer.rl.packing import Group, pack
from gadfly.trainer.rl.policy import Policy, Which
from gadfly.trainer.rl.sft import FineTuning, Pair
from gadfly.training import TrainConfig
from tests.support.policies import bits, policy_of, random_groups

CONFIG = TrainConfig(
    prompts_per_step=4,
    samples_per_prompt=2,
    minibatches=1,
    warm_start_epochs=3,
    warm_start_learning_rate=2e-3,
    micro_batch_tokens=64,
)
PAIRS: list[Pair] = [(group.prompt, reply) for group in random_groups(4) for reply in group.replies]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def loss_of(policy: Policy) -> float:
    with torch.no_grad():
        means = [-policy.forward(pack([Group.unscored(*pair)], 1)[0])[0].mean() for pair in PAIRS]
    return float(torch.stack(means).mean())


def test_the_loss_is_the_mean_over_replies_of_the_mean_over_tokens(model: Path) -> None:
    policy = policy_of(model)
    before = loss_of(policy)
    config = CONFIG.model_copy(update={"prompts_per_step": 6})
    metrics = FineTuning(policy, config).epoch(PAIRS, 0)
    assert metrics["batches"] == 1  # 12 pairs fit one batch, so the loss is that of the initial weights
    assert metrics["loss"] == pytest.approx(before, abs=1e-5)
    assert metrics["tokens"] == sum(len(reply) for _, reply in PAIRS)


def test_replies_are_learned_and_the_anchor_does_not_change(model: Path) -> None:
    policy = policy_of(model)
    anchor = bits(policy, Which.ANCHOR)
    before = loss_of(policy)
    tuning = FineTuning(policy, CONFIG)
    for epoch in range(3):
        assert tuning.epoch(PAIRS, epoch)["batches"] == 2
    assert loss_of(policy) < before - 0.1
    assert bits(policy, Which.ANCHOR) == anchor


def test_a_resumed_warm_start_ends_with_the_bits_of_an_unbroken_one(model: Path, tmp_path: Path) -> None:
    unbroken = policy_of(model)
    tuning = FineTuning(unbroken, CONFIG)
    for epoch in range(3):
        if epoch == 1:
            tuning.save(tmp_path)
        tuning.epoch(PAIRS, epoch)
    resumed = policy_of(model, seed=9)
    tuning = FineTuning(resumed, CONFIG)
    tuning.load(tmp_path)
    for epoch in (1, 2):
        tuning.epoch(PAIRS, epoch)
    assert bits(resumed) == bits(unbroken)
