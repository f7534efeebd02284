"""The errors that Gadfly raises. `service/errors.py` maps each of them to a status code."""

from copy import copy
from typing import Self


class GadflyError(Exception):
    """Root of the family. The message is one sentence for a person."""

    def again(self, message: str | None = None) -> Self:
        """A copy to raise: an error with all its values, and another message if one is given."""
        copied = copy(self)
        if message is not None:
            copied.args = (message,)
        return copied.with_traceback(None)


class BadSettings(GadflyError):
    """A setting has a value it cannot have."""


class BadInput(GadflyError):
    """The caller sent something that cannot be used; `field` names where."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnreadableReference(BadInput):
    """A reference answer that no rule can read: an error for whoever sent it, never a wrong answer."""

    def __init__(self, message: str) -> None:
        super().__init__(message, field="reference")


class NotFound(GadflyError):
    """The thing named does not exist, or is not the caller's to see."""


class Conflict(GadflyError):
    """The request contradicts what is stored."""


class EngineError(GadflyError):
    """The engine answered something it should not have."""


class EngineUnavailable(EngineError):
    """No engine can be reached or none accepts work now; `retry_after_s` says when to try again."""

    def __init__(self, message: str, *, retry_after_s: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineTimeout(EngineError):
    """A generation took longer than its limit."""


class AdapterRefused(EngineError):
    """The engine will not serve an adapter; the message says why."""


class PromptTooLong(BadInput):
    """Prompt and completion do not fit the model's context."""


class StoreUnavailable(GadflyError):
    """Postgres is away and the call cannot be answered without it."""

    def __init__(self, message: str, *, retry_after_s: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SpoolFull(StoreUnavailable):
    """Postgres is away and the spool has no room, so nothing more can be acknowledged."""


class TooBusy(GadflyError):
    """More requests are at work than the service allows."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotAllowed(GadflyError):
    """No key, an unknown, expired or revoked key, or a key of the wrong tier."""

    def __init__(self, message: str, *, authenticated: bool = False) -> None:
        super().__init__(message)
        self.authenticated = authenticated


class BodyTooLarge(GadflyError):
    """A request body is larger than the service takes."""
