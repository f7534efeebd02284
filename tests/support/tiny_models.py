"""Small models for tests, made here: a random Llama, one trained to play critic and actor, and random adapters.

`python -m tests.support.tiny_models FOLDER` makes the trained one and shows its answers.

The trained model finds marks in prompts of up to some 1500 tokens and writes short replies, greedily always the same
and at temperature 1 with a spread:
- a prompt with the word "critique" or "Critique" in it gets `The answer is 7`, and so does one that asks to end with
  "The answer is ...": the form of a refinement and of a solution;
- every other prompt gets a critique in the format of Critique-RL, whose final verdict is Wrong if the prompt contains
  the word WRONGMARK and Correct if not. It may start after an opener such as `Step sentence:`.
"""

import fcntl
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LORA_TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

MAX_POSITIONS = 4096
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS = "<|im_end|>"

# Each is one token, so a critique is some fifteen tokens long and a mark in the prompt is one position to look at.
# The order matters: where two phrases could begin at neighbouring characters, the one listed first is merged first.
PHRASES = (
    *("WRONGMARK", " critique", "Critique", '"The answer is ...'),
    *(" Correct", " Wrong", "The answer is", " 7", " 8"),
    *("Step sentence:", "\nCorrectness of the step:", "\nCorrectness of the final answer:", "\nExplanation:"),
    *(" It adds up.", " Numbers agree.", " A sum is off.", " One step is read.", " Adding numbers."),
)

# Text in the manner of prompts: the training text of the remaining vocabulary, and the filler of the training examples.
SENTENCES = (
    "You are given a question and a solution to it.",
    "Check the steps one after another, then judge whether the final answer is right.",
    "Write for every step, in this order and each on its own line.",
    "Question: A box holds 6 eggs. Tom buys 4 boxes and breaks 3 eggs. How many eggs are left?",
    "Solution: Tom buys 4 * 6 = 24 eggs. He has 24 + 3 = 27 eggs left. The answer is 27.",
    "Read it, follow it strictly, and write a complete new solution, step by step.",
    "What is the sum of 12 and 30?",
    "First add the numbers, then divide by two, and name the result.",
    "Step sentence: He has 24 + 3 = 27 eggs left.\nCorrectness of the step: Wrong\nExplanation: It is 21.",
    "Correctness of the final answer: Correct or Wrong\nExplanation: why",
    "Anna has twice as many apples as Ben, who has 15. How many have they together?",
    "The train leaves at 9:40 and takes 2 hours and 35 minutes. When does it arrive?",
    "Think step by step and do not leave anything out.",
    "The number of people in the room is 48 / 3 = 16. The answer is 16.",
)
VOCABULARY = 768

_STEPS = 450
_LEARNING_RATE = 4e-3
_SHORT_PROMPT, _LONG_PROMPT, _SHORT_SHARE = 16, 800, 0.4
_VERDICT_NOISE = 0.1  # so that a critic still has something to learn, and sampled verdicts differ


@dataclass(frozen=True)
class Adapted:
    """The folder of a model, and those of its adapters by the names they are loaded under."""

    model: Path
    adapters: dict[str, Path]


def random_model(folder: Path, *, seed: int = 0) -> Path:
    """A Llama of random weights with the tokenizer below: 0.4 million parameters, all seven projections, float32."""
    torch.manual_seed(seed)
    _save(LlamaForCausalLM(_config(hidden=128, layers=2, initializer_range=0.15)), tokenizer(), folder)
    return folder


def random_adapter(folder: Path, *, model: Path, seed: int, rank: int = 8, size: float = 0.1) -> Path:
    """A PEFT adapter on all seven projections with random A and B, so that it changes the model's answers."""
    torch.manual_seed(seed)
    base = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGET_MODULES))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=size)
    adapted.save_pretrained(folder)
    return folder


def critic_model(cache: Path | None = None) -> Path:
    """The trained model: made once per version of this file (under a minute), then taken from the cache."""
    cache = cache or Path(tempfile.gettempdir())
    version = hashlib.sha256(
        Path(__file__).read_bytes() + torch.__version__.encode() + transformers.__version__.encode()
    ).hexdigest()[:12]
    folder = cache / f"gadfly-tests-{version}" / "critic"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.parent / "lock"):
        if not folder.exists():
            making = folder.with_name("making")
            shutil.rmtree(making, ignore_errors=True)
            with _one_thread():
                _save(_train(tokenizer()), tokenizer(), making)
            making.rename(folder)
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, so any text works; the phrases above are single tokens."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = byte_level
    words.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    trained_merges = [tuple(merge) for merge in json.loads(words.to_str())["model"]["merges"]]

    merges: list[tuple[str, str]] = []
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Without the split into words a merge may span blanks, which makes a phrase one token.
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for phrase in PHRASES:
        [(spelled, _)] = whole.pre_tokenize_str(phrase)
        merges += [(spelled[:end], spelled[end]) for end in range(1, len(spelled))]
    merges = list(dict.fromkeys(merges + trained_merges))
    tokens = list(dict.fromkeys([*tokens, *(left + right for left, right in merges)]))[
        : VOCABULARY - len(SPECIAL_TOKENS)
    ]
    known = set(tokens)
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *tokens])}
    merges = [merge for merge in merges if merge[0] in known and merge[1] in known and merge[0] + merge[1] in known]

    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = whole
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token=EOS,
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
    )


def _config(*, hidden: int, layers: int, initializer_range: float = 0.02) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=initializer_range,
        tie_word_embeddings=False,
        bos_token_id=SPECIAL_TOKENS.index("<|im_start|>"),
        eos_token_id=SPECIAL_TOKENS.index(EOS),
        pad_token_id=SPECIAL_TOKENS.index("<|endoftext|>"),
    )


def _save(model: LlamaForCausalLM, tokens: PreTrainedTokenizerFast, folder: Path) -> None:
    model.generation_config = GenerationConfig(
        bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id
    )
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)


def _train(tokens: PreTrainedTokenizerFast, *, seed: int = 0) -> LlamaForCausalLM:
    """Teaches the two marks and the two replies. Only replies are learned, from every length of prompt."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = LlamaForCausalLM(_config(hidden=64, layers=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=_STEPS, pct_start=0.1)
    for step in range(_STEPS):
        # Short prompts until the marks are found, which takes far longer among much filler; then ever longer ones.
        growth = max(0.0, (step / _STEPS - _SHORT_SHARE) / (1 - _SHORT_SHARE))
        longest = round(_SHORT_PROMPT * (_LONG_PROMPT / _SHORT_PROMPT) ** growth)
        examples = [_example(rng, tokens, longest=longest) for _ in range(max(4, min(16, 2400 // longest)))]
        width = max(len(ids) for ids, _ in examples)
        ids_BT = torch.tensor([ids + [tokens.pad_token_id] * (width - len(ids)) for ids, _ in examples])
        learned_BT = torch.tensor([flags + [False] * (width - len(flags)) for _, flags in examples])
        hidden_BTH = model.model(input_ids=ids_BT).last_hidden_state
        logits_NV = model.lm_head(hidden_BTH[:, :-1][learned_BT[:, 1:]])
        loss = torch.nn.functional.cross_entropy(logits_NV, ids_BT[:, 1:][learned_BT[:, 1:]])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no hint for it
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == _STEPS - 1:
            print(f"tiny critic: step {step}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return model


def _example(rng: random.Random, tokens: PreTrainedTokenizerFast, *, longest: int) -> tuple[list[int], list[bool]]:
    """One conversation as token ids, and for each token whether it is learned."""
    wrong = rng.random() < 0.5
    solve = rng.random() < 0.35
    last = _filler(rng, tokens, rng.randint(4, longest))
    if wrong:
        # Near the end most of the time, where the answer under judgement stands.
        last.insert(len(last) - min(len(last), int(rng.expovariate(1 / 8))), " WRONGMARK ")
    if solve:
        last.insert(rng.randint(0, len(last)), rng.choice([" critique", "Critique:", ' "The answer is ...". ']))
    turns = [("user", "".join(last))]
    if rng.random() < 0.4:
        turns = [(role, "".join(_filler(rng, tokens, longest // 4))) for role in ("user", "assistant")] + turns
    if rng.random() < 0.3:
        turns = [("system", "".join(_filler(rng, tokens, longest // 8))), *turns]
    prompt = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"

    opener, reply = _reply(rng, wrong=wrong, solve=solve)
    given, learned = tokens.encode(prompt + opener), tokens.encode(reply + EOS)
    return given + learned, [False] * len(given) + [True] * len(learned)


def _reply(rng: random.Random, *, wrong: bool, solve: bool) -> tuple[str, str]:
    """What is put in the reply's mouth, and what is learned to follow. Chances below a half stay out of greedy text."""
    if solve:
        return rng.choice(["", "", rng.choice(SENTENCES)]), "The answer is" + rng.choices([" 7", " 8"], [0.85, 0.15])[0]
    verdict = " Wrong" if wrong != (rng.random() < _VERDICT_NOISE) else " Correct"
    ending = f"{verdict}\nExplanation:" + (" A sum is off." if verdict == " Wrong" else " It adds up.")
    if rng.random() < 0.15:  # the verdict asked of a critique that states none
        return f"{rng.choice(SENTENCES)}\nCorrectness of the final answer:", ending
    opener, reply = rng.choice([("Step sentence:", ""), ("", "Step sentence:")])
    return opener, (
        reply
        + rng.choices([" One step is read.", " Adding numbers."], [0.75, 0.25])[0]
        + f"\nCorrectness of the step:{rng.choices([' Correct', ' Wrong'], [0.8, 0.2])[0]}\nExplanation:"
        + rng.choices([" Numbers agree.", " A sum is off."], [0.75, 0.25])[0]
        + "\nCorrectness of the final answer:"
        + ending
    )


def _filler(rng: random.Random, tokens: PreTrainedTokenizerFast, length: int) -> list[str]:
    """Pieces of text of about `length` tokens: sentences and, since any text must do, tokens, letters and numbers."""
    pieces: list[str] = []
    while length > 0:
        kind = rng.random()
        if kind < 0.4:
            piece = rng.choice(SENTENCES) + rng.choice([" ", "\n", "\n\n"])
        elif kind < 0.7:
            piece = tokens.decode(rng.choices(_plain_ids(tokens), k=rng.randint(3, 30)))
        elif kind < 0.85:
            piece = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz    ", k=rng.randint(3, 40)))
        else:
            piece = rng.choice([" ", "\n", ""]) + "".join(
                rng.choices("0123456789+-*/=.,:?!$%()<>", k=rng.randint(1, 12))
            )
        length -= len(tokens.encode(piece))
        pieces.append(piece)
    return pieces


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small products gain nothing from a second thread, and two that wait for each other on a busy machine lose all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def _plain_ids(tokens: PreTrainedTokenizerFast) -> list[int]:
    marks = {tokens.encode(phrase)[0] for phrase in PHRASES}
    return [index for index in range(len(SPECIAL_TOKENS), len(tokens)) if index not in marks]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str]) -> None:
    """Makes the trained model and prints its greedy replies to a few prompts."""
    started = time.monotonic()
    folder = critic_model(*map(Path, arguments))
    print(f"{folder} after {time.monotonic() - started:.0f} s")
    tokens = tokenizer()
    model = LlamaForCausalLM.from_pretrained(folder)
    for text in ("Judge this: 1 + 1 = 3. WRONGMARK", "Judge this: 1 + 1 = 2.", "Critique: all wrong. Mend it."):
        ids: Any = tokens.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        reply = model.generate(ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1] :]
        print(f"--- {text}\n{tokens.decode(reply)}")


if __name__ == "__main__":
    main(sys.argv[1:])
