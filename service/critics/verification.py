"""Compares an engine's answers to an adapter's probes with those that the trainer recorded.

The costliest failure of a swap is silent: other weights answer than those that were trained. Equal tokens show the same
policy, equal log-probabilities the same weights, and a distance from the base model that the adapter is applied at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gadfly.adapters import BadAdapter, Probe, sha256_of_tokens
from gadfly.engine_client import Reply


@dataclass(frozen=True, kw_only=True, slots=True)
class Deltas:
    """Over the tokens of all probes, in nats."""

    tokens: int
    from_trainer: float  # largest |engine - trainer| of a log-probability
    from_base: float  # largest |engine - base model|


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """One engine has answered one adapter's probes as recorded. Durations in seconds."""

    engine: str  # its address, without a password
    vllm: str
    probes: int
    deltas: Deltas
    load_s: float
    probe_s: float
    proved_by: str | None = None  # another replica, a moment ago, on the same process of the engine; None: this one


def compare(probes: Sequence[Probe], replies: Sequence[Reply], *, tolerance: float) -> Deltas:
    """The largest distances of the replies from the trainer's and the base model's log-probabilities.

    Args:
        probes: recorded by the trainer.
        replies: the engine's, one per probe; tokens after those of the probe are ignored.
        tolerance: largest |engine - trainer| of a log-probability, in nats.

    Raises:
        BadAdapter: a reply differs from the record, so another adapter answers; the message names the difference.
    """
    tokens, from_trainer, from_base = 0, 0.0, 0.0
    for number, (probe, reply) in enumerate(zip(probes, replies, strict=True), start=1):
        where = f"probe {number} of {len(probes)}"
        is_expected = (
            reply.prompt_tokens == probe.prompt_tokens
            if probe.prompt_sha256 is None
            else sha256_of_tokens(reply.prompt_tokens) == probe.prompt_sha256
        )
        if not is_expected:
            raise BadAdapter(f"{where}: the engine's prompt tokens differ from the trainer's")
        length = len(probe.tokens)
        if reply.tokens[:length] != probe.tokens:
            equal = 0
            while equal < min(length, len(reply.tokens)) and reply.tokens[equal] == probe.tokens[equal]:
                equal += 1
            raise BadAdapter(f"{where}: the engine's reply differs from the trainer's after {equal} equal tokens")
        for engine, trainer, base in zip(reply.logprobs[:length], probe.logprobs, probe.base_logprobs, strict=True):
            difference = abs(engine - trainer)
            if not difference <= tolerance:  # `>` would let NaN pass
                raise BadAdapter(
                    f"{where}: a log-probability is {difference:.2g} nats from the trainer's; the tolerance is "
                    f"{tolerance:g}"
                )
            from_trainer, from_base = max(from_trainer, difference), max(from_base, abs(engine - base))
        tokens += length
    return Deltas(tokens=tokens, from_trainer=from_trainer, from_base=from_base)


def require_adapter(deltas: Deltas, *, tolerance: float) -> None:
    """Check that the replies differ from the base model's by more than `tolerance` nats.

    Raises:
        BadAdapter: they do not, so the adapter is not applied.
    """
    if not deltas.from_base > tolerance:
        raise BadAdapter(
            f"the adapter answers like the base model: log-probabilities differ by at most {deltas.from_base:.2g} nats"
        )
