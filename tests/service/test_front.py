"""Parts of the OpenAI front by themselves: names of models, the shape of errors, the limit of requests in flight."""

import pytest

from gadfly.errors import (
    BadInput,
    Conflict,
    EngineRefused,
    EngineTimeout,
    EngineUnavailable,
    GadflyError,
    NotAllowed,
    NotFound,
    PromptTooLong,
    SpoolFull,
    TooBusy,
)
from gadfly.service.critics.leases import Leases
from gadfly.service.errors import describe
from gadfly.service.front.errors import openai_error
from gadfly.service.front.models import FrontModel, Writer, model_of
from gadfly.service.metrics import Metrics

ERRORS: list[tuple[Exception, int, str, str, str | None]] = [  # error, status, type, code, param
    (BadInput("x", field="n"), 400, "invalid_request_error", "invalid_input", "n"),
    (PromptTooLong("x"), 400, "invalid_request_error", "context_length_exceeded", None),
    (NotAllowed("x"), 401, "authentication_error", "invalid_api_key", None),
    (NotAllowed("x", authenticated=True), 403, "permission_error", "forbidden", None),
    (NotFound("x"), 404, "not_found_error", "model_not_found", None),
    (Conflict("x"), 409, "conflict_error", "conflict", None),
    (TooBusy("x"), 429, "rate_limit_error", "rate_limit_exceeded", None),
    (EngineUnavailable("x"), 503, "server_error", "engine_unavailable", None),
    (EngineRefused("x"), 503, "server_error", "engine_refused", None),
    (EngineTimeout("x"), 504, "server_error", "engine_timed_out", None),
    (SpoolFull("x"), 507, "server_error", "no_room_to_store", None),
    (GadflyError("x"), 500, "server_error", "internal_error", None),
]


@pytest.mark.parametrize(("error", "status", "kind", "code", "param"), ERRORS, ids=[row[3] for row in ERRORS])
def test_errors_in_openais_shape(error: Exception, status: int, kind: str, code: str, param: str | None) -> None:
    document, _ = describe(error)
    got, body = openai_error(document)
    assert (got, body.error.type, body.error.code, body.error.param) == (status, kind, code, param)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("actor", FrontModel(Writer.ACTOR)),
        ("refined", FrontModel(Writer.REFINED)),
        ("critic", FrontModel(Writer.CRITIC)),
        ("critic@0", FrontModel(Writer.CRITIC, 0)),
        ("critic@12", FrontModel(Writer.CRITIC, 12)),
    ],
)
def test_names_of_models(name: str, model: FrontModel) -> None:
    assert model_of(name) == model


@pytest.mark.parametrize(
    "name", ["", "Actor", "critic@", "critic@-1", "critic@1.5", "critic@999999999999", "refined@1", "base"]
)
def test_other_names_are_no_models(name: str) -> None:
    with pytest.raises(NotFound, match="the models are actor"):
        model_of(name)


def test_requests_of_the_actor_count_towards_the_limit() -> None:
    leases = Leases(limit=2, metrics=Metrics())
    with leases.converse(), leases.take(0, is_pinned=False):
        with pytest.raises(TooBusy), leases.converse():
            pass
        with pytest.raises(TooBusy), leases.take(0, is_pinned=False):
            pass
        assert leases.counts == {0: 1}, "no critic waits for them"
    with leases.converse(), leases.converse():
        pass
