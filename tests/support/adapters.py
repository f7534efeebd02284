"""Published adapters for tests: random weights over a tiny model, with the probe record that a trainer would write."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from gadfly import prompts, store
from gadfly.adapters import CONFIG, PROBE, WEIGHTS, Marker, Probe, ProbeRecord, seal
from gadfly.prompts import Prompt
from gadfly.records import CriticVersion, new_id
from gadfly.store.database import Database
from gadfly.training import TrainConfig, Trigger
from tests.support.tiny_models import random_adapter, tokenizer

PROMPTS = "stepwise@1"
TOLERANCE = 1e-3
RANK = 8
_SIZE = 0.13  # enough to change greedy texts
_TOKENS = 24
_PROBES = (
    ("A box holds 6 eggs. How many eggs are in 3 boxes?", "3 * 6 = 18. The answer is 18."),
    ("What is the sum of 12 and 30?", "12 + 30 = 43. WRONGMARK The answer is 43."),
)


@dataclass(frozen=True)
class PublishedAdapter:
    """A folder that the trainer could have published, and its greedy answer to any question."""

    folder: Path
    marker: Marker
    record: ProbeRecord


class TiedProbe(Exception):
    """A probe's first token has no clear lead, so two correct programs may differ on it."""


def publish_adapter(folder: Path, *, model: Path, seed: int, base_model: str = "tiny") -> PublishedAdapter:
    """Make a published adapter; `base_model` is the deployment's name of its model.

    The critic is trained anew on each machine, so any fixed seed can meet a tie: the next one is taken then.
    """
    for attempt in range(20):
        random_adapter(folder, model=model, seed=seed + 1000 * attempt, rank=RANK, size=_SIZE)
        try:
            record = probe_record(folder, model=model)
        except TiedProbe:
            continue
        write_record(folder, record)
        return PublishedAdapter(folder, _seal(folder, base_model=base_model), record)
    raise AssertionError("every random adapter ties on the first token of a probe")


def publish_again(
    published: PublishedAdapter, folder: Path, change: Callable[[Path], None], *, base_model: str = "tiny"
) -> PublishedAdapter:
    """The same adapter in another folder, changed before it is sealed."""
    shutil.copytree(published.folder, folder)
    change(folder)
    record = ProbeRecord.model_validate_json((folder / PROBE).read_bytes())
    return PublishedAdapter(folder, _seal(folder, base_model=base_model), record)


def write_record(folder: Path, record: ProbeRecord) -> None:
    (folder / PROBE).write_text(record.model_dump_json())


def _seal(folder: Path, *, base_model: str) -> Marker:
    rank = json.loads((folder / CONFIG).read_text())["r"]
    return seal(
        folder, run_id=str(new_id()), base_model=base_model, base_sha256="0" * 64, prompt_set=PROMPTS, rank=rank
    )


def probe_record(folder: Path, *, model: Path) -> ProbeRecord:
    """What transformers and peft answer with this adapter, up to the first token whose lead is small."""
    base = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(folder))
    adapted.eval()
    prompt_set = prompts.load(PROMPTS)
    return ProbeRecord(
        prompt_set=PROMPTS,
        tolerance=TOLERANCE,
        probes=tuple(
            _probe(adapted, prompt_set.critique(question=question, response=response), question, response)
            for question, response in _PROBES
        ),
    )


def _probe(adapted: Any, prompt: Prompt, question: str, response: str) -> Probe:
    ids = _encode(prompt)
    tokens: list[int] = []
    logprobs: list[float] = []
    with torch.no_grad():
        while len(tokens) < _TOKENS:
            logits_V = adapted(torch.tensor([[*ids, *tokens]])).logits[0, -1].double()
            best = torch.topk(logits_V, 2)
            if (best.values[0] - best.values[1]).item() < 0.05:  # two right programs may differ here
                break
            tokens.append(int(best.indices[0]))
            logprobs.append(float(torch.log_softmax(logits_V, -1)[tokens[-1]]))
            if tokens[-1] == tokenizer().eos_token_id:
                break
        if not tokens:
            raise TiedProbe
        with adapted.disable_adapter():
            logits_TV = adapted(torch.tensor([[*ids, *tokens]])).logits[0, len(ids) - 1 : -1].double()
        base_T = torch.log_softmax(logits_TV, -1)[range(len(tokens)), tokens]
    return Probe(
        question=question,
        response=response,
        prompt_tokens=tuple(ids),
        tokens=tuple(tokens),
        logprobs=tuple(logprobs),
        base_logprobs=tuple(base_T.tolist()),
    )


def _encode(prompt: Prompt) -> list[int]:
    messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
    if prompt.opener:
        messages.append({"role": "assistant", "content": prompt.opener})
    text: Any = tokenizer().apply_chat_template(
        messages, tokenize=False, add_generation_prompt=not prompt.opener, continue_final_message=bool(prompt.opener)
    )
    return list(tokenizer().encode(text, add_special_tokens=False))


def make_zero(folder: Path, *, model: Path) -> None:
    """Have an adapter change nothing, and its record say so."""
    path = folder / WEIGHTS
    weights = load_file(path)
    save_file({name: torch.zeros_like(value) if "lora_B" in name else value for name, value in weights.items()}, path)
    write_record(folder, probe_record(folder, model=model))


def make_wider(folder: Path, *, model: Path) -> None:
    """Have an adapter be of a rank that is not served."""
    random_adapter(folder, model=model, seed=1, rank=4 * RANK, size=_SIZE)


async def insert_version(
    database: Database, published: PublishedAdapter, *, folder: Path | None = None, **fields: Any
) -> CriticVersion:
    """The next version, as a run that published this adapter leaves it."""
    async with database.session() as session:
        run = (await store.runs.request_run(session, config=TrainConfig(), trigger=Trigger.ADMIN)).run
        values: dict[str, Any] = {
            "parent": 0,
            "base_model": published.marker.base_model,
            "prompt_set": PROMPTS,
            "adapter_path": str(folder or published.folder),
            "adapter_sha256": published.marker.sha256,
        }
        return await store.critics.insert_critic(session, run_id=run.id, **(values | fields))


def shift_record(folder: Path, *, by: float) -> None:
    """Move every log-probability of the record by some nats."""
    record = ProbeRecord.model_validate_json((folder / PROBE).read_bytes())
    probes = tuple(
        probe.model_copy(update={"logprobs": tuple(value + by for value in probe.logprobs)}) for probe in record.probes
    )
    write_record(folder, record.model_copy(update={"probes": probes}))


def change_last_token(folder: Path) -> None:
    """Have the record say another last token of the last probe."""
    record = ProbeRecord.model_validate_json((folder / PROBE).read_bytes())
    *others, last = record.probes
    changed = last.model_copy(update={"tokens": (*last.tokens[:-1], last.tokens[-1] + 1)})
    write_record(folder, record.model_copy(update={"probes": (*others, changed)}))


def change_prompt(folder: Path) -> None:
    """Have the record's first prompt be other tokens."""
    record = ProbeRecord.model_validate_json((folder / PROBE).read_bytes())
    first, *others = record.probes
    changed = first.model_copy(update={"prompt_tokens": first.prompt_tokens[1:]})
    write_record(folder, record.model_copy(update={"probes": (changed, *others)}))
