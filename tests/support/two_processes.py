"""The program that the tests run with `accelerate launch`: MODEL OUT KIND.

It makes a few updates with a save and a load between them. The first process writes the weights, the metrics and the
policy's greedy reply at the end.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from gadfly.trainer.rl.learner import Learner
from tests.support.policies import policy_of
from tests.trainer.test_learner import CONFIG, rows

PROMPT = tuple(range(30, 45))


def main(model: Path, out: Path, kind: str) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    policy = policy_of(model)
    if kind == "fsdp":
        policy.shard()  # accelerate shards on GPUs alone
    learner = Learner(policy, CONFIG, kl_coefficient=0.05, accelerator=accelerator)
    metrics = [learner.update(rows(step), step) for step in range(2)]
    learner.save(out / "saved")
    accelerator.wait_for_everyone()
    learner.load(out / "saved")
    metrics.append(learner.update(rows(2), 2))
    learner.save(out / "end")
    greedy = policy.greedy(PROMPT, 8)
    if accelerator.is_main_process:
        (out / "metrics.json").write_text(json.dumps(metrics))
        (out / "greedy.json").write_text(json.dumps([greedy.tokens, greedy.logprobs]))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
