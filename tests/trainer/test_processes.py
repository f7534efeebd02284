import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gadfly.adapters import WEIGHTS
from gadfly.trainer.rl.learner import Learner
from gadfly.trainer.rl.policy import Policy
from tests.support.policies import policy_of
from tests.support.two_processes import PROMPT
from tests.trainer.test_learner import CONFIG, rows

REPOSITORY = Path(__file__).parents[2]
CriticMetrics = list[dict[str, float]]


@pytest.fixture(scope="module")
def alone(model: Path) -> tuple[Policy, CriticMetrics]:
    """The policy and the metrics of one process."""
    policy = policy_of(model)
    learner = Learner(policy, CONFIG, kl_coefficient=0.05)
    return policy, [learner.update(rows(step), step) for step in range(3)]


@pytest.mark.parametrize("kind", ["whole", "fsdp"])
def test_two_processes_give_the_result_of_one(
    model: Path, tmp_path: Path, alone: tuple[Policy, CriticMetrics], kind: str
) -> None:
    """Over gloo on CPU, with a save and a load. Minibatches of three groups give the processes unequal shares."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *("--multi_gpu", "--num_processes", "2", "--num_machines", "1"),  # multi_gpu selects torchrun
            *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
            *("--module", "tests.support.two_processes", str(model), str(tmp_path), kind),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    policy, metrics = alone
    weights = load_file(tmp_path / "end" / "policy" / WEIGHTS)
    assert set(weights) == set(policy.weights)
    for name, weight in policy.weights.items():
        torch.testing.assert_close(weights[name], weight.detach(), atol=1e-6, rtol=0)
    for one, two in zip(metrics, json.loads((tmp_path / "metrics.json").read_text()), strict=True):
        assert {**two, "seconds": 0} == pytest.approx({**one, "seconds": 0}, rel=1e-3, abs=1e-6)
    greedy = policy.greedy(PROMPT, 8)
    tokens, logprobs = json.loads((tmp_path / "greedy.json").read_text())
    assert tuple(tokens) == greedy.tokens
    assert logprobs == pytest.approx(greedy.logprobs, abs=1e-4)
