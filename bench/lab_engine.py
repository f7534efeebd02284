"""CPU time of the lab's engine for a batch of critiques, and how long these are: `python -m bench.lab_engine`.

The actor answers 256 questions at temperature 1. These answers are judged greedily in one batch, and 64 of them four
times each at temperature 1, with one thread. The hash is that of all tokens: two versions of the engine with the same
one write the same critiques.
"""

import argparse
import hashlib
import time
from collections.abc import Sequence
from statistics import fmean, median

import torch

from gadfly import prompts
from gadfly.engine_client import ACTOR
from gadfly.lab import world
from gadfly.lab.__main__ import MODEL
from gadfly.lab.arena import MAX_ANSWER_TOKENS, MAX_CRITIQUE_TOKENS
from gadfly.lab.engine import Generation, Generator, Sampled
from gadfly.lab.study import PROMPTS
from gadfly.lab.world import LabSplit
from gadfly.prompts import Prompt


def tokens_of(generator: Generator, prompt: Prompt) -> tuple[int, ...]:
    messages = [{"role": each.role, "content": each.content} for each in prompt.messages]
    if prompt.opener:
        messages.append({"role": "assistant", "content": prompt.opener})
    text = generator.tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=not prompt.opener,
        continue_final_message=bool(prompt.opener),
    )
    return tuple(generator.tokenizer.encode(text, add_special_tokens=False))


def measure(generator: Generator, requests: Sequence[Generation], rounds: int) -> tuple[float, list[Sampled]]:
    """The median CPU seconds of a batch, and its replies."""
    seconds, replies = [], []
    for _ in range(rounds):
        began = time.process_time()
        replies = generator.generate(requests)
        seconds.append(time.process_time() - began)
    return median(seconds), [reply for each in replies for reply in each]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.lab_engine", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds: int = parser.parse_args().rounds
    torch.set_num_threads(1)
    generator = Generator(str(MODEL), device="cpu")
    prompt_set = prompts.load(PROMPTS)
    questions = [problem.text for problem in world.problems(LabSplit.IN_DOMAIN, 256, seed=0)]
    solved = generator.generate(
        [
            Generation(
                ACTOR, tokens_of(generator, prompt_set.solve(question=each)), 1, MAX_ANSWER_TOKENS, 1.0, seed, ()
            )
            for seed, each in enumerate(questions)
        ]
    )
    responses = [generator.tokenizer.decode(reply.tokens, skip_special_tokens=True) for [reply] in solved]
    asked = [
        tokens_of(generator, prompt_set.critique(question=question, response=response))
        for question, response in zip(questions, responses, strict=True)
    ]
    print("| critiques | CPU seconds | tokens, mean | longest | hash |\n| --- | ---: | ---: | ---: | --- |")
    for title, chosen, samples, temperature in (("256 greedy", asked, 1, 0.0), ("64 x 4 sampled", asked[:64], 4, 1.0)):
        requests = [
            Generation(ACTOR, prompt, samples, MAX_CRITIQUE_TOKENS, temperature, seed, ())
            for seed, prompt in enumerate(chosen)
        ]
        seconds, replies = measure(generator, requests, rounds)
        lengths = [len(reply.tokens) for reply in replies]
        digest = hashlib.sha256(repr([reply.tokens for reply in replies]).encode()).hexdigest()[:8]
        print(f"| {title} | {seconds:.2f} | {fmean(lengths):.0f} | {max(lengths)} | {digest} |")


if __name__ == "__main__":
    main()
