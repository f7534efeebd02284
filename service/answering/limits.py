"""Limits of a request that depend on the settings; the wire shapes check all others."""

from gadfly.errors import BadInput
from gadfly.service.wire.answers import CritiqueRequest, Options, RefineRequest
from gadfly.service.wire.feedback import FeedbackRequest
from gadfly.settings import Settings

_TEXTS = ("question", "response", "critique", "reference", "edited_response", "comment")


def check_limits(settings: Settings, body: Options | FeedbackRequest) -> None:
    """Check a request against the deployment's limits.

    Raises:
        BadInput: a limit is exceeded; the message names the field and the limit.
    """
    limits = {
        "n": settings.max_samples,
        "samples": settings.max_samples,
        "rounds": settings.max_rounds,
        "max_tokens": settings.engine_max_model_len - 1,
    }
    fields = type(body).model_fields  # pydantic takes long to say that it has no such attribute
    for name, limit in limits.items():
        value = getattr(body, name) if name in fields else None
        if value is not None and value > limit:
            raise BadInput(f"{name} must be at most {limit}", field=name)
    if isinstance(body, CritiqueRequest) and body.n > 1 and temperature_of(settings, body) == 0:
        raise BadInput("n above 1 needs a temperature above 0: otherwise all critiques are the same", field="n")
    if isinstance(body, RefineRequest) and body.samples > 1 and body.refine_temperature == 0:
        has_critique = body.critique is not None or body.critique_id is not None
        if temperature_of(settings, body) == 0 or (has_critique and body.rounds == 1):
            raise BadInput(
                "samples above 1 need a refine_temperature above 0 here: otherwise all samples are the same",
                field="samples",
            )
    for name in _TEXTS:
        value = getattr(body, name) if name in fields else None
        if value is not None and len(value) > settings.max_text_chars:
            raise BadInput(f"{name} must be at most {settings.max_text_chars:,} characters", field=name)


def engine_calls(body: Options) -> int:
    """The most calls of engine and actor that a request can make: critiques, reads of their verdicts, and rewrites."""
    match body:
        case CritiqueRequest():
            return 2 * body.n
        case RefineRequest():
            given = body.critique is not None or body.critique_id is not None
            return body.samples * (3 * body.rounds - (2 if given else 0))
        case _:
            raise AssertionError(type(body))


def temperature_of(settings: Settings, body: Options) -> float:
    """The sampling temperature of the critic: the request's, or the deployment's."""
    return settings.temperature if body.temperature is None else body.temperature
