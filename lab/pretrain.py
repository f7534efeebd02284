"""Train the lab's base model from scratch: one small Llama that solves, refines and critiques.

    python -m gadfly.lab.pretrain FOLDER    # ten minutes on two cores

Three tasks, told apart by the conversation alone, as the prompt set `bare@1` asks them: solve a question, rewrite an
answer by its critique, critique an answer. Answers and critiques are right ones at first, which is where the model
learns to add, to copy, to work out again and to compare. At the end they are those of careless people: an actor that
slips now and then, though it could do better, and a critic that overlooks, suspects and errs, which is what the
published method gets from supervised fine-tuning on critiques nobody checked. Rewriting follows the critique
throughout, right or wrong.

`--distrusts 0.7` makes another model of it, whose critic has one fault more: see docs/results-distrusting.md.
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
"""Chance for each step that those slip whose answers solving is learned from."""

CARELESS = world.Care(overlooks=0.5, overlooks_far=0.25, suspects=0.1, errs=0.2)
"""The critic that critiques are learned from."""

_FOLLOWED = world.Care(overlooks=0.3, overlooks_far=0.3, suspects=0.25, errs=0.3)
"""The critic whose critiques rewriting is learned from."""
_SPLITS = {LabSplit.IN_DOMAIN: 0.8, LabSplit.LONGER: 0.1, LabSplit.LARGER: 0.1}
"""What is seen of each split: out of domain is what no critic is reinforced on, not what nobody has heard of."""
_SLIPS = ((0.0, False), (0.2, False), (0.5, False), (0.7, True))
"""A chance for each step of an answer that is judged or rewritten, and whether it is wild: who only ever sees numbers
that are nearly right works them out where it should copy them."""

_WEIGHT = 5.0
"""How often a verdict counts: there is one in a step's seventeen tokens, and comparing is what is learned last."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how the model is trained. Sizes in examples of each task a step."""

    steps: int = 900  # with answers and critiques that are right
    careless_steps: int = 150  # then with those of careless people
    solve: int = 24
    refine: int = 16
    critique: int = 56
    learning_rate: float = 0.02  # of matrices, by Muon
    other_learning_rate: float = 4e-3  # of embeddings, output and norms, by AdamW
    warmup: float = 0.05  # share of the steps
    hidden: int = 96
    layers: int = 3
    heads: int = 4
    distrusts: float = 0.0  # chance that careless critics call a large right number wrong, though they get the same
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation: what is given, and the reply to learn."""

    prompt: Prompt
    reply: str


def solving(rng: random.Random, split: LabSplit, steps: int, share: float = 0.0) -> Example:
    one = world.problem(rng, split, steps=steps)
    return Example(PROMPTS.solve(question=one.text), world.solution(world.slip(rng, one, share=share)))


def refining(rng: random.Random, split: LabSplit, steps: int, care: world.Care) -> Example:
    one = world.problem(rng, split, steps=steps)
    answer = _slipped(rng, one)
    judgements = world.judge(rng, answer, care)
    prompt = PROMPTS.refine(question=one.text, response=world.solution(answer), critique=world.critique(judgements))
    return Example(prompt, world.solution(world.refine(one, judgements)))


def _slipped(rng: random.Random, problem: world.WordProblem) -> list[world.Equation]:
    share, wild = rng.choice(_SLIPS)
    return world.slip(rng, problem, share=share, wild=wild)


def critiquing(rng: random.Random, split: LabSplit, steps: int, care: world.Care = world.PERFECT) -> Example:
    one = world.problem(rng, split, steps=steps)
    answer = _slipped(rng, one)
    return Example(
        PROMPTS.critique(question=one.text, response=world.solution(answer)),
        world.critique(world.judge(rng, answer, care)),
    )


Task = Callable[[random.Random, LabSplit, int], Example]


class Encoder:
    """Conversations as token ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._end = tokenizer.convert_tokens_to_ids(tokens.END)

    def pair(self, example: Example) -> tuple[list[int], list[int]]:
        """Ids of what is given, and of the reply with its end."""
        text = self._tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in example.prompt.messages],
            add_generation_prompt=True,
            tokenize=False,
        )
        given = self._tokenizer.encode(text + example.prompt.opener)
        return given, [*self._tokenizer.encode(example.reply), self._end]


def batch_loss(
    model: LlamaForCausalLM, pairs: Sequence[tuple[list[int], list[int]]], *, pad: int, heavy: Tensor
) -> Tensor:
    """Mean cross-entropy of the replies' tokens, in nats, in which `heavy` ids count `_WEIGHT` times."""
    width = max(len(given) + len(reply) for given, reply in pairs)
    ids_BT = torch.full((len(pairs), width), pad)
    learned_BT = torch.zeros((len(pairs), width), dtype=torch.bool)
    for row, (given, reply) in enumerate(pairs):
        end = len(given) + len(reply)
        ids_BT[row, :end] = torch.tensor(given + reply)
        learned_BT[row, len(given) : end] = True
    hidden_BTH = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    predicts_BT = learned_BT.roll(-1, dims=1)  # position t predicts t + 1; nothing is learned at position 0
    logits_NV = model.lm_head(hidden_BTH[predicts_BT])
    target_N = ids_BT[learned_BT]
    weight_N = 1.0 + (_WEIGHT - 1) * torch.isin(target_N, heavy)
    return (cross_entropy(logits_NV, target_N, reduction="none") * weight_N).sum() / weight_N.sum()


def train(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, say: Callable[[str], None]) -> LlamaForCausalLM:
    """The trained model. The same recipe on the same machine gives the same weights."""
    torch.manual_seed(recipe.seed)
    rng = random.Random(f"pretrain {recipe.seed}")
    model = LlamaForCausalLM(_config(recipe, tokenizer))
    encoder = Encoder(tokenizer)
    matrices = [weight for name, weight in model.named_parameters() if ".layers." in name and weight.ndim == 2]
    rest = [weight for name, weight in model.named_parameters() if ".layers." not in name or weight.ndim == 1]
    optimiser = Muon(matrices)
    optimiser_of_others = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0)
    careless, followed = (replace(care, distrusts=recipe.distrusts) for care in (CARELESS, _FOLLOWED))
    with_care: dict[str, tuple[Task, int]] = {
        "solving": (solving, recipe.solve),
        "refining": (partial(refining, care=followed), recipe.refine),
        "critiquing": (critiquing, recipe.critique),
    }
    without = with_care | {
        "solving": (partial(solving, share=SLIPPING), recipe.solve),
        "critiquing": (partial(critiquing, care=careless), recipe.critique),
    }
    phases = [with_care] * recipe.steps + [without] * recipe.careless_steps
    verdicts = torch.tensor(tokenizer.convert_tokens_to_ids([" Correct", " Wrong"]))
    begun = time.monotonic()
    for step, tasks in enumerate(phases):
        share = _schedule(step / len(phases), recipe.warmup)
        losses: dict[str, float] = {}
        for name, (make, count) in tasks.items():
            [split] = rng.choices(list(_SPLITS), weights=list(_SPLITS.values()))
            steps = rng.randint(*world.RANGES[split].steps)  # the same in a batch: little padding
            pairs = [encoder.pair(make(rng, split, steps)) for _ in range(count)]
            loss = batch_loss(model, pairs, pad=tokenizer.pad_token_id, heavy=verdicts)
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no hint for it
            losses[name] = loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step(share * recipe.learning_rate)
        for group in optimiser_of_others.param_groups:
            group["lr"] = share * recipe.other_learning_rate
        optimiser_of_others.step()
        model.zero_grad()
        if step % 50 == 0 or step == len(phases) - 1:
            told = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
            say(f"step {step:5d} of {len(phases)}  {time.monotonic() - begun:5.0f} s  loss: {told}")
    return model


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The model as vLLM and the trainer read it."""
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
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


def _schedule(done: float, warmup: float) -> float:
    """Share of the peak learning rate: up in a line, down in a cosine to a twentieth."""
    if done < warmup:
        return done / warmup
    return 0.05 + 0.475 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    for name, default in ((f.name, f.default) for f in Recipe.__dataclass_fields__.values()):
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    asked = vars(parser.parse_args())
    folder = asked.pop("folder")
    tokenizer = tokens.tokenizer()
    save(train(Recipe(**asked), tokenizer, lambda line: print(line, flush=True)), tokenizer, folder)


if __name__ == "__main__":
    main()
