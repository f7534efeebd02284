"""Errors of the client. Each carries the service's problem document (RFC 9457), where there is one."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import httpx

from gadfly.errors import GadflyError

_UNAVAILABLE = frozenset({429, 502, 503, 504})


class Resend(StrEnum):
    """When a failed request may be sent again."""

    ALWAYS = "always"  # the service did nothing
    IF_REPEATABLE = "if_repeatable"  # it may have done the work
    NEVER = "never"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemDetails:
    """What the service said about a refused request. `type` is the stable name of its kind."""

    status: int | None = None  # None: no answer
    type: str | None = None
    title: str | None = None
    detail: str | None = None
    fields: tuple[tuple[str, str], ...] = ()  # name of an invalid field, and what is wrong with it
    retry_after_s: float | None = None
    request_id: str | None = None  # of X-Request-Id: the service's log has it


class ServiceError(GadflyError):
    """The service refused the request, failed, or cannot be reached.

    `status`, `type`, `title`, `detail`, `fields`, `retry_after_s` and `request_id` are those of the problem document
    and its headers; None where the service sent none.
    """

    def __init__(self, message: str, *, problem: ProblemDetails | None = None, resend: Resend = Resend.NEVER) -> None:
        super().__init__(message)
        self.problem = problem or ProblemDetails()
        self.resend = resend

    @property
    def status(self) -> int | None:
        return self.problem.status

    @property
    def type(self) -> str | None:
        return self.problem.type

    @property
    def title(self) -> str | None:
        return self.problem.title

    @property
    def detail(self) -> str | None:
        return self.problem.detail

    @property
    def retry_after_s(self) -> float | None:
        return self.problem.retry_after_s

    @property
    def request_id(self) -> str | None:
        return self.problem.request_id


class ServiceUnavailable(ServiceError):
    """The service, or a part it depends on, cannot be reached now. The same call may succeed later."""


def problem_text(document: Mapping[str, Any], *, retry_after: str | None = None) -> str:
    """A problem document (RFC 9457) as one sentence; `retry_after` is the header of that name, in seconds."""
    text = str(document.get("detail") or document.get("title"))
    if document.get("status") in (401, 403):
        text += " (the command line sends the key in --key or GADFLY_KEY)"
    if retry_after:
        text += f" (try again in {retry_after} s)"
    return f"{document.get('title')}: {text}"


def problem_of(document: Mapping[str, Any], *, headers: Mapping[str, str]) -> ProblemDetails:
    """A problem document with the headers of its response."""
    status, errors = document.get("status"), document.get("errors") or ()
    return ProblemDetails(
        status=status if isinstance(status, int) else None,
        type=document.get("type"),
        title=document.get("title"),
        detail=document.get("detail"),
        fields=tuple((str(each.get("field")), str(each.get("message"))) for each in errors),
        retry_after_s=_number(headers.get("retry-after")),
        request_id=headers.get("x-request-id"),
    )


def refusal(response: httpx.Response, *, url: str) -> ServiceError:
    """The error that a response with an error status, or without JSON, means. Its body must have been read."""
    try:
        document = response.json()
    except ValueError:
        document = None
    unavailable = response.status_code in _UNAVAILABLE
    kind = ServiceUnavailable if unavailable else ServiceError
    resend = Resend.NEVER
    if unavailable:
        resend = Resend.ALWAYS if response.status_code == 429 else Resend.IF_REPEATABLE
    if not isinstance(document, dict) or "title" not in document:
        return kind(
            f"{url} answered {response.status_code} and is not a Gadfly service: check --url or GADFLY_URL.",
            problem=ProblemDetails(
                status=response.status_code, retry_after_s=_number(response.headers.get("retry-after"))
            ),
            resend=resend,
        )
    text = problem_text(document, retry_after=response.headers.get("retry-after"))
    return kind(text, problem=problem_of(document, headers=response.headers), resend=resend)


def unreachable(error: httpx.HTTPError, *, url: str) -> ServiceUnavailable:
    """The error of a connection that failed."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ServiceUnavailable(
            f"No service answers at {url}: start one with `gadfly up`, or give its address with --url.",
            resend=Resend.ALWAYS,
        )
    if isinstance(error, httpx.TimeoutException):
        return ServiceUnavailable(f"{url} did not answer in time.")
    return ServiceUnavailable(
        f"The connection to {url} was lost before the answer was complete.", resend=Resend.IF_REPEATABLE
    )


def _number(text: str | None) -> float | None:
    """The seconds of a Retry-After header; None for a date, which Gadfly does not send, or no header."""
    try:
        return None if text is None else max(0.0, float(text))
    except ValueError:
        return None
