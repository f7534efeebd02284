"""The running service, for people: the client of it, and what `gadfly critique`, `refine` and `feedback` show."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from httpx_sse import EventSource
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gadfly.cli.running import service_address
from gadfly.cli.terminal import out, plain
from gadfly.errors import BadInput, GadflyError
from gadfly.settings import Settings, is_loopback

_CONNECT_S = 5.0
_SILENCE_S = 45.0  # three of the service's heartbeats
_AWAY = frozenset({502, 503, 504})
_COLOURS = {"correct": "green", "incorrect": "red", "unparsed": "yellow"}
_REASONS = {
    "rounds": "that many were asked for",
    "judged_correct": "the critic calls the answer correct",
}
_SIGNS = {"correct": "✓", "incorrect": "✗", "unparsed": "?"}


class ServiceError(GadflyError):
    """The service refused, failed, or does not run."""


class ServiceAway(ServiceError):
    """The service, or what it needs, cannot be reached now: the same call may work a moment later."""


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event. `id` is 0 where the service gives none."""

    id: int
    name: str
    data: dict[str, Any]


def read_text(value: str | None) -> str | None:
    """An argument as given, or the content of the file in `@path`, or of standard input for `-`.

    Raises:
        BadInput: the file cannot be read.
    """
    if value is None or (value != "-" and not value.startswith("@")):
        return value
    if value == "-":
        return sys.stdin.read()
    try:
        return Path(value[1:]).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{value[1:]} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}.") from None


def request_body(question: str | None, response: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request, from arguments, or from a JSON document on standard input when there are none.

    Raises:
        BadInput: something is missing, or the document is no JSON object.
    """
    body: dict[str, Any] = {}
    if question is None and response is None and not sys.stdin.isatty():
        try:
            body = json.loads(sys.stdin.read() or "{}")
        except ValueError as error:
            raise BadInput(f"Standard input is not JSON: {error}.") from None
        if not isinstance(body, dict):
            raise BadInput("Standard input must be one JSON object, as POST /critique takes it.")
    texts = {"question": read_text(question), "response": read_text(response)}
    body |= {name: value for name, value in {**texts, **given}.items() if value is not None}
    missing = [f"--{name}" for name in texts if name not in body]
    if missing:
        raise BadInput(f"Give {' and '.join(missing)}, or a JSON object on standard input.")
    return body


class ServiceClient:
    """The service that these settings mean, with `settings.key`."""

    def __init__(self, settings: Settings, *, transport: httpx.BaseTransport | None = None) -> None:
        self._url = service_address(settings)
        headers = {"authorization": f"Bearer {settings.key.get_secret_value()}"} if settings.key else {}
        self._client = httpx.Client(
            base_url=self._url,
            headers=headers,
            timeout=httpx.Timeout(settings.engine_timeout_s, connect=_CONNECT_S),
            transport=transport,
            trust_env=not is_loopback(httpx.URL(self._url).host),  # a proxy knows another 127.0.0.1
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """The JSON answer. Raises as `post`."""
        try:
            response = self._client.get(path, params=params)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        return self._checked(response)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON answer.

        Raises:
            ServiceAway: it does not run, or not all of it.
            ServiceError: what it says is wrong.
        """
        try:
            response = self._client.post(path, json=body)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        result: dict[str, Any] = self._checked(response)
        return result

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The name and data of each server-sent event.

        Raises:
            ServiceError: as `post`, also when the answer breaks off.
        """
        try:
            with self._client.stream("POST", path, json={**body, "stream": True}) as response:
                if response.status_code != 200:
                    response.read()
                    self._checked(response)
                for event in _read_events(response):
                    yield event.name, event.data
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def follow(self, path: str, *, after: int) -> Iterator[Event]:
        """The events of a stream that may last for hours, from the one behind the id `after` on.

        Raises:
            ServiceAway: it does not run, or broke off: the stream goes on after the last event.
            ServiceError: it refuses.
        """
        timeout = httpx.Timeout(_SILENCE_S, connect=_CONNECT_S)
        try:
            with self._client.stream("GET", path, headers={"last-event-id": str(after)}, timeout=timeout) as response:
                if response.status_code == 204:
                    return
                if response.status_code != 200:
                    response.read()
                    self._checked(response)
                yield from _read_events(response)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _checked(self, response: httpx.Response) -> Any:
        try:
            document = response.json()
        except ValueError:
            document = None
        if response.is_success and document is not None:
            return document
        kind = ServiceAway if response.status_code in _AWAY else ServiceError
        if not isinstance(document, dict) or "title" not in document:
            raise kind(f"{self._url} answers {response.status_code} and is no Gadfly: check --url.")
        raise kind(problem_text(document, retry_after=response.headers.get("retry-after")))

    def _unreachable(self, error: httpx.HTTPError) -> ServiceAway:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return ServiceAway(
                f"No service answers at {self._url}: start one with `gadfly up`, or say where it is with --url."
            )
        if isinstance(error, httpx.TimeoutException):
            return ServiceAway(f"{self._url} did not answer in time.")
        return ServiceAway(f"The connection to {self._url} broke off before the answer was complete.")


def problem_text(document: Mapping[str, Any], *, retry_after: str | None = None) -> str:
    """A problem document as a sentence."""
    text = str(document.get("detail") or document.get("title"))
    if document.get("status") in (401, 403):
        text += " (the command line sends --key or GADFLY_KEY)"
    if retry_after:
        text += f" (try again in {retry_after} s)"
    return f"{document.get('title')}: {text}"


def ask(service: ServiceClient, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Ask, print the text as it comes, and return the result.

    Raises:
        ServiceError: the service refuses, fails or breaks off.
    """
    speaking: tuple[str, int] | None = None
    for name, data in service.events(path, body):
        if name == "text" and data["sample"] == 0:  # several at once would mix; the rest is in the result
            if speaking != (data["role"], data["round"]):
                if speaking is not None:
                    out.print("\n")
                speaking = (data["role"], data["round"])
                out.print(
                    f"[dim]{data['role']}, round {data['round'] + 1}[/]" if path == "/refine" else "[dim]critique[/]"
                )
            out.print(plain(data["text"]), end="", markup=False)
        elif name == "result":
            out.print("\n" if speaking is not None else "")
            return data
        elif name == "error":
            out.print()
            raise ServiceError(problem_text(data))
    raise ServiceError("The answer broke off.")


def show_critique(result: Mapping[str, Any]) -> None:
    """Print what /critique answered."""
    out.print(Group(_steps(result["steps"]), _verdict_line(result, result["confidence"])))
    if len(result["critiques"]) > 1:
        verdicts = [critique["verdict"] for critique in result["critiques"]]
        votes = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts)))
        out.print(f"votes       {votes}")
    _show_grade("response", result["grade"])
    _show_ids(result, "critique")


def show_refinement(result: Mapping[str, Any]) -> None:
    """Print what /refine answered."""
    out.print("[bold]refined response[/]")
    out.print(Padding(Text(plain(result["refined_response"])), (0, 0, 1, 2), expand=False))
    last = result["rounds"][-1]["critique"]
    out.print(_verdict_line(result, last["confidence"]))
    rounds = f"{len(result['rounds'])} round{'s' if len(result['rounds']) > 1 else ''}"
    samples = len(result["samples"])
    votes = f"; {result['votes']} of {samples} samples agree" if samples > 1 else ""
    reason = _REASONS.get(result["stop_reason"], result["stop_reason"])
    out.print(f"stopped     after {rounds}: {reason}{votes}")
    _show_grade("response", result["grade"])
    _show_grade("refined", result["refined_grade"])
    _show_ids(result, "refinement")


def _verdict_line(result: Mapping[str, Any], confidence: float | None) -> str:
    verdict = result["verdict"]
    certainty = "" if confidence is None else f"  confidence {confidence:.0%}"
    critic = result["critic"]
    sha = f" ({critic['adapter_sha256'][:12]})" if critic["adapter_sha256"] else " (the base model)"
    return (
        f"verdict     [bold {_COLOURS.get(verdict, 'yellow')}]{verdict}[/]{certainty}\n"
        f"critic      critic@{critic['version']}{sha}"
    )


def _steps(steps: list[dict[str, Any]]) -> Table | str:
    if not steps:
        return "[dim]no steps could be told apart in this critique[/]"
    table = Table("", "step", "what the critic says", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for step in steps:
        colour = _COLOURS.get(step["verdict"], "yellow")
        table.add_row(
            f"[{colour}]{_SIGNS.get(step['verdict'], '?')}[/]",
            Text(plain(step["text"])),
            Text(plain(step["explanation"]), style="dim"),
        )
    return table


def _show_grade(what: str, grade: str | None) -> None:
    if grade is not None:
        out.print(f"{what:<11} {grade.replace('_', ' ')}, compared with the reference")


def _show_ids(result: Mapping[str, Any], kind: str) -> None:
    usage = result["usage"]
    out.print(
        f"interaction {result['id']}\n"
        f"episode     {result['episode_id']}\n"
        f"[dim]{usage['prompt_tokens']} + {usage['completion_tokens']} tokens in {result['latency_ms'] / 1000:.1f} s. "
        f"Was the {'response' if kind == 'critique' else 'first response'} right? "
        f"gadfly feedback {result['id']} --correct (or --incorrect, --reference ANSWER)[/]"
    )


def _read_events(response: httpx.Response) -> Iterator[Event]:
    for event in EventSource(response).iter_sse():
        if event.data:  # a comment that keeps the connection open comes as an event without data
            yield Event(int(event.id or 0), event.event, json.loads(event.data))
