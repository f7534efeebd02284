"""The API's methods, shared by both clients: each is a description of `gadfly.client.calls`, sent by its owner.

On `Client` a method returns its answer, and on `AsyncClient` an awaitable of it; lists and streams are iterators and
asynchronous iterators. Signatures and documentation are those of the description.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar, overload

from gadfly.client import calls
from gadfly.client.calls import Call, ListPage, StreamCall

P = ParamSpec("P")
T = TypeVar("T")


class Sender(ABC):
    """Sends requests and waits for their answers."""

    @abstractmethod
    def send(self, call: Call[T]) -> T: ...

    @abstractmethod
    def pages(self, call: Call[ListPage[T]]) -> Iterator[T]: ...

    @abstractmethod
    def stream(self, call: StreamCall[T]) -> Iterator[T]: ...


class AsyncSender(ABC):
    """Sends requests and returns awaitables of their answers."""

    @abstractmethod
    async def send(self, call: Call[T]) -> T: ...

    @abstractmethod
    def pages(self, call: Call[ListPage[T]]) -> AsyncIterator[T]: ...

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


class ApiMethod(_Described[P, Call[T]]):
    """One request and its answer."""

    @overload
    def __get__(self, client: Sender, owner: type[Any]) -> Callable[P, T]: ...

    @overload
    def __get__(self, client: AsyncSender, owner: type[Any]) -> Callable[P, Awaitable[T]]: ...

    def __get__(self, client: Sender | AsyncSender | None, owner: type[Any]) -> Any:
        return self if client is None else self._bound(client.send)


class Pages(_Described[P, Call[ListPage[T]]]):
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
    def __get__(self, client: Sender, owner: type[Any]) -> Callable[P, Iterator[calls.TextDelta | T]]: ...

    @overload
    def __get__(self, client: AsyncSender, owner: type[Any]) -> Callable[P, AsyncIterator[calls.TextDelta | T]]: ...

    def __get__(self, client: Sender | AsyncSender | None, owner: type[Any]) -> Any:
        return self if client is None else self._bound(lambda call: client.stream(calls.streamed(call)))


class Api:
    """The methods of both clients."""

    critique = ApiMethod(calls.critique)
    stream_critique = Streamed(calls.critique)
    refine = ApiMethod(calls.refine)
    stream_refine = Streamed(calls.refine)
    feedback = ApiMethod(calls.feedback)
    withdraw_feedback = ApiMethod(calls.withdraw_feedback)

    interactions = Pages(calls.interactions)
    interactions_page = ApiMethod(calls.interactions)
    interaction = ApiMethod(calls.interaction)
    replay = ApiMethod(calls.replay)
    learning = ApiMethod(calls.learning)
    delete_interaction = ApiMethod(calls.delete_interaction)

    forget = ApiMethod(calls.forget)
    retention = ApiMethod(calls.retention)

    critics = ApiMethod(calls.critics)
    critic = ApiMethod(calls.critic)
    promote = ApiMethod(calls.promote)
    rollback = ApiMethod(calls.rollback)
    canaries = ApiMethod(calls.canaries)
    widen_canary = ApiMethod(calls.widen_canary)

    overview = ApiMethod(calls.overview)
    accuracy = ApiMethod(calls.accuracy)

    plan = ApiMethod(calls.plan)
    retrain = ApiMethod(calls.retrain)
    runs = Pages(calls.runs)
    runs_page = ApiMethod(calls.runs)
    run = ApiMethod(calls.run)
    run_steps = ApiMethod(calls.run_steps)
    run_samples = ApiMethod(calls.run_samples)
    compare_runs = ApiMethod(calls.compare_runs)
    cancel = ApiMethod(calls.cancel)
    reproduce = ApiMethod(calls.reproduce)

    label = ApiMethod(calls.label)
    set_label = ApiMethod(calls.set_label)
    conflicts = Pages(calls.conflicts)
    take_labels = ApiMethod(calls.take_labels)
    skip_label = ApiMethod(calls.skip_label)
    release_labels = ApiMethod(calls.release_labels)
    label_progress = ApiMethod(calls.label_progress)
    acts = Pages(calls.acts)

    keys = ApiMethod(calls.keys)
    create_key = ApiMethod(calls.create_key)
    limit_key = ApiMethod(calls.limit_key)
    revoke_key = ApiMethod(calls.revoke_key)
    distrust_key = ApiMethod(calls.distrust_key)
    trust_key = ApiMethod(calls.trust_key)
    settings = ApiMethod(calls.settings)
    tasks = ApiMethod(calls.tasks)
    try_grader = ApiMethod(calls.try_grader)

    webhooks = ApiMethod(calls.webhooks)
    create_webhook = ApiMethod(calls.create_webhook)
    delete_webhook = ApiMethod(calls.delete_webhook)
    try_webhook = ApiMethod(calls.try_webhook)
    webhook_deliveries = Pages(calls.webhook_deliveries)
    resend_delivery = ApiMethod(calls.resend_delivery)

    state = ApiMethod(calls.state)
    readiness = ApiMethod(calls.readiness)
