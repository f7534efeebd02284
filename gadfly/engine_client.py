"""The client of vLLM's server: chat completions, verdict reads, adapters, health.

Requests are OpenAI's chat completions with vLLM's extra fields. Prompts are messages: the engine applies the model's
own chat template. Retries and time limits exist only here.

Source: vLLM 0.32, vllm/entrypoints/openai/chat_completion/protocol.py.
"""

import asyncio
import math
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec
import orjson
from httpx_sse import EventSource

from gadfly import tracing
from gadfly.access import Access
from gadfly.adapters import CONFIG, WEIGHTS, file_sha256
from gadfly.chat import Assembly, Chat, ChatReply, OnDelta, guard_messages, is_piece, reply_of
from gadfly.control_tokens import guard, reserved_strings
from gadfly.engine_health import EngineHealth, HealthLimits
from gadfly.errors import (
    AdapterRefused,
    BadInput,
    EngineError,
    EngineRefused,
    EngineTimeout,
    EngineUnavailable,
    MalformedReply,
    PromptTooLong,
    SameTokens,
)
from gadfly.prompts import Prompt
from gadfly.records import Usage
from gadfly.settings import without_password
from gadfly.tracing import OpenSpan, SpanKind
from gadfly.transport import (
    Broken,
    ConnectTimeout,
    HttpResponse,
    NotConnected,
    Silence,
    open_link,
    untrusted_certificate,
)

ACTOR = "base"
"""The model name of the base weights. Where an engine serves them under another name, `Engine` translates."""

OnText = Callable[[int, str], Awaitable[None]]
"""Called with (sample, new text) for each piece of a streamed reply."""

T = TypeVar("T")

# Sample from the whole distribution, at the request's temperature. An engine that another program started may default
# to the model's generation_config.json, and log-probabilities would not reveal it: they ignore these values.
_UNCHANGED = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}

_CONNECT_TIMEOUT_S = 2.0
_PROBE_TIMEOUT_S = 10.0
_OPEN = Access()
_OURS = ("critic@", "run@")  # how the names of our adapters begin
_AVOIDED_S = 1.0  # how long other engines are preferred to one that did not take a request
_HEALTH = HealthLimits()


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How replies are sampled. `priority`: lower runs first; live traffic is 0, rollouts are higher.

    `with_tokens` requests the token ids of prompt and reply and the log-probability of each sampled token.
    """

    n: int = 1
    temperature: float = 0.0
    max_tokens: int = 512
    seed: int | None = None
    priority: int = 0
    with_tokens: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One sampled reply, without the opener. `usage` counts the prompt on sample 0 only: n samples share it.

    The last three fields are the engine's own record of the reply, of which the text is a view; they are empty without
    `Sampling.with_tokens`. `tokens` ends with the end-of-turn token unless the reply was cut short. `logprobs` are in
    nats, one per token, over the full vocabulary at temperature 1 regardless of the sampling (vLLM's raw_logprobs).
    """

    text: str
    finish_reason: str | None
    usage: Usage
    prompt_tokens: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    engine: str = ""  # the URL of the engine that sampled it, and has its tokens in its prefix cache
    labels: "LabelTrace | None" = None  # with the `labels` of the request

    @property
    def is_cut(self) -> bool:
        """Whether its token limit ended it."""
        return self.finish_reason == "length"


@dataclass(frozen=True, slots=True)
class LabelWords:
    """Two words that may follow the text `after` and a space."""

    after: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class LabelTokens:
    """The tokens in which two words differ after the text `after`: `bridge` is their common text, then one id each.

    `texts` are those of the two tokens alone, without outer space.
    """

    bridge: str
    first: int
    second: int
    texts: tuple[str, str]


class _Token(msgspec.Struct, frozen=True):
    """One token of a reply. Of its log-probabilities only those of one place are needed, so none is parsed here."""

    token: str
    top_logprobs: msgspec.Raw


class _Tokens(msgspec.Struct, frozen=True):
    content: list[_Token] | None = None


_TOKENS = msgspec.json.Decoder(_Tokens | None)


@dataclass(frozen=True, slots=True)
class LabelTrace:
    """The log-probabilities of two label tokens at each token of a reply, as the engine reported them.

    `reported` is vLLM's `logprobs` of a choice, in JSON. A stream has one for each chunk.
    """

    tokens: LabelTokens
    reported: Sequence[bytes | msgspec.Raw]

    def after(self, text: str) -> tuple[float, float] | None:
        """The probabilities of both words as the continuation of `text`, with which the reply begins.

        What `Engine.read_labels` would read there, from the sampling itself. None where no token begins at this place.
        """
        wanted, place = text + self.tokens.bridge, 0
        try:
            for item in self._content():
                if place == len(wanted):
                    return self._labels_of(item)
                if not wanted.startswith(item.token, place):
                    return None
                place += len(item.token)
        except msgspec.MsgspecError:  # another form than vLLM's
            pass
        return None

    def _content(self) -> Iterator[_Token]:
        for each in self.reported:
            logprobs = _TOKENS.decode(each)
            yield from (logprobs and logprobs.content) or ()

    def _labels_of(self, item: _Token) -> tuple[float, float] | None:
        # vLLM lists the sampled token first, then the labels in order; a label that was sampled stands there once.
        listed = msgspec.json.decode(item.top_logprobs)[-2:]
        texts = tuple(each["token"].strip() for each in listed)
        if texts == self.tokens.texts and texts[0] != texts[1]:
            return math.exp(listed[0]["logprob"]), math.exp(listed[1]["logprob"])
        if texts == self.tokens.texts[::-1] and texts[0] != texts[1]:
            return math.exp(listed[1]["logprob"]), math.exp(listed[0]["logprob"])
        return None


class Adapters(StrEnum):
    """Whether an engine loads adapters at run time."""

    LOADED = "loaded"
    NOT_AT_RUN_TIME = "not_at_run_time"  # it has no route for that
    OFF = "off"  # it was started without adapters

    @property
    def problem(self) -> str:
        """Why it serves the base model only, to follow the engine's name; empty if it loads adapters."""
        return {
            Adapters.LOADED: "",
            Adapters.NOT_AT_RUN_TIME: "loads no adapters at run time (VLLM_ALLOW_RUNTIME_LORA_UPDATING)",
            Adapters.OFF: "was started without --enable-lora",
        }[self]


@dataclass(frozen=True, slots=True)
class Served:
    """An engine's list of models: its own name of the base model, and all names with `base` in place of that one."""

    base: str
    names: frozenset[str]
    folder: str = ""  # where the engine loaded the base model from: a folder there, or a hub id
    max_model_len: int | None = None

    @classmethod
    def of(cls, cards: Sequence[Mapping[str, Any]], *, wanted: str, url: str) -> Self:
        """Tell the base model from adapters, which name a parent. `wanted`: its name; empty: any, if there is one.

        Raises:
            EngineRefused: no base model, several different ones, or not the wanted one.
        """
        where = without_password(url)
        bases = {str(card["id"]): str(card.get("root") or card["id"]) for card in cards if not card.get("parent")}
        bases = {name: root for name, root in bases.items() if not name.startswith(_OURS)}
        listed = ", ".join(bases) or "no model"
        if wanted and wanted not in bases:
            raise EngineRefused(f"the engine at {where} serves {listed}, and not {wanted} (GADFLY_ENGINE_MODEL)")
        if not wanted and ACTOR not in bases and len(set(bases.values())) != 1:
            raise EngineRefused(
                f"the engine at {where} serves {listed}: set GADFLY_ENGINE_MODEL to the name of the base model"
            )
        base = wanted or (ACTOR if ACTOR in bases else next(iter(bases)))
        names = {str(card["id"]) for card in cards} - set(bases)
        length = next(card.get("max_model_len") for card in cards if str(card["id"]) == base)
        return cls(base, frozenset({*names, ACTOR}), bases[base], length)


class Engine:
    """One vLLM server, at `http://host:port`, `https://...`, or on a Unix socket (`unix:///path`).

    It may serve the base model under another name: that is read from its list of models when it does not know `base`.

    Raises:
        BadSettings: the file with certificates cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        access: Access = _OPEN,
        transport: httpx.AsyncBaseTransport | None = None,
        health: HealthLimits = _HEALTH,
    ) -> None:
        self.url = url
        self.health = EngineHealth(url, health)
        self.in_flight = 0
        # Monotonic seconds; until then other engines are tried first.
        self._down_until = 0.0  # after a failed connection
        self._full_until = 0.0  # after a refusal
        self.drops = 0  # failed connections: after one, another process may run at the same address
        self._timeout_s = timeout_s
        self._access = access
        self._base = access.model or ACTOR  # the engine's name of the base model
        self._link = open_link(
            url, access=access, silence_s=timeout_s, connect_s=_CONNECT_TIMEOUT_S, transport=transport
        )
        self._reserved: tuple[int, frozenset[str] | None] | None = (
            None  # `drops` at the time of reading, and the strings
        )
        self._adapters: tuple[int, Adapters] | None = None  # `drops` at the time of asking, and the answer
        self._labels: dict[LabelWords, LabelTokens] = {}

    async def aclose(self) -> None:
        await self.health.aclose()
        await self._link.aclose()

    @property
    def is_reachable(self) -> bool:
        """Whether the last connection succeeded, or failed some seconds ago."""
        return self._down_until <= time.monotonic()

    @property
    def has_room(self) -> bool:
        """Whether the engine is reachable and has not refused a request in the last seconds."""
        return self.is_reachable and self._full_until <= time.monotonic()

    def note_refusal(self) -> None:
        """Prefer other engines for some seconds: one that refuses quickly would appear the least busy."""
        self._full_until = time.monotonic() + _AVOIDED_S

    def note_room(self) -> None:
        """Undo `note_refusal`: the engine now serves the model it lacked."""
        self._full_until = 0.0

    async def chat(
        self,
        prompt: Prompt,
        *,
        model: str,
        sampling: Sampling,
        on_text: OnText | None = None,
        labels: LabelWords | None = None,
    ) -> tuple[Reply, ...]:
        """Sample `sampling.n` replies to one prompt, in order of sample. With `labels`, each has their `LabelTrace`.

        Raises:
            PromptTooLong: the prompt does not fit the context. (A completion that does not fit is cut short.)
            EngineUnavailable: no connection, overload, no such model at present, or the engine died meanwhile.
            EngineTimeout: it took longer than the client's limit.
            MalformedReply: its reply cannot be read.
        """
        with self._span("chat", model, sampling) as span:
            replies = await self._chat(prompt, model=model, sampling=sampling, on_text=on_text, labels=labels)
            _note_replies(span, replies)
            return replies

    async def _chat(
        self,
        prompt: Prompt,
        *,
        model: str,
        sampling: Sampling,
        on_text: OnText | None,
        labels: LabelWords | None,
    ) -> tuple[Reply, ...]:
        body = _chat_body(await guard(prompt, self._reserved_strings), model=model, sampling=sampling)
        tokens = None if labels is None else await self.label_tokens(labels)
        if tokens is not None:
            body |= {"logprobs": True, "logprob_token_ids": [tokens.first, tokens.second]}
        if on_text is not None:
            return await self._named(body, lambda named: self._stream(named, sampling.n, on_text, tokens))
        answer = await self._named(body, self._complete)
        with self._understanding():
            choices = sorted(answer.choices, key=lambda choice: choice.index)
            replies = self._replies(
                [choice.message.content or "" for choice in choices],
                [choice.finish_reason for choice in choices],
                [len(choice.token_ids or ()) for choice in choices],
                answer.usage,
                tokens,
                [[choice.logprobs] for choice in choices],
            )
            if not sampling.with_tokens:
                return replies
            return tuple(
                replace(
                    reply,
                    prompt_tokens=answer.prompt_token_ids or (),
                    tokens=choice.token_ids or (),
                    logprobs=tuple(item.logprob for item in _SAMPLED.decode(choice.logprobs).content),
                )
                for reply, choice in zip(replies, choices, strict=True)
            )

    def _span(self, operation: str, model: str, sampling: Sampling) -> AbstractContextManager[OpenSpan]:
        """A span for a request to this engine, named as OpenTelemetry names those to language models."""
        if not tracing.is_on():
            return tracing.span(operation)
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": model,
            "gen_ai.request.choice.count": sampling.n,
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gadfly.engine": without_password(self.url),
        }
        return tracing.span(f"{operation} {model}", attributes, kind=SpanKind.CLIENT)

    async def _complete(self, body: dict[str, Any]) -> "_Completion":
        content = await self._post_raw("/v1/chat/completions", body, timeout_s=None)
        with self._understanding():
            return _COMPLETION.decode(content)

    async def _stream(
        self, body: dict[str, Any], n: int, on_text: OnText, labels: LabelTokens | None
    ) -> tuple[Reply, ...]:
        texts = [""] * n
        reported: list[list[bytes]] = [[] for _ in range(n)]
        reasons: list[str | None] = [None] * n
        counts = [0] * n
        usage: dict[str, int] | None = None
        async with aclosing(self._pieces(body)) as chunks:
            async for chunk in chunks:
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    piece = choice["delta"].get("content") or ""
                    if piece:
                        texts[choice["index"]] += piece
                        await on_text(choice["index"], piece)
                    if labels is not None and choice.get("logprobs"):
                        reported[choice["index"]].append(orjson.dumps(choice["logprobs"]))
                    counts[choice["index"]] += len(choice.get("token_ids") or ())
                    reasons[choice["index"]] = choice["finish_reason"] or reasons[choice["index"]]
        if usage is None or any(reason is None for reason in reasons):
            raise EngineUnavailable("the engine ended the stream before the reply was complete")
        return self._replies(texts, reasons, counts, usage, labels, reported)

    def _replies(
        self,
        texts: Sequence[str],
        reasons: Sequence[str | None],
        counts: Sequence[int],
        usage: Mapping[str, Any],
        labels: LabelTokens | None,
        reported: Sequence[Sequence[bytes | msgspec.Raw]],
    ) -> tuple[Reply, ...]:
        _refuse_aborted(reasons)
        return tuple(
            Reply(
                text=text,
                finish_reason=reason,
                usage=share,
                engine=self.url,
                labels=None if labels is None else LabelTrace(labels, each),
            )
            for text, reason, share, each in zip(texts, reasons, _shares(counts, usage), reported, strict=True)
        )

    async def _pieces(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """`_chunks`, checked for the fields that their readers need."""
        with self._understanding():
            async with aclosing(self._chunks(body)) as chunks:
                async for chunk in chunks:
                    for choice in chunk["choices"]:
                        choice["delta"].get("content"), choice["index"], choice["finish_reason"]
                    yield chunk

    async def _chunks(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of a streamed chat completion."""
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        async with self._request_errors(), self._link.stream("/v1/chat/completions", body) as response:
            if response.status_code != httpx.codes.OK:
                self._raise_for(response.status_code, await response.aread())
            async for event in EventSource(response).aiter_sse():
                if event.data == "[DONE]":
                    return
                chunk = orjson.loads(event.data)
                if "error" in chunk:
                    raise EngineUnavailable(
                        f"the engine aborted the reply: {chunk['error'].get('message', 'no reason given')}"
                    )
                yield chunk

    async def converse(self, chat: Chat, *, on_delta: OnDelta | None = None) -> tuple[ChatReply, ...]:
        """Continue a caller's own conversation with the base model, `chat.n` times, in order of choice.

        Raises as `chat`, and BadInput for an option that the engine refuses.
        """
        temperature = chat.options.get("temperature", 1.0)
        sampling = Sampling(n=chat.n, max_tokens=chat.max_tokens, temperature=temperature)
        with self._span("chat", ACTOR, sampling) as span:
            replies = await self._converse(chat, on_delta)
            _note_replies(span, replies)
            return replies

    async def _converse(self, chat: Chat, on_delta: OnDelta | None) -> tuple[ChatReply, ...]:
        body: dict[str, Any] = {
            "model": ACTOR,
            "messages": await guard_messages(chat.messages, self._reserved_strings),
            "n": chat.n,
            "max_tokens": chat.max_tokens,
            "priority": 0,
            **_UNCHANGED,
            **chat.options,
        }
        if chat.n > 1:
            body["return_token_ids"] = True
        if on_delta is not None:
            return await self._named(body, lambda named: self._stream_chat(named, chat.n, on_delta))
        answer = await self._ask("/v1/chat/completions", body)
        with self._understanding():
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            _refuse_aborted([choice["finish_reason"] for choice in choices])
            usages = _shares([len(choice.get("token_ids") or ()) for choice in choices], answer["usage"])
            return tuple(reply_of(choice, usage) for choice, usage in zip(choices, usages, strict=True))

    async def _stream_chat(self, body: dict[str, Any], n: int, on_delta: OnDelta) -> tuple[ChatReply, ...]:
        replies = [Assembly() for _ in range(n)]
        counts = [0] * n
        usage: dict[str, int] | None = None
        async with aclosing(self._pieces(body)) as chunks:
            async for chunk in chunks:
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    index, delta, logprobs = choice["index"], choice["delta"], choice.get("logprobs")
                    if is_piece(delta) or logprobs:
                        replies[index].add(delta, logprobs)
                        await on_delta(index, delta, logprobs)
                    counts[index] += len(choice.get("token_ids") or ())
                    replies[index].finish_reason = choice["finish_reason"] or replies[index].finish_reason
        reasons = [reply.finish_reason for reply in replies]
        if usage is None or any(reason is None for reason in reasons):
            raise EngineUnavailable("the engine ended the stream before the reply was complete")
        _refuse_aborted(reasons)
        return tuple(reply.reply(share) for reply, share in zip(replies, _shares(counts, usage), strict=True))

    async def read_labels(
        self, prompt: Prompt, *, model: str, labels: LabelWords, priority: int = 0
    ) -> tuple[float, float]:
        """Probability of each of two words as the reply's continuation, over the full vocabulary at temperature 1.

        `prompt.opener` is the reply so far and ends with `labels.after`. A word of several tokens is represented by its
        first token that the other word does not share. Raises as `chat`.
        """
        with self._span("read_verdict", model, Sampling(max_tokens=1)):
            return await self._read_labels(prompt, model=model, labels=labels, priority=priority)

    async def _read_labels(
        self, prompt: Prompt, *, model: str, labels: LabelWords, priority: int
    ) -> tuple[float, float]:
        tokens = await self.label_tokens(labels)
        body = _chat_body(
            await guard(prompt.continued(prompt.opener + tokens.bridge), self._reserved_strings),
            model=model,
            sampling=Sampling(max_tokens=1, priority=priority),
        ) | {
            "logprobs": True,
            "logprob_token_ids": [tokens.first, tokens.second],
            "return_tokens_as_token_ids": True,
        }
        logprobs = self._first_logprobs(await self._ask("/v1/chat/completions", body))
        try:
            return math.exp(logprobs[f"token_id:{tokens.first}"]), math.exp(logprobs[f"token_id:{tokens.second}"])
        except KeyError as error:
            raise EngineError(f"the engine did not report the probability of {error}") from None

    async def read_logprobs(self, prompt: Prompt, *, tokens: Sequence[int]) -> dict[int, float]:
        """The log-probabilities (nats) of at most 128 tokens as the reply's first token. Raises as `chat`."""
        body = _chat_body(await guard(prompt, self._reserved_strings), model=ACTOR, sampling=Sampling(max_tokens=1)) | {
            "logprobs": True,
            "logprob_token_ids": list(tokens),
            "return_tokens_as_token_ids": True,
        }
        found = self._first_logprobs(await self._ask("/v1/chat/completions", body))
        try:
            return {token: found[f"token_id:{token}"] for token in tokens}
        except KeyError as error:
            raise EngineError(f"the engine did not report the probability of {error}") from None

    def _first_logprobs(self, answer: dict[str, Any]) -> dict[str, float]:
        """The log-probabilities (nats) at the first place of the only reply, by token."""
        with self._understanding():
            [choice] = answer["choices"]
            _refuse_aborted([choice["finish_reason"]])
            return {item["token"]: item["logprob"] for item in choice["logprobs"]["content"][0]["top_logprobs"]}

    async def draw(
        self,
        prompt: Prompt,
        *,
        n: int,
        temperature: float,
        seed: int | None,
        logit_bias: Mapping[int, float],
        priority: int = 0,
    ) -> list[int]:
        """The first tokens of `n` replies, with `logit_bias` (nats by token) added to the logits. Raises as `chat`."""
        sampling = Sampling(n=n, temperature=temperature, max_tokens=1, seed=seed, priority=priority)
        body = _chat_body(await guard(prompt, self._reserved_strings), model=ACTOR, sampling=sampling) | {
            "logit_bias": {str(token): bias for token, bias in logit_bias.items()},
            "return_token_ids": True,
        }
        choices = (await self._ask("/v1/chat/completions", body))["choices"]
        _refuse_aborted([choice["finish_reason"] for choice in choices])
        return [choice["token_ids"][0] for choice in sorted(choices, key=lambda choice: choice["index"])]

    async def token_ids(self, text: str) -> list[int]:
        """The tokens of a text alone. Raises as `chat`."""
        return await self._tokenize(text)

    async def label_tokens(self, labels: LabelWords) -> LabelTokens:
        """The tokens in which two words differ. Read from the engine once.

        Raises:
            SameTokens: they do not differ before one of them ends. Else as `chat`.
        """
        known = self._labels.get(labels)
        if known is None:
            after, first, second = labels.after, labels.first, labels.second
            one, two = await asyncio.gather(self._tokenize(f"{after} {first}"), self._tokenize(f"{after} {second}"))
            common = 0
            while common < min(len(one), len(two)) and one[common] == two[common]:
                common += 1
            if common == min(len(one), len(two)):
                raise SameTokens(
                    f"the model's tokens do not distinguish the verdict words {first!r} and {second!r}: one begins "
                    "with all tokens of the other. Use words that differ earlier, such as Correct and Wrong"
                )
            shared, *texts = await asyncio.gather(
                *(self._detokenize(tokens) for tokens in (one[:common], [one[common]], [two[common]]))
            )
            bridge = shared[shared.rindex(after) + len(after) :] if after in shared else ""
            known = self._labels[labels] = LabelTokens(
                bridge, one[common], two[common], (texts[0].strip(), texts[1].strip())
            )
        return known

    async def tokenize(self, prompt: Prompt) -> tuple[int, ...]:
        """The tokens of a prompt as `chat` would send them to the model."""
        body = _chat_body(await guard(prompt, self._reserved_strings), model=ACTOR, sampling=Sampling())
        wanted = {"model", "messages", "continue_final_message", "add_generation_prompt"}
        kept = {name: value for name, value in body.items() if name in wanted}
        answer = await self._ask("/tokenize", kept)
        with self._understanding():
            return tuple(answer["tokens"])

    async def _reserved_strings(self) -> frozenset[str] | None:
        """The control tokens of the engine's tokenizer; None where the engine does not report them."""
        if self._reserved is None or self._reserved[0] != self.drops:  # after a drop it may be another process
            async with self._request_errors():
                response = await self._link.get("/tokenizer_info", silence_s=_PROBE_TIMEOUT_S)
            with self._understanding():
                tokens = response.json().get("added_tokens_decoder") if response.status == httpx.codes.OK else None
            self._reserved = self.drops, None if tokens is None else reserved_strings(tokens.values())
        return self._reserved[1]

    async def _tokenize(self, text: str) -> list[int]:
        answer = await self._ask("/tokenize", {"model": ACTOR, "prompt": text, "add_special_tokens": False})
        with self._understanding():
            return list(answer["tokens"])

    async def _detokenize(self, tokens: Sequence[int]) -> str:
        return str((await self._ask("/detokenize", {"model": ACTOR, "tokens": tokens}))["prompt"])

    async def probe(self) -> float:
        """Generate one token and return the duration in seconds: shows that the engine works, not only listens."""
        started = time.monotonic()
        body = {"model": ACTOR, "prompt": "0", "max_tokens": 1, "temperature": 0, "priority": -1}
        await self._ask("/v1/completions", body, timeout_s=_PROBE_TIMEOUT_S)
        return time.monotonic() - started

    async def check_alive(self) -> None:
        """Ask the health route; any answer shows that the process runs. Raises EngineError when there is none."""
        await self._is_healthy()

    async def load_adapter(self, name: str, path: Path) -> bool:
        """Load the adapter in a folder under `name`. False when the engine served that name already.

        An engine that cannot read the folder, because it runs on another host, is sent the files first. Names are never
        reused, so that no block of the prefix cache can belong to another version.

        Raises:
            AdapterRefused: the engine cannot read it, or its rank, shapes or modules do not fit.
            EngineUnavailable: no connection, or the engine is dead, for which it answers the same status.
            EngineTimeout: it took longer than the client's limit.
        """
        response = await self._load(name, str(path))
        if response.status == httpx.codes.NOT_FOUND and b"No adapter found" in response.content:
            response = await self._load(name, await self._send_adapter(name, path))
        if response.status == httpx.codes.BAD_REQUEST and b"has already been" in response.content:
            return False
        if response.status == httpx.codes.INTERNAL_SERVER_ERROR and not await self._is_healthy():
            raise EngineUnavailable(f"the engine does not load {path}: it is dead")
        if response.status == httpx.codes.NOT_FOUND and b'"detail"' in response.content:  # there is no such route
            self._adapters = self.drops, Adapters.NOT_AT_RUN_TIME
            raise AdapterRefused(f"the engine {self._adapters[1].problem}")
        if response.status in (400, 404, 500):
            raise AdapterRefused(f"the engine does not load {path}: {_message(response.content)[0][:500]}")
        if response.status != httpx.codes.OK:
            self._raise_for(response.status, response.content)
        return True

    async def _load(self, name: str, folder: str) -> HttpResponse:
        async with self._request_errors():
            return await self._link.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})

    async def _send_adapter(self, name: str, path: Path) -> str:
        """Send an adapter's files to an engine that cannot read their folder; the folder there."""
        folder = ""
        for file in (WEIGHTS, CONFIG):
            try:
                sha256 = await asyncio.to_thread(file_sha256, path / file)
                async with self._request_errors():
                    response = await self._link.put(
                        f"/v1/gadfly/adapters/{file}?name={quote(name, safe='')}",
                        path / file,
                        headers={"content-digest": f"sha-256=:{b64encode(bytes.fromhex(sha256)).decode()}:"},
                    )
            except OSError as error:
                raise AdapterRefused(f"{path / file} cannot be read: {error.strerror}") from error
            if response.status == httpx.codes.NOT_FOUND:
                raise AdapterRefused(
                    f"the engine at {without_password(self.url)} cannot read {path}, and takes no files: mount the "
                    "folder there, or start the engine with the command that `gadfly doctor` prints"
                )
            if response.status == httpx.codes.BAD_REQUEST:
                raise AdapterRefused(f"the engine does not take {path / file}: {_message(response.content)[0][:500]}")
            if response.status != httpx.codes.OK:  # also a full disk: another attempt may find room
                self._raise_for(response.status, response.content)
            with self._understanding():
                folder = str(response.json()["folder"])
        return folder

    async def _is_healthy(self) -> bool:
        async with self._request_errors():
            response = await self._link.get("/health", silence_s=_PROBE_TIMEOUT_S)
        return response.status == httpx.codes.OK

    async def unload_adapter(self, name: str) -> None:
        """Unload an adapter for new requests; requests in flight finish on it. An unknown name is not an error.

        Raises as `load_adapter`.
        """
        async with self._request_errors():
            response = await self._link.post("/v1/unload_lora_adapter", {"lora_name": name}, silence_s=_PROBE_TIMEOUT_S)
        if response.status not in (httpx.codes.OK, httpx.codes.NOT_FOUND):
            self._raise_for(response.status, response.content)

    async def version(self) -> str:
        """The engine's version of vLLM."""
        async with self._request_errors():
            response = await self._link.get("/version", silence_s=_PROBE_TIMEOUT_S)
        if response.status != httpx.codes.OK:
            self._raise_for(response.status, response.content)
        return str(response.json()["version"])

    async def models(self) -> frozenset[str]:
        """The names that the engine serves: `base`, whatever its name there, and every loaded adapter.

        Raises:
            EngineRefused: it refuses the key, or its base model is missing or ambiguous.
        """
        return (await self.served()).names

    @property
    def known_adapters(self) -> Adapters | None:
        """The last answer to `adapters`; None before it, and after a failed connection."""
        return self._adapters[1] if self._adapters is not None and self._adapters[0] == self.drops else None

    async def adapters(self) -> Adapters:
        """Whether the engine loads adapters at run time. It is asked once, without loading an adapter."""
        if self.known_adapters is None:
            self._adapters = self.drops, await self._ask_for_adapters()
        assert self._adapters is not None
        return self._adapters[1]

    async def _ask_for_adapters(self) -> Adapters:
        async with self._request_errors():
            response = await self._link.post("/v1/load_lora_adapter", {}, silence_s=_PROBE_TIMEOUT_S)
        if response.status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            self._raise_for(response.status, response.content)
        if response.status in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED):
            return Adapters.NOT_AT_RUN_TIME
        metrics = await self.metrics()
        # vLLM defines this metric with --enable-lora. Without metrics, the first adapter shows whether it is.
        is_vllm = "vllm:num_requests_running" in metrics
        return Adapters.OFF if is_vllm and "vllm:lora_requests_info" not in metrics else Adapters.LOADED

    async def facts(self) -> dict[str, Any] | None:
        """How the engine was started, as Gadfly's middleware reports it; None from an engine without that."""
        async with self._request_errors():
            response = await self._link.get("/gadfly/engine", silence_s=_PROBE_TIMEOUT_S)
        try:
            facts = response.json()
        except ValueError:
            return None
        return facts if response.status == httpx.codes.OK and isinstance(facts, dict) else None

    async def process(self) -> str | None:
        """The name of the process that answers; None from an engine that gives none, such as vLLM as it comes."""
        process = (await self.facts() or {}).get("process")
        return process if isinstance(process, str) and process else None

    async def metrics(self) -> str:
        """The engine's metrics in Prometheus' text format; empty from an engine without metrics."""
        async with self._request_errors():
            response = await self._link.get("/metrics", silence_s=_PROBE_TIMEOUT_S)
        return response.text if response.status == httpx.codes.OK else ""

    async def served(self) -> Served:
        """Read the engine's list of models, and note its name of the base model. Raises as `models`."""
        async with self._request_errors():
            response = await self._link.get("/v1/models", silence_s=_PROBE_TIMEOUT_S)
        if response.status != httpx.codes.OK:
            self._raise_for(response.status, response.content)
        with self._understanding():
            served = Served.of(response.json()["data"], wanted=self._access.model, url=self.url)
        self._base = served.base
        return served

    async def _ask(self, path: str, body: dict[str, Any], *, timeout_s: float | None = None) -> dict[str, Any]:
        """`_post` with the engine's name of the model."""
        with self._understanding():
            return await self._named(body, lambda named: self._post(path, named, timeout_s=timeout_s))

    async def _named(self, body: dict[str, Any], send: Callable[[dict[str, Any]], Awaitable[T]]) -> T:
        """Send a request with the engine's name of the model; an engine that lacks the base model is asked for it."""
        if body["model"] != ACTOR:
            return await send(body)
        tried = self._base
        try:
            return await send({**body, "model": tried})
        except NotServed:
            base = (await self.served()).base
            if base == tried:
                raise
        return await send({**body, "model": base})

    async def _post(self, path: str, body: dict[str, Any], *, timeout_s: float | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = orjson.loads(await self._post_raw(path, body, timeout_s=timeout_s))
        return answer

    async def _post_raw(self, path: str, body: dict[str, Any], *, timeout_s: float | None) -> bytes:
        async with self._request_errors():
            response = await self._link.post(path, body, silence_s=timeout_s)
        if response.status != httpx.codes.OK:
            self._raise_for(response.status, response.content)
        return response.content

    @contextmanager
    def _understanding(self) -> Iterator[None]:
        """Raise a named error for a reply of another form. Only code that reads a reply belongs inside."""
        try:
            yield
        except (msgspec.MsgspecError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise MalformedReply(
                f"the reply of the engine at {without_password(self.url)} cannot be read "
                f"({type(error).__name__}: {str(error)[:100]})"
            ) from error

    def _raise_for(self, status: int, content: bytes) -> None:
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            problem = "refuses the key in" if self._access.key else "needs a key: set"
            raise EngineRefused(f"the engine at {without_password(self.url)} {problem} GADFLY_ENGINE_KEY")
        _raise_for(status, content)

    @asynccontextmanager
    async def _request_errors(self) -> AsyncIterator[None]:
        self.in_flight += 1
        try:
            yield
        except NotConnected as error:
            self._down_until = time.monotonic() + _AVOIDED_S
            where = without_password(self.url)
            if not isinstance(error, ConnectTimeout):
                self.drops += 1
                if problem := untrusted_certificate(error, where):
                    raise EngineRefused(problem) from error
            raise NotTaken(f"no engine answers at {where}") from error
        except Silence as error:
            raise EngineTimeout(f"the engine took longer than {self._timeout_s:g} s") from error
        except Broken as error:
            self.drops += 1
            self._down_until = time.monotonic() + _AVOIDED_S
            raise EngineUnavailable(
                f"the connection to the engine at {without_password(self.url)} was cut before its answer was complete "
                f"({error})"
            ) from error
        finally:
            self.in_flight -= 1


class NotTaken(EngineUnavailable):
    """The engine was not reached, is full, or lacks the adapter. It did not start: another engine may be tried."""


class NotServed(NotTaken):
    """The engine lacks the adapter, for example after a restart."""


class _Message(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    index: int
    message: _Message
    finish_reason: str | None = None
    token_ids: tuple[int, ...] | None = None
    logprobs: msgspec.Raw = msgspec.Raw(b"null")  # long, and mostly unused: parsed where it is needed


class _Completion(msgspec.Struct, frozen=True):
    """What is read of a chat completion."""

    choices: list[_Choice]
    usage: dict[str, Any]
    prompt_token_ids: tuple[int, ...] | None = None


class _SampledToken(msgspec.Struct, frozen=True):
    logprob: float


class _Sampled(msgspec.Struct, frozen=True):
    content: list[_SampledToken]


_COMPLETION = msgspec.json.Decoder(_Completion)
_SAMPLED = msgspec.json.Decoder(_Sampled)


class EngineFailed(EngineUnavailable):
    """The engine answered that it failed. Another engine may be tried."""


def _chat_body(prompt: Prompt, *, model: str, sampling: Sampling) -> dict[str, Any]:
    messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "n": sampling.n,
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "priority": sampling.priority,
        **_UNCHANGED,
    }
    if sampling.n > 1 or sampling.with_tokens:
        body["return_token_ids"] = True  # usage is reported as a sum; each sample's share is counted from these
    if sampling.with_tokens:
        body |= {"logprobs": True, "top_logprobs": 0}  # the sampled tokens alone
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if prompt.opener:
        messages.append({"role": "assistant", "content": prompt.opener})
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body


def _shares(counts: Sequence[int], usage: Mapping[str, int]) -> list[Usage]:
    """The usage of each sample, from its number of tokens; the prompt counts on the first."""
    if len(counts) == 1:
        counts = [usage["completion_tokens"]]
    return [
        Usage(prompt_tokens=usage["prompt_tokens"] if index == 0 else 0, completion_tokens=count)
        for index, count in enumerate(counts)
    ]


def _note_replies(span: OpenSpan, replies: Sequence[Reply] | Sequence[ChatReply]) -> None:
    if tracing.is_on():
        span.set(
            {
                "gen_ai.usage.input_tokens": sum(reply.usage.prompt_tokens for reply in replies),
                "gen_ai.usage.output_tokens": sum(reply.usage.completion_tokens for reply in replies),
                "gen_ai.response.finish_reasons": tuple(str(reply.finish_reason) for reply in replies),
            }
        )


def _refuse_aborted(reasons: Sequence[str | None]) -> None:
    if "abort" in reasons:  # an engine that is shutting down answers 200 to requests that it does not finish
        raise EngineUnavailable("the engine is shutting down")


def _message(content: bytes) -> tuple[str, str | None]:
    """The message of an error document, and the parameter that it is about."""
    try:
        error = orjson.loads(content)["error"]
        return str(error["message"]), error.get("param")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return content[:200].decode(errors="replace"), None


def _raise_for(status: int, content: bytes) -> None:
    message, parameter = _message(content)
    match status:
        case 404:
            raise NotServed(f"the engine does not serve this at present: {message}")
        case 400 if parameter in ("input_tokens", "max_tokens"):
            raise PromptTooLong(f"the text does not fit the model: {message.partition(' (parameter=')[0]}")
        case 400 | 422:
            raise BadInput(f"the engine refused the request: {message}")
        case 429 | 503:
            raise NotTaken("the engine accepts no more requests at present", retry_after_s=2.0)
        case _:
            raise EngineFailed(f"the engine answered with status {status}: {message[:200]}")
