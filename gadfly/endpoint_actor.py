"""An actor behind any OpenAI chat endpoint: a hosted model, a gateway, or another vLLM.

Only what all such endpoints share is used: messages, temperature, a token limit, `n`, a seed, streaming. An option that
an endpoint refuses is left out from then on, and `gaps` says what that costs. An endpoint takes text only: a reply
cannot be made to begin with a prompt's opener, so the opener is left out.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import orjson
from httpx_sse import EventSource
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from gadfly.access import Access
from gadfly.chat import Assembly, Chat, ChatReply, OnDelta, guard_messages, is_piece, reply_of
from gadfly.concurrency import gather
from gadfly.control_tokens import guard, reserved_strings
from gadfly.engine_client import OnText, Reply, Sampling
from gadfly.errors import (
    ActorTimeout,
    ActorUnavailable,
    BadInput,
    EngineError,
    EngineRefused,
    PromptTooLong,
)
from gadfly.prompts import Message, Prompt
from gadfly.records import Spent, Usage
from gadfly.seeds import seed_of_sample
from gadfly.settings import without_password
from gadfly.transport import (
    Broken,
    ConnectTimeout,
    HttpResponse,
    NotConnected,
    Silence,
    open_link,
    read_answer,
    untrusted_certificate,
)

T = TypeVar("T")

_CONNECT_TIMEOUT_S = 10.0
_LONGEST_WAIT_S = 60.0
_OPTIONAL = ("temperature", "seed", "n", "stream_options")  # an endpoint that refuses one is asked without it
_DECLINED = ("content_filter", "content_policy_violation")  # codes: the endpoint does not answer this text

_TRIAL = Prompt((Message("user", "Write twelve random letters, separated by spaces."),))
_TRIAL_TOKENS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """What an endpoint is called in messages: its role, and where its address, model and key are set."""

    role: str
    url: str
    model: str
    key: str


_ACTOR = Names(role="actor", url="GADFLY_ACTOR_URL", model="GADFLY_ACTOR_MODEL", key="GADFLY_ACTOR_KEY")


class EndpointActor:
    """One model behind an OpenAI chat endpoint, at most `concurrency` requests at a time.

    Raises:
        BadSettings: the file with certificates cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        access: Access,
        timeout_s: float,
        concurrency: int,
        retries: int,
        longest_wait_s: float = _LONGEST_WAIT_S,
        names: Names = _ACTOR,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._names = names
        self._url = url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/v1"
        self._where = without_password(self._url)
        self._title = f"{names.role} at {self._where}"
        self._access = access
        self._timeout_s = timeout_s
        self._retries = retries
        self._longest_wait_s = longest_wait_s
        self._slots = asyncio.Semaphore(concurrency)
        connect_s = min(timeout_s, _CONNECT_TIMEOUT_S)
        self._link = open_link(self._url, access=access, silence_s=timeout_s, connect_s=connect_s, transport=transport)
        self._limit_name = "max_tokens"
        self._without: set[str] = set()  # options that the endpoint refused
        self._counts_tokens = True
        self._reserved: frozenset[str] | None = None
        self._has_read_reserved = False
        self._gaps: tuple[str, ...] | None = None
        self._spent = Spent()

    @property
    def name(self) -> str:
        return self._access.model

    @property
    def spent(self) -> Spent:
        return self._spent

    async def aclose(self) -> None:
        await self._link.aclose()

    # ------------------------------------------------------------------------------------------------------ requests

    async def chat(self, prompt: Prompt, *, sampling: Sampling, on_text: OnText | None = None) -> tuple[Reply, ...]:
        """As `gadfly.actor.Actor.chat`. An endpoint that gives fewer than `n` replies is asked again for the others."""
        guarded = await guard(prompt, self._reserved_strings)
        if on_text is not None:
            return tuple(
                await gather(
                    *(self._stream(guarded, _one(sampling, index), index, on_text) for index in range(sampling.n))
                )
            )
        replies = [] if "n" in self._without else await self._complete(guarded, sampling)
        missing = range(len(replies), sampling.n)
        single = await gather(*(self._complete(guarded, _one(sampling, index)) for index in missing))
        return tuple([*replies, *(reply for reply, *_ in single)][: sampling.n])

    async def converse(self, chat: Chat, *, on_delta: OnDelta | None = None) -> tuple[ChatReply, ...]:
        """As `gadfly.actor.Actor.converse`. Each choice is a request of its own, so that its tokens are known."""
        messages = await guard_messages(chat.messages, self._reserved_strings)
        return tuple(await gather(*(self._choice(chat, messages, index, on_delta) for index in range(chat.n))))

    async def _choice(
        self, chat: Chat, messages: list[dict[str, Any]], index: int, on_delta: OnDelta | None
    ) -> ChatReply:
        has_started = False

        async def started(delta: dict[str, Any], logprobs: dict[str, Any] | None) -> None:
            nonlocal has_started
            has_started = True
            assert on_delta is not None
            await on_delta(index, delta, logprobs)

        async def once() -> ChatReply:
            body = self._own_body(chat, messages, index)
            if on_delta is not None:
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            async with self._request_errors(), self._link.stream("/chat/completions", body) as response:
                if response.status_code != httpx.codes.OK:
                    declined = self._declined(await read_answer(response), sent=body)
                    return ChatReply(
                        message={"role": "assistant", "content": declined.text},
                        finish_reason=declined.finish_reason,
                        usage=declined.usage,
                    )
                if on_delta is not None:
                    return await self._read_deltas(response, started)
                return self._own_reply(await response.aread())

        reply = await self._patiently(once, may_retry=lambda: not has_started)
        self._spent = Spent(requests=self._spent.requests + 1, usage=self._spent.usage + reply.usage)
        return reply

    def _own_body(self, chat: Chat, messages: list[dict[str, Any]], index: int) -> dict[str, Any]:
        options = dict(chat.options)
        if options.get("seed") is not None:
            options["seed"] = seed_of_sample(options["seed"], index)
        return {
            "model": self._access.model,
            "messages": messages,
            self._limit_name: chat.max_tokens,
            **{name: value for name, value in options.items() if name not in self._without},
        }

    def _own_reply(self, content: bytes) -> ChatReply:
        try:
            answer = orjson.loads(content)
            return reply_of(answer["choices"][0], self._usage(answer.get("usage")))
        except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise EngineError(f"the {self._title} did not answer with a chat completion") from error

    async def _read_deltas(
        self,
        response: httpx.Response,
        on_delta: Callable[[dict[str, Any], dict[str, Any] | None], Awaitable[None]],
    ) -> ChatReply:
        reply, usage = Assembly(), None
        async for event in EventSource(response).aiter_sse():
            if event.data == "[DONE]":
                break
            chunk = self._chunk(event.data)
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices") or ():
                delta, logprobs = choice.get("delta") or {}, choice.get("logprobs")
                if is_piece(delta) or logprobs:
                    reply.add(delta, logprobs)
                    await on_delta(delta, logprobs)
                reply.finish_reason = choice.get("finish_reason") or reply.finish_reason
        if reply.finish_reason is None:
            raise ActorUnavailable(f"the {self._title} ended the stream before the reply was complete")
        return reply.reply(self._usage(usage))

    def _chunk(self, data: str) -> dict[str, Any]:
        """One chunk of a streamed reply. An endpoint may abort the reply with an error in place of a chunk."""
        chunk: dict[str, Any] = orjson.loads(data)
        if "error" in chunk:
            raise ActorUnavailable(f"the {self._title} aborted the reply: {_message(data.encode())}")
        return chunk

    async def _complete(self, prompt: Prompt, sampling: Sampling) -> list[Reply]:
        async def once() -> list[Reply]:
            body = self._body(prompt, sampling)
            async with self._request_errors():
                response = await self._link.post("/chat/completions", body)
            if response.status != httpx.codes.OK:
                return [self._declined(response, sent=body)]
            return self._replies(response.content)

        replies = await self._patiently(once)
        self._count(replies)
        return replies

    async def _stream(self, prompt: Prompt, sampling: Sampling, index: int, on_text: OnText) -> Reply:
        has_started = False

        async def started(index: int, text: str) -> None:
            nonlocal has_started
            has_started = True
            await on_text(index, text)

        async def once() -> Reply:
            body = self._body(prompt, sampling) | {"stream": True}
            if "stream_options" not in self._without:
                body["stream_options"] = {"include_usage": True}
            async with self._request_errors(), self._link.stream("/chat/completions", body) as response:
                if response.status_code != httpx.codes.OK:
                    return self._declined(await read_answer(response), sent=body)
                return await self._read_stream(response, index, started)

        reply = await self._patiently(once, may_retry=lambda: not has_started)
        self._count([reply])
        return reply

    async def _read_stream(self, response: httpx.Response, index: int, on_text: OnText) -> Reply:
        text, reason, usage = "", None, None
        async for event in EventSource(response).aiter_sse():
            if event.data == "[DONE]":
                break
            chunk = self._chunk(event.data)
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices") or ():
                piece = choice.get("delta", {}).get("content") or ""
                if piece:
                    text += piece
                    await on_text(index, piece)
                reason = choice.get("finish_reason") or reason
        if reason is None:
            raise ActorUnavailable(f"the {self._title} ended the stream before the reply was complete")
        return Reply(text=text, finish_reason=reason, usage=self._usage(usage))

    def _body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        options = {"temperature": sampling.temperature, "seed": sampling.seed, "n": sampling.n}
        if sampling.n == 1:
            del options["n"]
        return {
            "model": self._access.model,
            "messages": [{"role": message.role, "content": message.content} for message in prompt.messages],
            self._limit_name: sampling.max_tokens,
            **{name: value for name, value in options.items() if value is not None and name not in self._without},
        }

    def _replies(self, content: bytes) -> list[Reply]:
        try:
            answer = orjson.loads(content)
            choices = sorted(answer["choices"], key=lambda choice: choice.get("index", 0))
            usage = self._usage(answer.get("usage"))
            each, rest = divmod(usage.completion_tokens, len(choices))
            return [
                Reply(
                    text=choice["message"].get("content") or "",
                    finish_reason=choice.get("finish_reason"),
                    # The endpoint reports a sum; every reply gets an equal share.
                    usage=Usage(
                        prompt_tokens=usage.prompt_tokens if place == 0 else 0,
                        completion_tokens=each + (rest if place == 0 else 0),
                    ),
                )
                for place, choice in enumerate(choices)
            ]
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise EngineError(f"the {self._title} did not answer with a chat completion") from error

    def _usage(self, usage: Mapping[str, Any] | None) -> Usage:
        if not usage:
            self._counts_tokens = False
            return Usage()
        return Usage(
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
        )

    def _count(self, replies: list[Reply]) -> None:
        usage = sum((reply.usage for reply in replies), start=self._spent.usage)
        self._spent = Spent(requests=self._spent.requests + 1, usage=usage)

    # ------------------------------------------------------------------------------------------------------- failures

    async def _patiently(self, work: Callable[[], Awaitable[T]], *, may_retry: Callable[[], bool] = lambda: True) -> T:
        """Do `work` in one of the slots; again while the endpoint is unavailable, and after it refused an option."""

        def wait_s(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            asked = error.retry_after_s if isinstance(error, ActorUnavailable) else 0.0
            return min(max(asked, _BACKOFF(state)), self._longest_wait_s)

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(ActorUnavailable) & (lambda _: may_retry()),
            wait=wait_s,
            stop=stop_after_attempt(self._retries + 1),
            reraise=True,
        )

        async def adapted() -> T:
            while True:
                try:
                    async with self._slots:
                        return await work()
                except _OptionRefused:
                    continue

        return await retrying(adapted)

    @asynccontextmanager
    async def _request_errors(self) -> AsyncIterator[None]:
        try:
            yield
        except NotConnected as error:
            problem = "" if isinstance(error, ConnectTimeout) else untrusted_certificate(error, self._where)
            if problem:
                raise EngineRefused(problem) from error
            raise ActorUnavailable(f"no {self._names.role} answers at {self._where}", retry_after_s=1.0) from error
        except Silence as error:
            raise ActorTimeout(f"the {self._title} took longer than {self._timeout_s:g} s") from error
        except Broken as error:
            raise ActorUnavailable(f"the connection to the {self._title} failed: {error}", retry_after_s=1.0) from error

    def _declined(self, response: HttpResponse, *, sent: Mapping[str, Any]) -> Reply:
        """An empty reply where the endpoint does not answer this text; any other failure is raised."""
        status, content = response.status, response.content
        error = _error(content)
        code, parameter = str(error.get("code") or ""), str(error.get("param") or "")
        message = _message(content)
        match status:
            case 401 | 403:
                problem = "refuses the key in" if self._access.key else "needs a key: set"
                raise EngineRefused(f"the {self._title} {problem} {self._names.key}")
            case 404:
                raise EngineRefused(
                    f"the {self._title} does not serve {self.name}: check {self._names.model}, and that "
                    f"{self._names.url} ends as its documentation says, usually with /v1 ({message})"
                )
            case 400 if code in _DECLINED:
                return Reply(text="", finish_reason="content_filter", usage=Usage())
            case 400 | 422:
                self._leave_out(parameter, message, sent)
                if (
                    code == "context_length_exceeded"
                    or parameter in ("input_tokens", "max_tokens", "messages")
                    or "context length" in message
                ):
                    raise PromptTooLong(f"the text does not fit the {self._names.role} {self.name}: {message}")
                raise BadInput(f"the {self._title} refused the request: {message}")
            case 429 if code == "insufficient_quota":
                raise EngineRefused(f"the {self._title} has no quota left for this key: {message}")
            case 408 | 409 | 429:
                raise ActorUnavailable(
                    f"the {self._title} accepts no more requests at present", retry_after_s=_wait_s(response)
                )
            case _ if status >= 500:
                raise ActorUnavailable(
                    f"the {self._title} answered with status {status}: {message}",
                    retry_after_s=_wait_s(response),
                )
            case _:
                raise EngineError(f"the {self._title} answered with status {status}: {message}")

    def _leave_out(self, parameter: str, message: str, sent: Mapping[str, Any]) -> None:
        """Note an option that the endpoint does not know, and raise `_OptionRefused` to have the request sent again."""
        if parameter not in sent:
            return
        if parameter == "max_tokens" and "max_completion_tokens" in message:
            self._limit_name = "max_completion_tokens"
        elif parameter in _OPTIONAL:
            self._without.add(parameter)
        else:
            return
        raise _OptionRefused

    # ------------------------------------------------------------------------------------------ what the endpoint is

    async def check(self) -> str:
        """Ask for the endpoint's list of models, which costs no tokens. As `gadfly.actor.Actor.check`."""
        async with self._request_errors():
            response = await self._link.get("/models", silence_s=min(self._timeout_s, _CONNECT_TIMEOUT_S))
        if response.status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            self._declined(response, sent={})
        try:
            listed = {str(item["id"]) for item in response.json()["data"]}
        except (ValueError, KeyError, TypeError):
            return f"{self.name} at {self._where}, which lists no models"
        if self.name not in listed:
            some = ", ".join(sorted(listed)[:5])
            raise EngineRefused(f"the {self._title} lists {some}, and not {self.name} ({self._names.model})")
        return f"{self.name} at {self._where}"

    async def gaps(self) -> tuple[str, ...]:
        """As `gadfly.actor.Actor.gaps`. Found out once, with four short requests."""
        if self._gaps is None:
            greedy = Sampling(max_tokens=_TRIAL_TOKENS, seed=1)
            drawn = replace(greedy, temperature=1.0)
            (one,), (two,) = await gather(*(self.chat(_TRIAL, sampling=greedy) for _ in range(2)))
            (three,), (four,) = await gather(*(self.chat(_TRIAL, sampling=drawn) for _ in range(2)))
            is_greedy = one.text == two.text and "temperature" not in self._without
            await self._reserved_strings()
            found = {
                f"The actor {self.name} is not on your engines: the run pays for its tokens, and its text alone is "
                "known, not its token ids.": True,
                "It gives different answers to one greedy request: rewards of stage II and the gate's helpfulness "
                "contain its chance, and need more answers for the same certainty.": not is_greedy,
                "It accepts no temperature: `pool_temperature` has no effect.": "temperature" in self._without,
                "It does not follow seeds: a run cannot be reproduced, and a resumed one samples its answers "
                "anew.": three.text != four.text or "seed" in self._without,
                "It reports no token counts: its cost is not counted.": not self._counts_tokens,
                "Its tokenizer is not known: strings in the form of control tokens are broken up in texts, and "
                "control tokens of another form are not.": self._reserved is None,
            }
            self._gaps = tuple(sentence for sentence, applies in found.items() if applies)
        return self._gaps

    async def _reserved_strings(self) -> frozenset[str] | None:
        """The control tokens of the model's tokenizer, where the endpoint reports them as vLLM does."""
        if not self._has_read_reserved:
            try:
                url = f"{self._url.removesuffix('/v1')}/tokenizer_info"
                response = await self._link.get(url, silence_s=_CONNECT_TIMEOUT_S)
                tokens = response.json()["added_tokens_decoder"] if response.status == httpx.codes.OK else None
                self._reserved = None if tokens is None else reserved_strings(tokens.values())
            except (NotConnected, Silence, Broken, ValueError, KeyError, AttributeError):
                self._reserved = None
            self._has_read_reserved = True
        return self._reserved


class _OptionRefused(Exception):
    """The endpoint does not know an option; the request is sent again without it."""


_BACKOFF = wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT_S)


def _one(sampling: Sampling, index: int) -> Sampling:
    """The sampling of one of several replies that are asked for separately."""
    seed = None if sampling.seed is None else seed_of_sample(sampling.seed, index)
    return replace(sampling, n=1, seed=seed)


def _wait_s(response: HttpResponse) -> float:
    """The seconds in Retry-After; 1 without them. A date counts as no seconds."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else 1.0


def _error(content: bytes) -> Mapping[str, Any]:
    try:
        error = orjson.loads(content)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {"message": error}


def _message(content: bytes) -> str:
    return str(_error(content).get("message") or content[:200].decode(errors="replace"))[:300]
