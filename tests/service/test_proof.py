"""What counts as proof that an adapter answers, with numbers worked out by hand."""

from typing import Any

import pytest

from gadfly.adapters import BadAdapter, Probe
from gadfly.engine_client import Reply
from gadfly.records import Usage
from gadfly.service.critics.verification import Deltas, compare, require_adapter

PROBE = Probe(
    question="q", response="r", prompt_tokens=(1, 2), tokens=(5, 6), logprobs=(-0.5, -0.25), base_logprobs=(-0.5, -2.25)
)


def reply(**changes: Any) -> Reply:
    values: dict[str, Any] = {"prompt_tokens": (1, 2), "tokens": (5, 6, 7), "logprobs": (-0.5, -0.25, -9.0)}
    return Reply(text="", finish_reason="stop", usage=Usage(), **(values | changes))


def test_an_equal_reply_is_proof() -> None:
    deltas = compare([PROBE], [reply(logprobs=(-0.5, -0.3125, -9.0))], tolerance=0.1)
    # |-0.3125 + 0.25| = 0.0625; |-0.3125 + 2.25| = 1.9375; tokens after the probe's do not count
    assert deltas == Deltas(tokens=2, from_trainer=0.0625, from_base=1.9375)
    require_adapter(deltas, tolerance=0.1)


CASES = [  # the reply, the error message
    (reply(prompt_tokens=(1, 3)), "probe 1 of 1: the engine's prompt tokens differ from the trainer's"),
    (reply(tokens=(5, 7, 7)), "differs from the trainer's after 1 equal tokens"),
    (reply(tokens=(5,), logprobs=(-0.5,)), "differs from the trainer's after 1 equal tokens"),
    (reply(tokens=(), logprobs=()), "after 0 equal tokens"),
    (reply(logprobs=(-0.5, -0.5, -9.0)), "0.25 nats from the trainer's; the tolerance is 0.1"),
    (reply(logprobs=(float("nan"), -0.25, -9.0)), "nats from the trainer's"),
]


@pytest.mark.parametrize(("different", "message"), CASES)
def test_a_different_reply_is_no_proof(different: Reply, message: str) -> None:
    with pytest.raises(BadAdapter, match=message):
        compare([PROBE], [different], tolerance=0.1)


def test_a_reply_like_the_base_models_is_no_proof() -> None:
    probe = PROBE.model_copy(update={"base_logprobs": (-0.5, -0.3)})
    deltas = compare([probe], [reply()], tolerance=0.1)
    with pytest.raises(BadAdapter, match=r"like the base model: .* at most 0\.05 nats"):
        require_adapter(deltas, tolerance=0.1)
