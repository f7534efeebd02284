"""The errors that Gadfly raises. `service/errors.py` maps each of them to a status code."""

from copy import copy
from typing import Self


class GadflyError(Exception):
    """Base of all errors. The message is one sentence for a person."""

    def again(self, message: str | None = None) -> Self:
        """A copy to raise again, with the same values; `message`, when given, replaces the message."""
        copied = copy(self)
        if message is not None:
            copied.args = (message,)
        return copied.with_traceback(None)


class BadSettings(GadflyError):
    """A setting has an invalid value."""


class BadInput(GadflyError):
    """The caller sent invalid input; `field` names the field."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnreadableReference(BadInput):
    """A reference answer that no rule can read: an error for its sender, never a wrong answer."""

    def __init__(self, message: str) -> None:
        super().__init__(message, field="reference")


class NotFound(GadflyError):
    """The named thing does not exist, or the caller may not see it."""


class Conflict(GadflyError):
    """The request contradicts the stored state."""


class EngineError(GadflyError):
    """The engine gave an invalid answer."""


class EngineUnavailable(EngineError):
    """No engine can be reached, or none accepts requests at present; `retry_after_s` is the time to wait."""

    def __init__(self, message: str, *, retry_after_s: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoSlot(EngineUnavailable):
    """The engines have no adapter slot left for a critic: all are taken by critics in use."""


class EngineRefused(EngineError):
    """The engine or the actor refuses this deployment: a wrong key, or a model that it does not serve.

    The settings have to change; trying again does not help.
    """


class MalformedReply(EngineError):
    """The engine's reply is no JSON, or lacks a required field."""


class EngineTimeout(EngineError):
    """A generation exceeded its time limit."""


class ActorUnavailable(EngineUnavailable):
    """The actor's own endpoint cannot be reached, or accepts no requests at present."""


class ActorTimeout(EngineTimeout):
    """The actor's own endpoint took longer than its time limit."""


class GraderUnavailable(EngineUnavailable):
    """The endpoint that grades a task's answers cannot be reached, or accepts no requests at present."""


class AdapterRefused(EngineError):
    """The engine does not serve an adapter; the message gives the reason."""


class WrongSampling(EngineError):
    """The engine samples from another distribution than the one whose log-probabilities it reports."""


class SameTokens(EngineError):
    """The verdict words of a prompt set begin with the same tokens under the model's tokenizer."""


class PromptTooLong(BadInput):
    """Prompt and completion exceed the model's context."""


class StoreUnavailable(GadflyError):
    """Postgres is unavailable and the call cannot be answered without it."""

    def __init__(self, message: str, *, retry_after_s: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SpoolFull(StoreUnavailable):
    """Postgres is unavailable and the spool is full, so no further request can be acknowledged."""


class NoRoom(StoreUnavailable):
    """The disk has less free space than the settings require, so no further request can be acknowledged."""


class TooBusy(GadflyError):
    """A limit of the service, of a key or of an address is reached; `retry_after_s` is the time to wait."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotAllowed(GadflyError):
    """No key; an unknown, expired or revoked key; or a key of the wrong tier."""

    def __init__(self, message: str, *, authenticated: bool = False) -> None:
        super().__init__(message)
        self.authenticated = authenticated


class BodyTooLarge(GadflyError):
    """A request body exceeds the service's limit."""
