"""A pool over several engines: which one gets a request, and which one gets it next if that fails.

Retries and the choice between engines exist only here.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import ParamSpec, Protocol, Self, TypeVar

from gadfly.chat import Chat, ChatReply, OnDelta
from gadfly.engine_client import (
    ACTOR,
    Engine,
    EngineFailed,
    LabelWords,
    NotServed,
    NotTaken,
    OnText,
    Reply,
    Sampling,
)
from gadfly.engine_health import EngineFrozen, EngineStanding, HealthLimits
from gadfly.errors import EngineError, EngineRefused, EngineTimeout, EngineUnavailable, MalformedReply
from gadfly.prompts import Prompt

P = ParamSpec("P")
T = TypeVar("T")

_REPEATS = 2  # of a request that an engine failed: one that makes engines fail must not go round all of them
_HEALTH = HealthLimits()


class Router(Protocol):
    """Decides which engines may serve a model."""

    def may_serve(self, engine: Engine, model: str) -> bool:
        """Whether requests for a model may go to an engine, regardless of the engine's own list of models."""

    async def restore(self, engine: Engine, model: str) -> None:
        """Load a model into an engine that lacks it.

        Raises:
            EngineUnavailable: it cannot be loaded.
        """


class EnginePool:
    """The engines of a deployment: each request goes to the healthy one with the fewest requests in flight.

    An engine that fails several requests in a row is ejected for some seconds (`engine_health`); without a healthy one,
    requests go to the others all the same.

    When no engine with room serves a model, the router may load it into one, and the request waits for that.
    """

    def __init__(self, members: Sequence[Engine], router: Router | None = None) -> None:
        """`members` may change (`engine_fleet`): they are read anew for each request."""
        self._members = members
        self._router = router
        self._probes: dict[str, asyncio.Task[None]] = {}  # by the engine's address

    @classmethod
    def connect(cls, urls: Sequence[str], *, timeout_s: float, health: HealthLimits = _HEALTH) -> Self:
        """The engines at these addresses, which need no key."""
        return cls([Engine(url, timeout_s=timeout_s, health=health) for url in urls])

    @property
    def members(self) -> tuple[Engine, ...]:
        return tuple(self._members)

    async def aclose(self) -> None:
        for probe in self._probes.values():
            probe.cancel()
        await asyncio.gather(*self._probes.values(), return_exceptions=True)
        await asyncio.gather(*(engine.aclose() for engine in self.members))

    def keep(self, members: Sequence[Engine]) -> None:
        """Send further requests to these engines alone. The others stay open for their owner to close."""
        self._members = tuple(members)

    @property
    def in_flight(self) -> int:
        return sum(engine.in_flight for engine in self.members)

    async def chat(
        self,
        prompt: Prompt,
        *,
        model: str,
        sampling: Sampling,
        on_text: OnText | None = None,
        labels: LabelWords | None = None,
    ) -> tuple[Reply, ...]:
        """`Engine.chat` on one engine; another is tried when that engine did not take the request, or failed it.

        A reply that was streamed in part is not requested again, nor one whose engine lost the connection: the engine
        may have done the work, or the request may have ended it.
        """
        heard = _Heard()
        on_piece = None if on_text is None else heard.noting(on_text)
        return await self._first(
            lambda engine: engine.chat(prompt, model=model, sampling=sampling, on_text=on_piece, labels=labels),
            model,
            heard,
        )

    async def converse(self, chat: Chat, *, on_delta: OnDelta | None = None) -> tuple[ChatReply, ...]:
        """`Engine.converse` on one engine; another is tried as in `chat`."""
        heard = _Heard()
        on_piece = None if on_delta is None else heard.noting(on_delta)
        return await self._first(lambda engine: engine.converse(chat, on_delta=on_piece), ACTOR, heard)

    async def read_labels(
        self, prompt: Prompt, *, model: str, labels: LabelWords, priority: int = 0, near: str = ""
    ) -> tuple[float, float]:
        """`Engine.read_labels` on one engine, if possible on that at the URL `near`, which may have the text cached."""
        return await self._first(
            lambda engine: engine.read_labels(prompt, model=model, labels=labels, priority=priority), model, near=near
        )

    async def tokenize(self, prompt: Prompt) -> tuple[int, ...]:
        """`Engine.tokenize` on one engine; another is tried as in `chat`."""
        return await self._first(lambda engine: engine.tokenize(prompt), ACTOR)

    async def probe(self, engine: Engine) -> float:
        """`Engine.probe`, whose result counts for the engine's health.

        Raises:
            EngineError: it does not generate.
        """
        try:
            seconds = await engine.probe()
        except EngineTimeout:
            raise  # a saturated engine may take longer than a probe may
        except EngineError as error:
            engine.health.note_probe(str(error))
            raise
        engine.health.note_probe(None)
        return seconds

    async def _first(
        self, call: Callable[[Engine], Awaitable[T]], model: str, heard: "_Heard | None" = None, *, near: str = ""
    ) -> T:
        self._probe_due()
        members = self.members
        able = [each for each in members if self._router is None or self._router.may_serve(each, model)]
        admitted = [each for each in able if each.health.admits]
        lacking = [each for each in members if each not in able]
        refusal: EngineError | None = None
        repeats = _REPEATS
        for engine in sorted(admitted, key=lambda each: _preference(each, near)):
            if not engine.health.admits:  # its trial began, or it was ejected, while another engine was tried
                continue
            try:
                return await self._attempt(engine, call)
            except EngineError as error:
                if not _may_repeat(error, heard):
                    raise
                engine.note_refusal()
                refusal = refusal or error
                if isinstance(error, NotServed):
                    lacking.append(engine)
                if not isinstance(error, NotTaken):
                    repeats -= 1
                    if repeats < 0:
                        raise
        if self._router is not None:
            lacking = [each for each in lacking if each.health.admits] or lacking
            for engine in lacking * 2:  # two rounds: the adapter may be unloaded again before the call
                try:
                    await self._router.restore(engine, model)
                except EngineUnavailable as error:
                    refusal = error
                    continue
                engine.note_room()
                try:
                    return await self._attempt(engine, call)
                except NotTaken as error:
                    refusal = error
        if not admitted:  # no healthy engine: an ejected one may have recovered
            for engine in sorted(able, key=lambda each: each.health.ejected_until):
                try:
                    return await self._attempt(engine, call)
                except EngineError as error:
                    if not _may_repeat(error, heard):
                        raise
                    refusal = error
        raise refusal or NotServed(f"no engine can serve {model} at present")

    async def _attempt(self, engine: Engine, call: Callable[[Engine], Awaitable[T]]) -> T:
        """`call` on one engine; its outcome counts for the engine's health."""
        health = engine.health
        begun = health.epoch
        try:
            async with health.calling(engine.check_alive):
                result = await call(engine)
        except EngineError as error:
            if _is_failure(error, engine):
                health.note_failure(str(error), begun=begun)
            raise
        health.note_success(begun=begun)
        engine.note_room()
        return result

    def _probe_due(self) -> None:
        """Probe the engines whose ejection has lasted its time, in the background."""
        for engine in self.members:
            if engine.health.is_due() and engine.url not in self._probes:
                self._probes[engine.url] = asyncio.create_task(self._probe_quietly(engine))

    async def _probe_quietly(self, engine: Engine) -> None:
        try:
            await self.probe(engine)
        except EngineTimeout as error:
            engine.health.note_probe(str(error))  # it was ejected already
        except EngineError:
            pass  # noted
        finally:
            self._probes.pop(engine.url, None)


class _Heard:
    """Whether a caller has received a part of its reply."""

    def __init__(self) -> None:
        self.any = False

    def noting(self, listen: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
        async def note(*args: P.args, **kwargs: P.kwargs) -> None:
            self.any = True
            await listen(*args, **kwargs)

        return note


def _preference(engine: Engine, near: str) -> tuple[bool, bool, bool, int]:
    """Trials first, because without a request they never end; then the engine with room and the fewest requests.

    Of engines with room, that at the URL `near` goes first.
    """
    return engine.health.standing is EngineStanding.SOUND, not engine.has_room, engine.url != near, engine.in_flight


def _may_repeat(error: EngineError, heard: _Heard | None) -> bool:
    """Whether another engine may get a request after this error of the first."""
    is_repeatable = isinstance(error, NotTaken | EngineFailed | EngineRefused | MalformedReply | EngineFrozen)
    return is_repeatable and not (heard is not None and heard.any)


def _is_failure(error: EngineError, engine: Engine) -> bool:
    """Whether an error speaks against the engine: not when it is full, lacks an adapter, or the request is bad."""
    if isinstance(error, NotTaken):
        return not engine.is_reachable
    return isinstance(error, EngineUnavailable | EngineTimeout | EngineRefused | MalformedReply)
