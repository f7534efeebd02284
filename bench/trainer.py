"""The trainer's update against TRL's RLOOTrainer: `python -m bench.trainer [--model FOLDER]`.

Both sides have the same model, LoRA configuration, prompts, critiques, scores (random tokens of typical lengths) and
number of threads, and do the same work in a round: log-probabilities of policy and reference, then two epochs of
forward, backward and AdamW. Neither side generates: a table replaces TRL's generation. Each side is a separate process;
they take turns. Every ratio is taken within a round and shown with its spread over the rounds. Memory is the kernel's
peak of resident memory: the total, and the part added by training after model and optimiser were loaded.

Before that, one fixed batch shows that both sides compute the same. The RLOO of Gadfly and TRL differs in four points:

    ratio       TRL: one per critique, of the sums of log-probabilities; Gadfly (as Critique-RL): one per token
    length      TRL: the sum over a critique's tokens; Gadfly: their mean
    KL          TRL: summed over the critique, part of score and baseline; Gadfly: at each token, not in the baseline
    whitening   TRL: none, or over critiques; Gadfly: over all tokens

Without these differences the losses must be equal: TRL's formula on Gadfly's log-probabilities must give TRL's loss;
TRL's advantages must be the leave-one-out of scores minus KL; and at ratio 1 the gradient of Gadfly's clipped loss with
TRL's advantages and without the division by length must be the gradient of TRL's loss.

The goals are twice TRL's speed and 0.6 of its memory.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gadfly.adapters import TARGET_MODULES
from gadfly.settings import DEFAULT_MODEL, Settings
from gadfly.trainer.rl.advantages import leave_one_out
from gadfly.trainer.rl.learner import Learner
from gadfly.trainer.rl.loss import clipped_loss
from gadfly.trainer.rl.packing import Group, pack
from gadfly.trainer.rl.policy import Policy, Which
from gadfly.training import TrainConfig

RANK, ALPHA, KL, CLIP, RATE = 16, 32, 0.01, 0.2, 2e-5
EPOCHS = 2


@dataclass(frozen=True, slots=True)
class Round:
    """The measurement of one side in one round. Memory in bytes: resident after loading, and the peak since then.

    CPU time is comparable on a shared machine too; wall time is not.
    """

    seconds: float
    cpu_seconds: float
    loaded: int
    peak: int


def groups_of(options: argparse.Namespace) -> list[Group]:
    """Groups of random tokens. Lengths vary by a tenth around the options' values, as in a sorted batch."""
    rng = random.Random(0)  # the same tokens on both sides

    def ids(length: int) -> tuple[int, ...]:
        varied = max(1, round(length * rng.uniform(0.9, 1.1)))
        return tuple(rng.randrange(100, options.vocabulary) for _ in range(varied))

    groups = []
    for _ in range(options.groups):
        replies = tuple(ids(options.reply) for _ in range(options.samples))
        scores = tuple(float(rng.randint(0, 1)) for _ in replies)
        groups.append(Group(ids(options.prompt), replies, tuple((-10.0,) * len(reply) for reply in replies), scores))
    return groups


class MemoryMeter:
    """Resident memory of this process, from /proc."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self.loaded = self._read("VmRSS")

    def peak(self) -> int:
        return self._read("VmHWM")

    def _read(self, field: str) -> int:
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
        return 1024 * int(line.split()[1])


def wait_for_turn() -> None:
    print("READY", flush=True)
    if not sys.stdin.readline():
        raise SystemExit(0)


class Clock:
    """Wall time and CPU time of this process since the clock was created."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def report(self, memory: MemoryMeter) -> None:
        seconds, cpu_seconds = time.perf_counter() - self._wall, time.process_time() - self._cpu
        result = Round(seconds=seconds, cpu_seconds=cpu_seconds, loaded=memory.loaded, peak=memory.peak())
        print(json.dumps(asdict(result)), flush=True)


def gadfly_side(options: argparse.Namespace) -> None:
    policy = Policy(
        options.model, rank=RANK, alpha=ALPHA, seed=0, gradient_checkpointing=options.gradient_checkpointing
    )
    learner = Learner(policy, gadfly_config(options), kl_coefficient=KL)
    groups = groups_of(options)
    memory = MemoryMeter()
    for step in range(options.rounds):
        wait_for_turn()
        clock = Clock()
        learner.update(groups, step)
        clock.report(memory)


def gadfly_config(options: argparse.Namespace) -> TrainConfig:
    return TrainConfig(
        steps_stage_1=options.rounds,
        steps_stage_2=0,
        prompts_per_step=options.groups,
        samples_per_prompt=options.samples,
        inner_epochs=EPOCHS,
        minibatches=options.groups,  # one group per step, as on TRL's side
        micro_batch_tokens=1,  # one row per group: the same critiques per pass as TRL's batch of `samples`
        clip=CLIP,
        learning_rate=RATE,
        final_learning_rate=1.0,
        warmup_steps=0,
    )


def trl_trainer(options: argparse.Namespace, groups: list[Group], folder: Path, callbacks: list[Any]) -> Any:
    """The unmodified trainer of TRL, with prompts, completions and scores from a table."""
    from datasets import Dataset  # noqa: PLC0415  # keeps these imports out of Gadfly's process
    from peft import LoraConfig  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415
    from trl.trainer.rloo_config import RLOOConfig  # noqa: PLC0415
    from trl.trainer.rloo_trainer import RLOOTrainer  # noqa: PLC0415

    by_prompt = {list_key(group.prompt): group for group in groups}
    score_of = {reply: score for group in groups for reply, score in zip(group.replies, group.scores, strict=True)}

    class FromTable(RLOOTrainer):  # type: ignore[misc]  # mypy does not follow trl
        def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return [list(groups[int(prompt)].prompt) for prompt in prompts], None, {}

        def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any) -> list[list[int]]:
            # Each prompt appears `samples` times in a row and gets its next reply each time.
            return [
                list(by_prompt[list_key(ids)].replies[place % options.samples]) for place, ids in enumerate(prompt_ids)
            ]

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [score_of[tuple(ids)] for ids in completion_ids]

    config = RLOOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,  # float32 on both sides
        gradient_checkpointing=options.gradient_checkpointing,  # TRL's default is True
        num_generations=options.samples,
        per_device_train_batch_size=options.samples,  # one group per pass
        gradient_accumulation_steps=1,  # one step of AdamW per pass
        generation_batch_size=options.samples * options.groups,  # scores all groups of a round first
        num_iterations=EPOCHS,
        max_steps=EPOCHS * options.groups * options.rounds,
        max_completion_length=2 * options.reply,
        temperature=1.0,  # of the log-probabilities; Gadfly's are always at 1
        beta=KL,  # above 0, so that the reference (the model without adapter) is computed
        epsilon=CLIP,
        normalize_advantages=False,  # TRL's is over critiques, Gadfly's over tokens; the cost of either is negligible
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        disable_dropout=True,
        shuffle_dataset=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return FromTable(
        model=AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation="sdpa"),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": str(number)} for number in range(len(groups))]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(TARGET_MODULES), task_type="CAUSAL_LM"
        ),
        callbacks=callbacks,
    )


def list_key(ids: Any) -> tuple[int, ...]:
    return tuple(int(item) for item in ids)


def trl_side(options: argparse.Namespace) -> None:
    from transformers import TrainerCallback  # noqa: PLC0415

    steps = EPOCHS * options.groups

    class Turns(TrainerCallback):  # type: ignore[misc]  # mypy does not follow transformers
        """Waits before the first step of a round and reports after its last step."""

        memory: MemoryMeter
        clock: Clock

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 0:
                self.memory = MemoryMeter()
            if state.global_step % steps == 0:
                wait_for_turn()
                self.clock = Clock()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % steps == 0:
                self.clock.report(self.memory)

    with tempfile.TemporaryDirectory() as folder:
        trl_trainer(options, groups_of(options), Path(folder), [Turns()]).train()


def agreement(options: argparse.Namespace) -> None:
    """Print the differences between both sides on one group."""
    group = groups_of(options)[0]
    policy = Policy(options.model, rank=RANK, alpha=ALPHA, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.weights.values():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.02)
    single = argparse.Namespace(**{**vars(options), "groups": 1, "gradient_checkpointing": False})
    with tempfile.TemporaryDirectory() as folder:
        trl = trl_trainer(single, [group], Path(folder), [])
    trl_weights = {
        name.replace(".default.", "."): item for name, item in trl.model.named_parameters() if ".lora_" in name
    }
    with torch.no_grad():
        for name, weight in policy.weights.items():
            trl_weights[name].copy_(weight)
    trl.model.train()
    batch = trl._generate_and_score_completions([{"prompt": "0"}] * options.samples)
    order = [group.replies.index(list_key(ids[mask.bool()])) for ids, mask in _completions(batch)]
    assert sorted(order) == list(range(options.samples))

    [row] = pack([group], 1)
    lengths = list(row.lengths_R)
    logps_N, entropies_N = policy.forward(row)
    with torch.no_grad():
        base_N, _ = policy.forward(row, Which.BASE)
    sums_R = torch.stack([part.sum() for part in torch.split(logps_N, lengths)])
    kl_R = torch.stack([part.sum() for part in torch.split(logps_N.detach() - base_N, lengths)])
    expected_R = leave_one_out(torch.tensor(group.scores) - KL * kl_R, [options.samples])

    # Shifted old log-probabilities, so that the ratio differs from 1 and is clipped for some critiques.
    moved = torch.linspace(-0.3, 0.3, options.samples)
    with torch.no_grad():
        trl_moved_loss = trl._compute_loss(trl.model, {**batch, "old_logps": batch["old_logps"] - moved[order]})
    trl_old_R = torch.empty(options.samples)
    trl_old_R[order] = batch["old_logps"]
    ratio_R = (sums_R.detach() - (trl_old_R - moved)).exp()
    gadfly_moved_loss = -torch.minimum(ratio_R * expected_R, ratio_R.clamp(1 - CLIP, 1 + CLIP) * expected_R).mean()

    trl_loss = trl._compute_loss(trl.model, batch)
    trl_loss.backward()
    gadfly_loss = clipped_loss(
        logps_N,
        entropies_N,
        old_N=logps_N.detach(),
        advantages_N=expected_R.float().repeat_interleave(torch.tensor(lengths)),
        importance_N=torch.ones_like(logps_N),
        weights_N=torch.full_like(logps_N, 1 / options.samples),
        clip=CLIP,
    ).loss
    gadfly_loss.backward()  # type: ignore[no-untyped-call]
    difference = norm(
        [item.grad - trl_weights[name].grad for name, item in policy.weights.items() if item.grad is not None]
    )
    total = norm([item.grad for item in trl_weights.values()])

    log = {
        "log-probability of a critique, largest difference": (
            f"{max_difference(sums_R[order], batch['old_logps']):.1e} of {float(sums_R.detach().abs().mean()):.0f} nats"
        ),
        "advantage, largest difference": f"{max_difference(expected_R[order], batch['advantages']):.1e}",
        "TRL's loss, and its formula on Gadfly's log-probabilities": f"{float(trl_moved_loss):.6f}, "
        f"{float(gadfly_moved_loss):.6f}",
        "gradient at ratio 1, difference over norm": f"{difference / total:.1e}",
    }
    print(json.dumps(log), flush=True)


def _completions(batch: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(batch["completion_ids"], batch["completion_mask"], strict=True)


def max_difference(one: Tensor, other: Tensor) -> float:
    return float((one.detach() - other).abs().max())


def norm(items: list[Any]) -> float:
    return float(torch.stack([item.norm() for item in items]).norm())


@contextmanager
def side(name: str, options: argparse.Namespace, log: Path) -> Iterator["subprocess.Popen[str]"]:
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    arguments = [sys.executable, "-m", "bench.trainer", "--side", name, "--options", json.dumps(vars(options))]
    with log.open("w") as errors:
        child = subprocess.Popen(
            arguments, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            yield child
        finally:
            assert child.stdin is not None
            child.stdin.close()
            child.terminate()
            child.wait(60)


def line_of(child: "subprocess.Popen[str]", log: Path) -> str:
    """The child's next protocol line. Libraries print other lines."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(("READY", "{")):
            return line
    raise SystemExit(f"one side ended:\n{log.read_text()[-4000:]}")


def take_turn(child: "subprocess.Popen[str]", log: Path) -> Round:
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()
    return Round(**json.loads(line_of(child, log)))


def measure(options: argparse.Namespace, console: Console, folder: Path) -> None:
    groups = groups_of(options)
    tokens = sum(group.reply_tokens for group in groups)
    rows = sum(len(group.prompt) * len(group.replies) + group.reply_tokens for group in groups)
    log = folder / "agreement.log"
    with side("agreement", options, log) as child:
        for name, value in json.loads(line_of(child, log)).items():
            console.print(f"{name}: {value}")

    gadfly_rounds: list[Round] = []
    trl_rounds: list[Round] = []
    gadfly_log, trl_log = folder / "gadfly.log", folder / "trl.log"
    with side("gadfly", options, gadfly_log) as gadfly_child, side("trl", options, trl_log) as trl_child:
        for turn in range(options.rounds):
            sides = ((gadfly_child, gadfly_log, gadfly_rounds), (trl_child, trl_log, trl_rounds))
            for child, log, rounds in sides[:: 1 if turn % 2 else -1]:
                line_of(child, log)
                rounds.append(take_turn(child, log))
            load = f"load average {os.getloadavg()[0]:.1f}"
            times = f"Gadfly {gadfly_rounds[-1].seconds:.1f} s, TRL {trl_rounds[-1].seconds:.1f} s"
            console.print(f"round {turn + 1}: {times}, {load}")

    table = Table(
        title=f"{Path(options.model).name}, {options.groups} groups of {options.samples} critiques, {tokens} tokens, "
        f"{rows} with prompts, {options.threads} threads"
    )
    for column in ("", "tokens/s", "tokens/s of CPU time", "memory added", "total memory"):
        table.add_column(column, justify="right")
    for name, rounds in (("Gadfly", gadfly_rounds), ("TRL", trl_rounds)):
        table.add_row(
            name,
            spread([tokens / item.seconds for item in rounds]),
            spread([tokens / item.cpu_seconds for item in rounds]),
            f"{(rounds[-1].peak - rounds[-1].loaded) / 2**20:.0f} MiB",
            f"{rounds[-1].peak / 2**20:.0f} MiB",
        )
    gadfly, trl = gadfly_rounds[-1], trl_rounds[-1]
    table.add_row(
        "ratio",
        spread([other.seconds / item.seconds for item, other in zip(gadfly_rounds, trl_rounds, strict=True)]),
        spread([other.cpu_seconds / item.cpu_seconds for item, other in zip(gadfly_rounds, trl_rounds, strict=True)]),
        f"{(gadfly.peak - gadfly.loaded) / (trl.peak - trl.loaded):.2f}",
        f"{gadfly.peak / trl.peak:.2f}",
    )
    console.print(table)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, load average {load}")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a model; the default model unless given")
    parser.add_argument("--groups", type=int, default=2, help="question-answer pairs per round")
    parser.add_argument("--samples", type=int, default=4, help="critiques per pair")
    parser.add_argument("--prompt", type=int, default=330, help="tokens per prompt")
    parser.add_argument("--reply", type=int, default=90, help="tokens per critique")
    parser.add_argument("--vocabulary", type=int, default=40_000, help="token ids are drawn between 100 and this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--gradient-checkpointing", action="store_true", help="on both sides")
    parser.add_argument("--side", choices=["gadfly", "trl", "agreement"], help=argparse.SUPPRESS)
    parser.add_argument("--options", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side_options = argparse.Namespace(**options.options)
        torch.set_num_threads(side_options.threads)
        warnings.simplefilter("ignore")
        {"gadfly": gadfly_side, "trl": trl_side, "agreement": agreement}[options.side](side_options)
        return
    options.model = options.model or str(Settings().home / "models" / DEFAULT_MODEL)
    del options.options
    console = Console(width=None if sys.stdout.isatty() else 140)  # keeps tables in a log from wrapping
    with tempfile.TemporaryDirectory(prefix="gadfly-bench-") as folder:
        measure(options, console, Path(folder))


if __name__ == "__main__":
    main()
