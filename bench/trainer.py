"""The trainer's update against TRL's RLOOTrainer: `python -m bench.trainer [--model FOLDER]`.

Both get the same model, LoRA configuration, prompts, critiques and scores (random tokens of usual lengths) and as many
threads, and do the same work in a round: log-probabilities by the policy and by the reference, then two epochs of
forward, backward and AdamW. Nobody generates: TRL's generation is replaced by a table. Each side is a process of its
own; they take turns, and every ratio is one of a round, shown with its spread over the rounds. Memory is the kernel's
peak of resident memory: all of it, and what training added to what was resident once model and optimiser were there.

Before that, one fixed batch shows that both compute the same. RLOO differs in four ways between the two:

    ratio       TRL: one per critique, of the sums of log-probabilities; here (as Critique-RL): one per token
    length      TRL: the sum over a critique's tokens; here: their mean
    KL          TRL: summed over the critique, part of score and baseline; here: at each token, not in the baseline
    whitening   TRL: none, or over critiques; here: over all tokens

so their losses are equal where these are undone: TRL's formula on our log-probabilities must give TRL's loss; its
advantages must be the leave-one-out of scores less KL; and where the ratio is 1, the gradient of our clipped loss with
TRL's advantages and without the division by length must be that of TRL's loss.

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
    """What one side says of one round. MemoryMeter in bytes: resident when loaded, and the peak since then.

    Processor time tells the two apart also on a machine that others use.
    """

    seconds: float
    cpu_seconds: float
    loaded: int
    peak: int


def groups_of(options: argparse.Namespace) -> list[Group]:
    """Groups of random tokens; lengths vary by a tenth around the given ones, as in a batch that was sorted."""
    rng = random.Random(0)  # noqa: S311  # the same tokens for everybody

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
        Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
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
    """Time since it was made, on the wall and of this process's processors."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def report(self, memory: MemoryMeter) -> None:
        seconds, cpu_seconds = time.perf_counter() - self._wall, time.process_time() - self._cpu
        found = Round(seconds=seconds, cpu_seconds=cpu_seconds, loaded=memory.loaded, peak=memory.peak())
        print(json.dumps(asdict(found)), flush=True)


def our_side(options: argparse.Namespace) -> None:
    policy = Policy(
        options.model, rank=RANK, alpha=ALPHA, seed=0, gradient_checkpointing=options.gradient_checkpointing
    )
    learner = Learner(policy, our_config(options), kl_coefficient=KL)
    groups = groups_of(options)
    memory = MemoryMeter()
    for step in range(options.rounds):
        wait_for_turn()
        clock = Clock()
        learner.update(groups, step)
        clock.report(memory)


def our_config(options: argparse.Namespace) -> TrainConfig:
    return TrainConfig(
        steps_stage_1=options.rounds,
        steps_stage_2=0,
        prompts_per_step=options.groups,
        samples_per_prompt=options.samples,
        inner_epochs=EPOCHS,
        minibatches=options.groups,  # one group a step, as on TRL's side
        micro_batch_tokens=1,  # a row per group: the same critiques at once as TRL's batch of `samples`
        clip=CLIP,
        learning_rate=RATE,
        final_learning_rate=1.0,
        warmup_steps=0,
    )


def trl_trainer(options: argparse.Namespace, groups: list[Group], folder: Path, callbacks: list[Any]) -> Any:
    """TRL's trainer as it comes, with prompts, completions and scores from a table."""
    from datasets import Dataset  # noqa: PLC0415  # none of this in the process that is compared with it
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
            # A prompt comes `samples` times in a row; each time it gets its next reply.
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
        per_device_train_batch_size=options.samples,  # a group in one pass
        gradient_accumulation_steps=1,  # and a step of AdamW after each
        generation_batch_size=options.samples * options.groups,  # all groups of a round are scored first
        num_iterations=EPOCHS,
        max_steps=EPOCHS * options.groups * options.rounds,
        max_completion_length=2 * options.reply,
        temperature=1.0,  # what log-probabilities are divided by; ours are at 1 whatever the sampling was
        beta=KL,  # so that the reference is computed; it is the model without its adapter
        epsilon=CLIP,
        normalize_advantages=False,  # over critiques; ours whitens over tokens, and either costs nothing
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
        """Waits before a round's first step and reports after its last."""

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
    """Print how far apart the two are on one group."""
    group = groups_of(options)[0]
    policy = Policy(options.model, rank=RANK, alpha=ALPHA, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.weights.values():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.02)
    single = argparse.Namespace(**{**vars(options), "groups": 1, "gradient_checkpointing": False})
    with tempfile.TemporaryDirectory() as folder:
        theirs = trl_trainer(single, [group], Path(folder), [])
    their_weights = {
        name.replace(".default.", "."): item for name, item in theirs.model.named_parameters() if ".lora_" in name
    }
    with torch.no_grad():
        for name, weight in policy.weights.items():
            their_weights[name].copy_(weight)
    theirs.model.train()
    batch = theirs._generate_and_score_completions([{"prompt": "0"}] * options.samples)
    order = [group.replies.index(list_key(ids[mask.bool()])) for ids, mask in _completions(batch)]
    assert sorted(order) == list(range(options.samples))

    [row] = pack([group], 1)
    lengths = list(row.lengths_R)
    ours_N, entropies_N = policy.forward(row)
    with torch.no_grad():
        base_N, _ = policy.forward(row, Which.BASE)
    sums_R = torch.stack([part.sum() for part in torch.split(ours_N, lengths)])
    kl_R = torch.stack([part.sum() for part in torch.split(ours_N.detach() - base_N, lengths)])
    expected_R = leave_one_out(torch.tensor(group.scores) - KL * kl_R, [options.samples])

    # Old log-probabilities that the policy has moved away from, so that the ratio counts and is clipped for some.
    moved = torch.linspace(-0.3, 0.3, options.samples)
    with torch.no_grad():
        their_moved_loss = theirs._compute_loss(theirs.model, {**batch, "old_logps": batch["old_logps"] - moved[order]})
    their_old_R = torch.empty(options.samples)
    their_old_R[order] = batch["old_logps"]
    ratio_R = (sums_R.detach() - (their_old_R - moved)).exp()
    our_moved_loss = -torch.minimum(ratio_R * expected_R, ratio_R.clamp(1 - CLIP, 1 + CLIP) * expected_R).mean()

    their_loss = theirs._compute_loss(theirs.model, batch)
    their_loss.backward()
    our_loss = clipped_loss(
        ours_N,
        entropies_N,
        old_N=ours_N.detach(),
        advantages_N=expected_R.float().repeat_interleave(torch.tensor(lengths)),
        importance_N=torch.ones_like(ours_N),
        weights_N=torch.full_like(ours_N, 1 / options.samples),
        clip=CLIP,
    ).loss
    our_loss.backward()  # type: ignore[no-untyped-call]
    apart = norm(
        [item.grad - their_weights[name].grad for name, item in policy.weights.items() if item.grad is not None]
    )
    whole = norm([item.grad for item in their_weights.values()])

    log = {
        "log-probability of a critique, largest difference": f"{max_apart(sums_R[order], batch['old_logps']):.1e} of "
        f"{float(sums_R.detach().abs().mean()):.0f} nats",
        "advantage, largest difference": f"{max_apart(expected_R[order], batch['advantages']):.1e}",
        "TRL's loss, and its formula on our log-probabilities": f"{float(their_moved_loss):.6f}, "
        f"{float(our_moved_loss):.6f}",
        "gradient at ratio 1, difference over norm": f"{apart / whole:.1e}",
    }
    print(json.dumps(log), flush=True)


def _completions(batch: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(batch["completion_ids"], batch["completion_mask"], strict=True)


def max_apart(one: Tensor, other: Tensor) -> float:
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
    """Its next line that is for us: libraries print too."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(("READY", "{")):
            return line
    raise SystemExit(f"a side ended:\n{log.read_text()[-4000:]}")


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

    ours: list[Round] = []
    theirs: list[Round] = []
    one, two = folder / "ours.log", folder / "trl.log"
    with side("ours", options, one) as our_child, side("trl", options, two) as their_child:
        for turn in range(options.rounds):
            for child, log, rounds in ((our_child, one, ours), (their_child, two, theirs))[:: 1 if turn % 2 else -1]:
                line_of(child, log)
                rounds.append(take_turn(child, log))
            load = f"load average {os.getloadavg()[0]:.1f}"
            console.print(f"round {turn + 1}: {ours[-1].seconds:.1f} s, TRL {theirs[-1].seconds:.1f} s, {load}")

    table = Table(
        title=f"{Path(options.model).name}, {options.groups} groups of {options.samples} critiques, {tokens} tokens in "
        f"{rows} with prompts, {options.threads} threads"
    )
    for column in ("", "tokens/s", "tokens/s of processor time", "memory added", "memory in all"):
        table.add_column(column, justify="right")
    for name, rounds in (("here", ours), ("TRL", theirs)):
        table.add_row(
            name,
            spread([tokens / item.seconds for item in rounds]),
            spread([tokens / item.cpu_seconds for item in rounds]),
            f"{(rounds[-1].peak - rounds[-1].loaded) / 2**20:.0f} MiB",
            f"{rounds[-1].peak / 2**20:.0f} MiB",
        )
    mine, trl = ours[-1], theirs[-1]
    table.add_row(
        "ratio",
        spread([other.seconds / item.seconds for item, other in zip(ours, theirs, strict=True)]),
        spread([other.cpu_seconds / item.cpu_seconds for item, other in zip(ours, theirs, strict=True)]),
        f"{(mine.peak - mine.loaded) / (trl.peak - trl.loaded):.2f}",
        f"{mine.peak / trl.peak:.2f}",
    )
    console.print(table)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, load average {load}")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a model; the default model unless given")
    parser.add_argument("--groups", type=int, default=2, help="question-answer pairs in a round")
    parser.add_argument("--samples", type=int, default=4, help="critiques of each")
    parser.add_argument("--prompt", type=int, default=330, help="tokens of a prompt")
    parser.add_argument("--reply", type=int, default=90, help="tokens of a critique")
    parser.add_argument("--vocabulary", type=int, default=40_000, help="token ids are drawn from 100 to this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--gradient-checkpointing", action="store_true", help="on both sides")
    parser.add_argument("--side", choices=["ours", "trl", "agreement"], help=argparse.SUPPRESS)
    parser.add_argument("--options", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        given = argparse.Namespace(**options.options)
        torch.set_num_threads(given.threads)
        warnings.simplefilter("ignore")
        {"ours": our_side, "trl": trl_side, "agreement": agreement}[options.side](given)
        return
    options.model = options.model or str(Settings().home / "models" / DEFAULT_MODEL)
    del options.options
    console = Console(width=None if sys.stdout.isatty() else 140)  # a table in a log must not wrap
    with tempfile.TemporaryDirectory(prefix="gadfly-bench-") as folder:
        measure(options, console, Path(folder))


if __name__ == "__main__":
    main()
