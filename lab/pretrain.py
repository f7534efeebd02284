"""Train the lab's base model from scratch: one small Llama that solves, refines and critiques.

    python -m gadfly.lab.pretrain FOLDER    # ten minutes on two cores

There are three tasks, which the model distinguishes by the conversation alone, with the prompts of `bare@1`: solve a
question, rewrite an answer by its critique, and critique an answer. At first all answers and critiques are right, so
the model learns to add, to copy, to recompute and to compare. At the end they contain errors: the actor slips now and
then although it could do better, and the critic overlooks, suspects and errs. The published method gets such a critic
from supervised fine-tuning on unchecked critiques. Rewriting always follows the critique, right or wrong.

`--distrusts 0.7` makes a model whose critic has another fault: see docs/results-distrusting.md. `--miscounts` and
`--flips` make one whose faults in numbers and in verdicts are independent of each other. With `--start lab/model
--steps 0` the last phase alone is trained, from a model that exists: one minute.
"""

import argparse
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gadfly import prompts
from gadfly.lab import tokens, world
from gadfly.lab.muon import Muon
from gadfly.lab.world import LabSplit
from gadfly.prompts import Prompt

PROMPTS = prompts.load("bare@1")

SLIPPING = 0.18
"""Error rate per step of the answers from which the model learns to solve."""

CARELESS = world.Care(overlooks=0.5, overlooks_far=0.25, suspects=0.1, errs=0.2)
"""The critic from whose critiques the model learns to critique."""

_FOLLOWED = world.Care(overlooks=0.3, overlooks_far=0.3, suspects=0.25, errs=0.3)
"""The critic from whose critiques the model learns to rewrite."""
_SPLITS = {LabSplit.IN_DOMAIN: 0.8, LabSplit.LONGER: 0.1, LabSplit.LARGER: 0.1}
"""Shares of the splits. The model sees all of them; out of domain means that no critic is reinforced on it."""
_SLIPS = ((0.0, False), (0.2, False), (0.5, False), (0.7, True))
"""Error rate per step of the answers to judge or rewrite, and whether errors are wild. From numbers that are always
nearly right, a model would learn to compute a number where it should copy it."""

_WEIGHT = 5.0
"""Weight of a verdict's token. It is one of a step's seventeen tokens, and comparing is learned last."""


@dataclass(frozen=True, slots=True)
class PretrainRecipe:
    """The options of the training."""

    steps: int = 900  # with right answers and critiques
    careless_steps: int = 150  # then with errors
    solve: int = 24  # examples per step, as for the next two
    refine: int = 16
    critique: int = 56
    learning_rate: float = 0.02  # of matrices, with Muon
    other_learning_rate: float = 4e-3  # of embeddings, output and norms, with AdamW
    warmup: float = 0.05  # share of the steps
    hidden: int = 96
    layers: int = 3
    heads: int = 4
    distrusts: float = 0.0  # `Care.distrusts` of the careless critics, as for the next two
    miscounts: float = 0.0
    flips: float = 0.0
    start: str = ""  # folder of the model to continue; empty: random weights
    seed: int = 0


@dataclass(frozen=True, slots=True)
class PretrainExample:
    """A prompt and the reply to learn."""

    prompt: Prompt
    reply: str


def solving(rng: random.Random, split: LabSplit, steps: int, share: float = 0.0) -> PretrainExample:
    problem = world.problem(rng, split, steps=steps)
    return PretrainExample(PROMPTS.solve(question=problem.text), world.solution(world.slip(rng, problem, share=share)))


def refining(rng: random.Random, split: LabSplit, steps: int, care: world.Care) -> PretrainExample:
    problem = world.problem(rng, split, steps=steps)
    answer = _slipped(rng, problem)
    judgements = world.judge(rng, answer, care)
    prompt = PROMPTS.refine(question=problem.text, response=world.solution(answer), critique=world.critique(judgements))
    return PretrainExample(prompt, world.solution(world.refine(problem, judgements)))


def _slipped(rng: random.Random, problem: world.WordProblem) -> list[world.Equation]:
    share, wild = rng.choice(_SLIPS)
    return world.slip(rng, problem, share=share, wild=wild)


def critiquing(rng: random.Random, split: LabSplit, steps: int, care: world.Care = world.PERFECT) -> PretrainExample:
    problem = world.problem(rng, split, steps=steps)
    answer = _slipped(rng, problem)
    return PretrainExample(
        PROMPTS.critique(question=problem.text, response=world.solution(answer)),
        world.critique(world.judge(rng, answer, care)),
    )


Task = Callable[[random.Random, LabSplit, int], PretrainExample]


class Encoder:
    """Encodes examples as token ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._end = tokenizer.convert_tokens_to_ids(tokens.END)

    def pair(self, example: PretrainExample) -> tuple[list[int], list[int]]:
        """The ids of the prompt, and of the reply with its end token."""
        text = self._tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in example.prompt.messages],
            add_generation_prompt=True,
            tokenize=False,
        )
        prompt = self._tokenizer.encode(text + example.prompt.opener)
        return prompt, [*self._tokenizer.encode(example.reply), self._end]


def batch_loss(
    model: LlamaForCausalLM, pairs: Sequence[tuple[list[int], list[int]]], *, pad: int, heavy: Tensor
) -> Tensor:
    """The mean cross-entropy of the replies' tokens, in nats. Ids in `heavy` have the weight `_WEIGHT`."""
    width = max(len(prompt) + len(reply) for prompt, reply in pairs)
    ids_BT = torch.full((len(pairs), width), pad)
    learned_BT = torch.zeros((len(pairs), width), dtype=torch.bool)
    for row, (prompt, reply) in enumerate(pairs):
        end = len(prompt) + len(reply)
        ids_BT[row, :end] = torch.tensor(prompt + reply)
        learned_BT[row, len(prompt) : end] = True
    hidden_BTH = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    predicts_BT = learned_BT.roll(-1, dims=1)  # position t predicts t + 1; position 0 is never learned
    logits_NV = model.lm_head(hidden_BTH[predicts_BT])
    target_N = ids_BT[learned_BT]
    weight_N = 1.0 + (_WEIGHT - 1) * torch.isin(target_N, heavy)
    return (cross_entropy(logits_NV, target_N, reduction="none") * weight_N).sum() / weight_N.sum()


def train(recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerFast, log: Callable[[str], None]) -> LlamaForCausalLM:
    """Train a model. The same recipe on the same machine gives the same weights."""
    torch.manual_seed(recipe.seed)
    rng = random.Random(f"pretrain {recipe.seed}")
    model = (
        LlamaForCausalLM.from_pretrained(recipe.start, dtype=torch.float32)
        if recipe.start
        else LlamaForCausalLM(_config(recipe, tokenizer))
    )
    encoder = Encoder(tokenizer)
    matrices = [weight for name, weight in model.named_parameters() if ".layers." in name and weight.ndim == 2]
    rest = [weight for name, weight in model.named_parameters() if ".layers." not in name or weight.ndim == 1]
    optimiser = Muon(matrices)
    optimiser_of_others = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0)
    followed = replace(_FOLLOWED, distrusts=recipe.distrusts)
    careless = replace(CARELESS, distrusts=recipe.distrusts, miscounts=recipe.miscounts, flips=recipe.flips)
    right: dict[str, tuple[Task, int]] = {
        "solving": (solving, recipe.solve),
        "refining": (partial(refining, care=followed), recipe.refine),
        "critiquing": (critiquing, recipe.critique),
    }
    with_errors = right | {
        "solving": (partial(solving, share=SLIPPING), recipe.solve),
        "critiquing": (partial(critiquing, care=careless), recipe.critique),
    }
    schedule = [right] * recipe.steps + [with_errors] * recipe.careless_steps
    verdicts = torch.tensor(tokenizer.convert_tokens_to_ids([" Correct", " Wrong"]))
    started = time.monotonic()
    for step, tasks in enumerate(schedule):
        share = _learning_rate(step / len(schedule), recipe.warmup)
        losses: dict[str, float] = {}
        for name, (make, count) in tasks.items():
            [split] = rng.choices(list(_SPLITS), weights=list(_SPLITS.values()))
            steps = rng.randint(*world.RANGES[split].steps)  # equal within a batch, for little padding
            pairs = [encoder.pair(make(rng, split, steps)) for _ in range(count)]
            loss = batch_loss(model, pairs, pad=tokenizer.pad_token_id, heavy=verdicts)
            loss.backward()  # type: ignore[no-untyped-call]
            losses[name] = loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step(share * recipe.learning_rate)
        for group in optimiser_of_others.param_groups:
            group["lr"] = share * recipe.other_learning_rate
        optimiser_of_others.step()
        model.zero_grad()
        if step % 50 == 0 or step == len(schedule) - 1:
            values = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
            log(f"step {step:5d} of {len(schedule)}  {time.monotonic() - started:5.0f} s  loss: {values}")
    return model


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in the format that vLLM and the trainer read."""
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _config(recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=2 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.convert_tokens_to_ids(tokens.USER),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _learning_rate(done: float, warmup: float) -> float:
    """The learning rate as a share of its peak: a linear warm-up, then a cosine down to a twentieth."""
    if done < warmup:
        return done / warmup
    return 0.05 + 0.475 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    for name, default in ((f.name, f.default) for f in PretrainRecipe.__dataclass_fields__.values()):
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = vars(parser.parse_args())
    folder = options.pop("folder")
    tokenizer = tokens.tokenizer()
    save(train(PretrainRecipe(**options), tokenizer, lambda line: print(line, flush=True)), tokenizer, folder)


if __name__ == "__main__":
    main()
