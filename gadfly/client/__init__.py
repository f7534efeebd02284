"""The Python client of the HTTP API, blocking and asynchronous. The command line uses it, and other programs can.

Example:
    >>> from gadfly.client import Client
    >>> with Client("http://127.0.0.1:8400", key="gf_...") as client:
    ...     result = client.critique("What is 1 + 1?", "3")
    ...     client.feedback(result.id, correct=False, reference="2")
    >>> result.verdict
    <Verdict.INCORRECT: 'incorrect'>
"""

from gadfly.client import calls
from gadfly.client.calls import Event, StreamedRunEvent, TextDelta
from gadfly.client.clients import AsyncClient, Client
from gadfly.client.errors import ProblemDetails, ServiceError, ServiceUnavailable, problem_text

__all__ = [
    "AsyncClient",
    "Client",
    "Event",
    "ProblemDetails",
    "ServiceError",
    "ServiceUnavailable",
    "StreamedRunEvent",
    "TextDelta",
    "calls",
    "problem_text",
]
