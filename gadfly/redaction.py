"""Redaction: what a deployment removes from texts before anything of them is stored.

A redactor is a function of the operator, or an HTTP service. It gets the texts of a record and returns as many, in
order; equal texts must give equal ones, because a question is known by its text. Callers get their answers unredacted.
If the redactor fails, nothing is stored, and the request is refused.
"""

import asyncio
import importlib
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol, TypeVar, cast

import httpx

from gadfly.errors import BadSettings, StoreUnavailable
from gadfly.records import Critique, Feedback, Interaction, Record, Refinement

_TIMEOUT_S = 10.0
_KEPT = frozenset({"role", "type", "id", "tool_call_id"})  # what a conversation needs as it is
_TEXTS = {
    Interaction: ("question", "response", "reference", "refined_response", "metadata", "conversation"),
    Feedback: ("reference", "edited_response", "edited_reference", "comment", "metadata"),
    Critique: ("text",),
    Refinement: ("text",),
}
R = TypeVar("R", Interaction, Feedback, Critique, Refinement)


class Redactor(Protocol):
    """Removes from texts what must not be stored."""

    async def redact(self, texts: Sequence[str]) -> list[str]:
        """As many texts, in order.

        Raises:
            StoreUnavailable: the redactor failed, so the texts must not be stored.
        """

    async def aclose(self) -> None:
        """Close its connections."""


def open_redactor(setting: str) -> Redactor | None:
    """The redactor that the setting `redactor` names: `module:function`, or an http(s) address; None for none.

    Raises:
        BadSettings: there is no such function.
    """
    if not setting:
        return None
    return _Endpoint(setting) if setting.startswith(("http://", "https://")) else _Function(_found(setting))


def _found(setting: str) -> Callable[[list[str]], Any]:
    module, _, name = setting.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise BadSettings(f"the redactor {setting} cannot be imported: {error}") from error
    if not callable(function):
        raise BadSettings(f"the redactor {setting} is not a function")
    return cast(Callable[[list[str]], Any], function)


class _Function:
    """A Python function of a list of texts, plain (it runs in a thread) or asynchronous."""

    def __init__(self, function: Callable[[list[str]], Any]) -> None:
        self._function = function

    async def redact(self, texts: Sequence[str]) -> list[str]:
        try:
            if inspect.iscoroutinefunction(self._function):
                answer = await cast(Awaitable[Any], self._function(list(texts)))
            else:
                answer = await asyncio.to_thread(self._function, list(texts))
        except Exception as error:  # the operator's own code may raise anything
            raise StoreUnavailable(f"the redactor failed: {type(error).__name__}") from error
        return _checked(answer, len(texts))

    async def aclose(self) -> None:
        return None


class _Endpoint:
    """An HTTP service that answers `{"texts": [...]}` with the same shape."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = httpx.AsyncClient(timeout=_TIMEOUT_S)

    async def redact(self, texts: Sequence[str]) -> list[str]:
        try:
            answer = await self._client.post(self._url, json={"texts": list(texts)})
            answer.raise_for_status()
            document = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise StoreUnavailable(f"the redactor did not answer: {type(error).__name__}") from error
        return _checked(document.get("texts") if isinstance(document, dict) else None, len(texts))

    async def aclose(self) -> None:
        await self._client.aclose()


def _checked(answer: Any, count: int) -> list[str]:
    if not isinstance(answer, list) or len(answer) != count or not all(isinstance(each, str) for each in answer):
        raise StoreUnavailable(f"the redactor did not return a list of {count} texts")
    return answer


async def redacted(record: Record, redactor: Redactor) -> Record:
    """The record as it may be stored. Raises as `Redactor.redact`."""
    texts: dict[str, None] = {}

    def note(text: str) -> str:
        texts[text] = None
        return text

    _mapped_record(record, note)
    if not texts:
        return record
    answers = await redactor.redact(list(texts))
    new = dict(zip(texts, answers, strict=True))
    return _mapped_record(record, new.__getitem__)


def _mapped_record(record: Record, change: Callable[[str], str]) -> Record:
    if isinstance(record, Feedback):
        return _mapped(record, change)
    return replace(
        _mapped(record, change),
        critiques=tuple(_mapped(each, change) for each in record.critiques),
        refinements=tuple(_mapped(each, change) for each in record.refinements),
    )


def _mapped(item: R, change: Callable[[str], str]) -> R:
    names = _TEXTS[type(item)]
    values = {field.name: getattr(item, field.name) for field in fields(item) if field.name in names}
    kept = {name: _KEPT if name == "conversation" else frozenset() for name in names}
    return replace(item, **{name: _changed(value, change, kept[name]) for name, value in values.items()})


def _changed(value: Any, change: Callable[[str], str], kept: frozenset[str]) -> Any:
    """The value with each text in it changed, also within lists and objects, but not under the names `kept`.

    Empty texts stay, and so do the names of objects.
    """
    if isinstance(value, str):
        return change(value) if value.strip() else value
    if isinstance(value, Mapping):
        return {name: each if name in kept else _changed(each, change, kept) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(each, change, kept) for each in value]
    return value
