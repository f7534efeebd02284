"""The API's methods, shared by both clients: each is a description of `gadfly.client.calls`, sent by its owner.

On `Client` a method returns its answer, and on `AsyncClient` an awaitable of it; lists and streams are iterators and
asynchronous iterators. Signatures and documentation are those of the description.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar, overload

from gadfly.client import calls
from gadfly.client.calls import Call, Page, StreamCall

P = ParamSpec("P")
T = TypeVar("T")


class Sender(ABC):
    """Sends requests and waits for their answers."""

    @abstractmethod
    def send(self, call: Call[T]) -> T: ...

    @abstractmethod
    def pages(self, call: Call[Page[T]]) -> Iterator[T]: ...

    @abstractmethod
    def stream(self, call: StreamCall[T]) -> Iterator[T]: ...


class AsyncSender(ABC):
    """Sends requests and returns awaitables of their answers."""

    @abstractmethod
    async def send(self, call: Call[T]) -> T: ...

    @abstractmethod
    def pages(self, call: Call[Page[T]]) -> AsyncIterator[T]: ...

    @abstractmethod
    def stream(self, call: StreamCall[T]) -> AsyncIterator[T]: ...


class _Described(Generic[P, T]):
    """A method that is described by a function with the same parameters."""

    def __init__(self, describe: Callable[P, T]) -> None:
        self._describe = describe
        self.__doc__ = describe.__doc__

    def _bound(self, send: Callable[[T], Any]) -> Any:
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return send(self._describe(*args, **kwargs))

        return update_wrapper(method, self._describe)


class Method(_Described[P, Call[T]]):
    """One request and its answer."""

    @overload
    def __get__(self, client: Sender, owner: type[Any]) -> Callable[P, T]: ...

    @overload
    def __get__(self, client: AsyncSender, owner: type[Any]) -> Callable[P, Awaitable[T]]: ...

    def __get__(self, client: Sender | AsyncSender | None, owner: type[Any]) -> Any:
        return self if client is None else self._bound(client.send)


class Pages(_Described[P, Call[Page[T]]]):
    """The items of all pages of a list."""

    @overload
    def __get__(self, client: Sender, owner: type[Any]) -> Callable[P, Iterator[T]]: ...

    @overload
    def __get__(self, client: AsyncSender, owner: type[Any]) -> Callable[P, AsyncIterator[T]]: ...

    def __get__(self, client: Sender | AsyncSender | None, owner: type[Any]) -> Any:
        return self if client is None else self._bound(client.pages)


class Streamed(_Described[P, Call[T]]):
    """The answer of a request as it is generated: pieces of text, and the answer last."""

    @overload
    def __get__(self, client: Sender, owner: type[Any]) -> Callable[P, Iterator[calls.Text | T]]: ...

    @overload
    def __get__(self, client: AsyncSender, owner: type[Any]) -> Callable[P, AsyncIterator[calls.Text | T]]: ...

    def __get__(self, client: Sender | AsyncSender | None, owner: type[Any]) -> Any:
        return self if client is None else self._bound(lambda call: client.stream(calls.streamed(call)))


class Api:
    """The methods of both clients."""

    critique = Method(calls.critique)
    stream_critique = Streamed(calls.critique)
    refine = Method(calls.refine)
    stream_refine = Streamed(calls.refine)
    feedback = Method(calls.feedback)
    withdraw_feedback = Method(calls.withdraw_feedback)

    interactions = Pages(calls.interactions)
    interactions_page = Method(calls.interactions)
    interaction = Method(calls.interaction)
    replay = Method(calls.replay)
    learning = Method(calls.learning)
    delete_interaction = Method(calls.delete_interaction)

    forget = Method(calls.forget)
    retention = Method(calls.retention)

    critics = Method(calls.critics)
    critic = Method(calls.critic)
    promote = Method(calls.promote)
    rollback = Method(calls.rollback)

    overview = Method(calls.overview)
    accuracy = Method(calls.accuracy)

    plan = Method(calls.plan)
    retrain = Method(calls.retrain)
    runs = Pages(calls.runs)
    runs_page = Method(calls.runs)
    run = Method(calls.run)
    run_steps = Method(calls.run_steps)
    run_samples = Method(calls.run_samples)
    compare_runs = Method(calls.compare_runs)
    cancel = Method(calls.cancel)
    reproduce = Method(calls.reproduce)

    label = Method(calls.label)
    set_label = Method(calls.set_label)
    conflicts = Pages(calls.conflicts)
    take_labels = Method(calls.take_labels)
    skip_label = Method(calls.skip_label)
    release_labels = Method(calls.release_labels)
    label_progress = Method(calls.label_progress)
    acts = Pages(calls.acts)

    keys = Method(calls.keys)
    create_key = Method(calls.create_key)
    revoke_key = Method(calls.revoke_key)
    distrust_key = Method(calls.distrust_key)
    trust_key = Method(calls.trust_key)
    settings = Method(calls.settings)
    task = Method(calls.task)
    try_grader = Method(calls.try_grader)

    state = Method(calls.state)
    readiness = Method(calls.readiness)
