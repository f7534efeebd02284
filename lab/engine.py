"""An engine with plain batched generation, for models so small that vLLM's bookkeeping costs more than the model.

It implements the part of vLLM's HTTP interface that `gadfly.engine_client` uses, in the same process (`connect`) or on
a port (`python -m gadfly.lab.engine MODEL --port 8000`), so its callers run the same code as with vLLM. It also works
where vLLM is not installed. Waiting requests are computed together; the samples of a prompt share its prefill.

Not implemented: streaming, priorities, memory limits, a queue limit. Axis letters: P prompts, R rows (samples), T
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
from transformers.cache_utils import DynamicLayer

from gadfly.engine_client import ACTOR, Engine
from gadfly.seeds import seed_of_sample

_GATHER_S = 0.002  # how long the first request waits for others to join its batch
_ROOM = 64  # positions that a cache grows by
_FULL = 0.75  # when fewer of a batch's rows than this share are still written, the others are taken out


class Refused(Exception):
    """A request that cannot be answered, with vLLM's status, message and parameter."""

    def __init__(self, status: int, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status, self.parameter = status, parameter


@dataclass(frozen=True, slots=True)
class Generation:
    """One request, as token ids."""

    model: str
    prompt: tuple[int, ...]
    samples: int
    max_tokens: int
    temperature: float
    seed: int | None
    labels: tuple[int, ...]  # ids whose log-probability at the first token is requested


@dataclass(slots=True)
class Sampled:
    """One reply."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    is_stopped: bool = False
    labels: dict[int, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Queued:
    request: Generation
    result: asyncio.Future[list[Sampled]]


class _Roomy(DynamicLayer):  # type: ignore[misc]  # transformers has no types for it
    """A cache layer with room for the next positions: writing one copies nothing until the room is used up."""

    keys: Tensor
    values: Tensor
    _room: tuple[Tensor, Tensor] | None = None  # the keys and values, and unused positions after them

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < after:
            shape = (*key_states.shape[:-2], after + _ROOM, key_states.shape[-1])
            self._room = key_states.new_empty(shape), value_states.new_empty(shape)
            if before:
                self._room[0][..., :before, :], self._room[1][..., :before, :] = self.keys, self.values
        keys, values = self._room
        keys[..., before:after, :], values[..., before:after, :] = key_states, value_states
        self.keys, self.values = keys[..., :after, :], values[..., :after, :]
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: Any) -> None:
        super().batch_repeat_interleave(repeats)
        self._room = None

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._room = None


class Generator:
    """A base model and its adapters, each merged into a copy of the base. Not thread-safe."""

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
        """Serve the adapter in a folder as `name`.

        Raises:
            Refused: the folder holds no adapter, or it does not fit the model, or the name is in use.
        """
        if name in self._models:
            raise Refused(400, f"The lora adapter '{name}' has already been loaded.")
        if not (folder / "adapter_config.json").exists():
            raise Refused(404, f"there is no adapter at {folder}")
        try:
            adapted = PeftModel.from_pretrained(copy.deepcopy(self._models[ACTOR]), str(folder))
        except (RuntimeError, ValueError, KeyError) as error:
            raise Refused(400, str(error)) from error
        self._models[name] = adapted.merge_and_unload().eval()

    def unload(self, name: str) -> None:
        if name == ACTOR or self._models.pop(name, None) is None:
            raise Refused(404, f"The lora adapter '{name}' cannot be found.")

    @torch.inference_mode()
    def generate(self, requests: Sequence[Generation]) -> list[list[Sampled]]:
        """The replies to requests for one model. Several requests together have at most `rows` samples."""
        [name] = {request.model for request in requests}
        model = self._models.get(name)
        if model is None:
            raise Refused(404, f"The model `{name}` does not exist.")
        samples_P = torch.tensor([request.samples for request in requests])
        cache, logits_PV, mask_PT = self._prefill(model, [request.prompt for request in requests])
        cache.batch_repeat_interleave(samples_P.to(self.device))
        logits_RV = logits_PV.repeat_interleave(samples_P.to(self.device), 0)
        mask_RT = mask_PT.repeat_interleave(samples_P.to(self.device), 0)
        rows = [(request, sample) for request in requests for sample in range(request.samples)]
        replies = [Sampled() for _ in rows]
        limit_R = torch.tensor([request.max_tokens for request, _ in rows], device=self.device)
        temperature_R = torch.tensor([request.temperature for request, _ in rows], device=self.device)
        chance_RT = _chances(rows).to(self.device)
        length_R = mask_RT.sum(1)
        row_R = torch.arange(len(rows), device=self.device)  # the rows that are still written
        longest = int(limit_R.max())
        tokens_RT = torch.full((len(rows), longest), self._end, device=self.device)
        logprobs_RT = torch.zeros(len(rows), longest, device=self.device)
        for position in range(longest):
            all_RV = logits_RV.float().log_softmax(-1)
            if position == 0:
                _read_labels(rows, replies, all_RV)
            token_R = _drawn(all_RV, temperature_R, chance_RT[:, position])
            tokens_RT[row_R, position] = token_R
            logprobs_RT[row_R, position] = all_RV.gather(1, token_R[:, None])[:, 0]
            # A row that is over is computed on until there are enough of them; its tokens then are not read.
            alive_R = (tokens_RT[row_R, : position + 1] != self._end).all(1) & (position + 1 < limit_R)
            alive = int(alive_R.sum())
            if not alive:
                break
            mask_RT = torch.cat([mask_RT, torch.ones_like(mask_RT[:, :1])], 1)
            if alive < _FULL * len(row_R):
                cache.batch_select_indices(alive_R)
                row_R, token_R, mask_RT, chance_RT, limit_R, temperature_R, length_R = (
                    each[alive_R] for each in (row_R, token_R, mask_RT, chance_RT, limit_R, temperature_R, length_R)
                )
            logits_RV = model(
                input_ids=token_R[:, None],
                attention_mask=mask_RT,
                position_ids=length_R[:, None] + position,
                past_key_values=cache,
            ).logits[:, -1]
        tokens, logprobs = tokens_RT.tolist(), logprobs_RT.tolist()
        for row, ((request, _), reply) in enumerate(zip(rows, replies, strict=True)):
            written = tokens[row][: request.max_tokens]
            reply.is_stopped = self._end in written
            length = written.index(self._end) + 1 if reply.is_stopped else len(written)
            reply.tokens, reply.logprobs = written[:length], logprobs[row][:length]
        starts = (samples_P.cumsum(0) - samples_P).tolist()
        return [replies[start : start + request.samples] for start, request in zip(starts, requests, strict=True)]

    def _prefill(self, model: Any, prompts: Sequence[tuple[int, ...]]) -> tuple[Any, Tensor, Tensor]:
        width = max(map(len, prompts))
        ids_PT = torch.full((len(prompts), width), self._end)
        mask_PT = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):  # padded on the left, so all rows continue at the same position
            ids_PT[row, width - len(prompt) :] = torch.tensor(prompt)
            mask_PT[row, width - len(prompt) :] = 1
        ids_PT, mask_PT = ids_PT.to(self.device), mask_PT.to(self.device)
        cache = DynamicCache(config=model.config)
        cache.layers = [_Roomy() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        logits_PV = model(
            input_ids=ids_PT,
            attention_mask=mask_PT,
            position_ids=(mask_PT.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[:, -1]
        return cache, logits_PV, mask_PT


def _chances(rows: Sequence[tuple[Generation, int]]) -> Tensor:
    """A random number in [0, 1) for each position of each sample (R, T), independent of the other rows of the batch."""
    chance_RT = torch.zeros(len(rows), max(request.max_tokens for request, _ in rows))
    for row, (request, sample) in enumerate(rows):
        if request.temperature > 0:
            generator = torch.Generator()
            if request.seed is None:
                generator.seed()
            else:
                generator.manual_seed(seed_of_sample(request.seed, sample) % 2**32)  # torch uses 32 bits
            chance_RT[row, : request.max_tokens] = torch.rand(request.max_tokens, generator=generator)
    return chance_RT


def _drawn(logprobs_RV: Tensor, temperature_R: Tensor, chance_R: Tensor) -> Tensor:
    """The likeliest token where the temperature is 0, elsewhere the token that the random number selects."""
    is_greedy_R = temperature_R == 0
    likeliest_R = logprobs_RV.argmax(-1)
    if bool(is_greedy_R.all()):
        return likeliest_R
    scaled_RV = (logprobs_RV / temperature_R.masked_fill(is_greedy_R, 1.0)[:, None]).softmax(-1)
    total_RV = scaled_RV.double().cumsum(-1)
    drawn_R = torch.searchsorted(total_RV, (chance_R.double() * total_RV[:, -1])[:, None], right=True)[:, 0]
    return torch.where(is_greedy_R, likeliest_R, drawn_R.clamp(max=logprobs_RV.shape[-1] - 1))


def _read_labels(rows: Sequence[tuple[Generation, int]], replies: Sequence[Sampled], logprobs_RV: Tensor) -> None:
    for row, ((request, _), reply) in enumerate(zip(rows, replies, strict=True)):
        reply.labels = {label: float(logprobs_RV[row, label]) for label in request.labels}


class Batcher:
    """Collects requests into batches and computes them in a separate thread."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self._waiting: list[_Queued] = []
        self._worker: asyncio.Task[None] | None = None

    async def generate(self, request: Generation) -> list[Sampled]:
        queued = _Queued(request, asyncio.get_running_loop().create_future())
        self._waiting.append(queued)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await queued.result

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(_GATHER_S)
            batch = self._next_batch()
            try:
                replies = await asyncio.to_thread(self.generator.generate, [queued.request for queued in batch])
            except Exception as error:  # raised in the callers of this batch; the next batch may succeed
                for queued in batch:
                    if not queued.result.done():
                        queued.result.set_exception(error)
                continue
            for queued, samples in zip(batch, replies, strict=True):
                if not queued.result.done():
                    queued.result.set_result(samples)

    def _next_batch(self) -> list[_Queued]:
        """The oldest request, and those after it for the same model and of the same kind, up to `rows` samples."""
        self._waiting = [queued for queued in self._waiting if not queued.result.done()] or self._waiting[:1]
        first = self._waiting[0].request
        batch: list[_Queued] = []
        rows = 0
        for queued in self._waiting:
            request = queued.request
            alike = request.model == first.model and (request.max_tokens == 1) == (first.max_tokens == 1)
            if alike and (not batch or rows + request.samples <= self.generator.rows):
                batch.append(queued)
                rows += request.samples
        self._waiting = [queued for queued in self._waiting if queued not in batch]
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
        continues = body.get("continue_final_message", False)
        text = tokenizer.apply_chat_template(
            body["messages"],
            tokenize=False,
            add_generation_prompt=not continues,
            continue_final_message=continues,
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
    """A client of this engine in the same process."""
    return Engine("http://lab", timeout_s=3600.0, transport=httpx.ASGITransport(make_app(generator)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(make_app(Generator(options.model)), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
