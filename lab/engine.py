"""An engine for models so small that vLLM's bookkeeping costs more than the model: plain batched generation.

It answers the part of vLLM's HTTP interface that `gadfly.engine_client` uses, in the same process (`connect`) or on a
port (`python -m gadfly.lab.engine MODEL --port 8000`), so the code above it is the code that runs on vLLM. It also
works where vLLM is not installed. Requests that wait are computed together: one prefill a prompt, its samples share it.

What it leaves out: streaming, priorities, memory limits, a queue limit. Axis letters: P prompts, R rows (samples), T
positions, V vocabulary.
"""

import argparse
import asyncio
import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from gadfly.engine_client import ACTOR, Engine
from gadfly.seeds import seed_of_sample

_GATHER_S = 0.002  # how long the first waiting request waits for company


class Refused(Exception):
    """A request that cannot be answered; vLLM's status, message and parameter."""

    def __init__(self, status: int, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status, self.parameter = status, parameter


@dataclass(frozen=True, slots=True)
class Generation:
    """What one request asks for, as token ids."""

    model: str
    prompt: tuple[int, ...]
    samples: int
    max_tokens: int
    temperature: float
    seed: int | None
    labels: tuple[int, ...]  # ids whose log-probability is asked for at the first token


@dataclass(slots=True)
class Sampled:
    """One reply."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    is_stopped: bool = False
    labels: dict[int, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Queued:
    asked: Generation
    answer: asyncio.Future[list[Sampled]]


class Generator:
    """A base model and the adapters over it, each merged into a copy of its own. Not for use by several threads."""

    def __init__(self, model: str, *, device: torch.device | str | None = None, rows: int = 256) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.rows = rows
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(self.device).eval()
        self._models: dict[str, Any] = {ACTOR: base}
        self._end = self.tokenizer.eos_token_id
        self.context: int = base.config.max_position_embeddings

    @property
    def names(self) -> list[str]:
        return list(self._models)

    def load(self, name: str, folder: Path) -> None:
        """Serve the adapter in a folder under `name`.

        Raises:
            Refused: there is none, or it does not fit.
        """
        if name in self._models:
            raise Refused(400, f"The lora adapter '{name}' has already been loaded.")
        if not (folder / "adapter_config.json").exists():
            raise Refused(404, f"no adapter is found at {folder}")
        try:
            adapted = PeftModel.from_pretrained(copy.deepcopy(self._models[ACTOR]), str(folder))
        except (RuntimeError, ValueError, KeyError) as error:
            raise Refused(400, str(error)) from error
        self._models[name] = adapted.merge_and_unload().eval()

    def unload(self, name: str) -> None:
        if name == ACTOR or self._models.pop(name, None) is None:
            raise Refused(404, f"The lora adapter '{name}' cannot be found.")

    @torch.inference_mode()
    def generate(self, asked: Sequence[Generation]) -> list[list[Sampled]]:
        """Replies to requests for one model, which together are no more than `rows` samples unless there is one."""
        [name] = {each.model for each in asked}
        model = self._models.get(name)
        if model is None:
            raise Refused(404, f"The model `{name}` does not exist.")
        samples_P = torch.tensor([each.samples for each in asked])
        cache, logits_PV, mask_PT = self._prefill(model, [each.prompt for each in asked])
        cache.batch_repeat_interleave(samples_P.to(self.device))
        logits_RV = logits_PV.repeat_interleave(samples_P.to(self.device), 0)
        mask_RT = mask_PT.repeat_interleave(samples_P.to(self.device), 0)
        rows = [(each, sample) for each in asked for sample in range(each.samples)]
        replies = [Sampled() for _ in rows]
        limit_R = torch.tensor([each.max_tokens for each, _ in rows], device=self.device)
        temperature_R = torch.tensor([each.temperature for each, _ in rows], device=self.device)
        chance_RT = _chances(rows).to(self.device)
        length_R = mask_RT.sum(1)
        alive_R = torch.ones(len(rows), dtype=torch.bool, device=self.device)
        tokens_RT: list[Tensor] = []
        logprobs_RT: list[Tensor] = []
        for position in range(int(limit_R.max())):
            all_RV = logits_RV.float().log_softmax(-1)
            if position == 0:
                _read_labels(rows, replies, all_RV)
            token_R = _drawn(all_RV, temperature_R, chance_RT[:, position])
            tokens_RT.append(token_R)
            logprobs_RT.append(all_RV.gather(1, token_R[:, None])[:, 0])
            alive_R = alive_R & (token_R != self._end) & (position + 1 < limit_R)
            if not bool(alive_R.any()):
                break
            mask_RT = torch.cat([mask_RT, torch.ones_like(mask_RT[:, :1])], 1)
            logits_RV = model(
                input_ids=token_R[:, None],
                attention_mask=mask_RT,
                position_ids=length_R[:, None] + position,
                past_key_values=cache,
            ).logits[:, -1]
        tokens, logprobs = torch.stack(tokens_RT, 1).tolist(), torch.stack(logprobs_RT, 1).tolist()
        for row, ((each, _), reply) in enumerate(zip(rows, replies, strict=True)):
            written = tokens[row][: each.max_tokens]
            reply.is_stopped = self._end in written
            length = written.index(self._end) + 1 if reply.is_stopped else len(written)
            reply.tokens, reply.logprobs = written[:length], logprobs[row][:length]
        starts = (samples_P.cumsum(0) - samples_P).tolist()
        return [replies[start : start + each.samples] for start, each in zip(starts, asked, strict=True)]

    def _prefill(self, model: Any, prompts: Sequence[tuple[int, ...]]) -> tuple[Any, Tensor, Tensor]:
        width = max(map(len, prompts))
        ids_PT = torch.full((len(prompts), width), self._end)
        mask_PT = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):  # padded on the left: every next token is at the same place
            ids_PT[row, width - len(prompt) :] = torch.tensor(prompt)
            mask_PT[row, width - len(prompt) :] = 1
        ids_PT, mask_PT = ids_PT.to(self.device), mask_PT.to(self.device)
        cache = DynamicCache(config=model.config)
        logits_PV = model(
            input_ids=ids_PT,
            attention_mask=mask_PT,
            position_ids=(mask_PT.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[:, -1]
        return cache, logits_PV, mask_PT


def _chances(rows: Sequence[tuple[Generation, int]]) -> Tensor:
    """A number in [0, 1) for each position of each sample (R, T): its own, whatever it is computed together with."""
    chance_RT = torch.zeros(len(rows), max(each.max_tokens for each, _ in rows))
    for row, (each, sample) in enumerate(rows):
        if each.temperature > 0:
            generator = torch.Generator()
            if each.seed is None:
                generator.seed()
            else:
                generator.manual_seed(seed_of_sample(each.seed, sample) % 2**32)  # of which torch takes 32 bits
            chance_RT[row, : each.max_tokens] = torch.rand(each.max_tokens, generator=generator)
    return chance_RT


def _drawn(logprobs_RV: Tensor, temperature_R: Tensor, chance_R: Tensor) -> Tensor:
    """The likeliest token where the temperature is 0, elsewhere the one that the chance falls on."""
    is_greedy_R = temperature_R == 0
    likeliest_R = logprobs_RV.argmax(-1)
    if bool(is_greedy_R.all()):
        return likeliest_R
    scaled_RV = (logprobs_RV / temperature_R.masked_fill(is_greedy_R, 1.0)[:, None]).softmax(-1)
    total_RV = scaled_RV.double().cumsum(-1)
    drawn_R = torch.searchsorted(total_RV, (chance_R.double() * total_RV[:, -1])[:, None], right=True)[:, 0]
    return torch.where(is_greedy_R, likeliest_R, drawn_R.clamp(max=logprobs_RV.shape[-1] - 1))


def _read_labels(rows: Sequence[tuple[Generation, int]], replies: Sequence[Sampled], logprobs_RV: Tensor) -> None:
    for row, ((each, _), reply) in enumerate(zip(rows, replies, strict=True)):
        reply.labels = {label: float(logprobs_RV[row, label]) for label in each.labels}


class Batcher:
    """Requests as they come in, computed together in a thread of their own."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self._waiting: list[_Queued] = []
        self._worker: asyncio.Task[None] | None = None

    async def generate(self, asked: Generation) -> list[Sampled]:
        waiting = _Queued(asked, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await waiting.answer

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(_GATHER_S)
            batch = self._next_batch()
            try:
                replies = await asyncio.to_thread(self.generator.generate, [each.asked for each in batch])
            except Exception as error:  # handed to those who asked; the next batch may do better
                for each in batch:
                    if not each.answer.done():
                        each.answer.set_exception(error)
                continue
            for each, found in zip(batch, replies, strict=True):
                if not each.answer.done():
                    each.answer.set_result(found)

    def _next_batch(self) -> list[_Queued]:
        """The oldest request, and those behind it for the same model and of the same kind that there is room for."""
        self._waiting = [each for each in self._waiting if not each.answer.done()] or self._waiting[:1]
        first = self._waiting[0].asked
        batch: list[_Queued] = []
        rows = 0
        for each in self._waiting:
            alike = each.asked.model == first.model and (each.asked.max_tokens == 1) == (first.max_tokens == 1)
            if alike and (not batch or rows + each.asked.samples <= self.generator.rows):
                batch.append(each)
                rows += each.asked.samples
        self._waiting = [each for each in self._waiting if each not in batch]
        return batch


def make_app(generator: Generator) -> FastAPI:
    """The routes of vLLM's server that `gadfly.engine_client` uses."""
    batcher = Batcher(generator)
    tokenizer = generator.tokenizer
    app = FastAPI(title="lab engine", docs_url=None, redoc_url=None)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        body = {"error": {"message": str(error), "param": error.parameter, "code": error.status}}
        return JSONResponse(body, status_code=error.status)

    async def sampled(body: dict[str, Any], prompt: Sequence[int]) -> list[Sampled]:
        room = generator.context - len(prompt)
        if room < 1:
            raise Refused(400, f"{len(prompt)} tokens are more than the model's {generator.context}", "input_tokens")
        return await batcher.generate(
            Generation(
                model=body["model"],
                prompt=tuple(prompt),
                samples=body.get("n") or 1,
                max_tokens=min(body.get("max_tokens") or room, room),
                temperature=body.get("temperature", 1.0),
                seed=body.get("seed"),
                labels=tuple(body.get("logprob_token_ids") or ()),
            )
        )

    def prompt_of(body: dict[str, Any]) -> list[int]:
        goes_on = body.get("continue_final_message", False)
        text = tokenizer.apply_chat_template(
            body["messages"],
            tokenize=False,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
        )
        return list(tokenizer.encode(text, add_special_tokens=False))

    @app.post("/v1/chat/completions")
    async def chat(body: dict[str, Any]) -> dict[str, Any]:
        if body.get("stream"):
            raise Refused(400, "this engine does not stream")
        prompt = prompt_of(body)
        replies = await sampled(body, prompt)
        written = sum(len(reply.tokens) for reply in replies)
        return {
            "model": body["model"],
            "prompt_token_ids": prompt,
            "choices": [_choice(tokenizer, index, reply) for index, reply in enumerate(replies)],
            "usage": {
                "prompt_tokens": len(prompt),
                "completion_tokens": written,
                "total_tokens": len(prompt) + written,
            },
        }

    @app.post("/v1/completions")
    async def complete(body: dict[str, Any]) -> dict[str, Any]:
        replies = await sampled(body, tokenizer.encode(body["prompt"]))
        return {"choices": [{"index": 0, "text": tokenizer.decode(replies[0].tokens), "finish_reason": "length"}]}

    @app.post("/tokenize")
    async def tokenize(body: dict[str, Any]) -> dict[str, Any]:
        ids = prompt_of(body) if "messages" in body else tokenizer.encode(body["prompt"], add_special_tokens=False)
        return {"tokens": ids, "count": len(ids), "max_model_len": generator.context}

    @app.post("/detokenize")
    async def detokenize(body: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": tokenizer.decode(body["tokens"])}

    @app.post("/v1/load_lora_adapter")
    async def load(body: dict[str, Any]) -> str:
        await asyncio.to_thread(generator.load, body["lora_name"], Path(body["lora_path"]))
        return "loaded"

    @app.post("/v1/unload_lora_adapter")
    async def unload(body: dict[str, Any]) -> str:
        generator.unload(body["lora_name"])
        return "unloaded"

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in generator.names]}

    @app.get("/health")
    async def health() -> None:
        return None

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": f"lab (transformers, torch {torch.__version__})"}

    return app


def _choice(tokenizer: Any, index: int, reply: Sampled) -> dict[str, Any]:
    top = [{"token": f"token_id:{label}", "logprob": value} for label, value in reply.labels.items()]
    content: list[dict[str, Any]] = [{"logprob": value, "top_logprobs": []} for value in reply.logprobs]
    if content and top:
        content[0]["top_logprobs"] = top
    return {
        "index": index,
        "message": {"role": "assistant", "content": tokenizer.decode(reply.tokens, skip_special_tokens=True)},
        "finish_reason": "stop" if reply.is_stopped else "length",
        "token_ids": reply.tokens,
        "logprobs": {"content": content},
    }


def connect(generator: Generator) -> Engine:
    """The engine in this process, behind the same client as any other."""
    return Engine("http://lab", timeout_s=3600.0, transport=httpx.ASGITransport(make_app(generator)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8000)
    asked = parser.parse_args()
    uvicorn.run(make_app(Generator(asked.model)), host="127.0.0.1", port=asked.port, log_level="warning")


if __name__ == "__main__":
    main()
