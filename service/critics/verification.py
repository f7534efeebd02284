"""The proof that an adapter answers: what came back through the serving path against what the trainer wrote down.

The costliest failure of a swap is silent: the weights that were trained are not those that answer. Equal tokens show
that it is the same policy, equal log-probabilities that it is the same weights, and a distance from the base model that
the adapter is applied at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gadfly.adapters import BadAdapter, Probe
from gadfly.engine_client import Reply


@dataclass(frozen=True, kw_only=True, slots=True)
class Deltas:
    """Over the tokens of all probes, in nats."""

    tokens: int
    from_trainer: float  # largest |engine - trainer| of a log-probability
    from_base: float  # largest |engine - base model|


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """One engine's proof of one adapter. Durations in seconds."""

    engine: str
    vllm: str
    probes: int
    deltas: Deltas
    load_s: float
    probe_s: float


def compare(probes: Sequence[Probe], replies: Sequence[Reply], *, tolerance: float) -> Deltas:
    """How far replies are from what the trainer's weights and the base model's give, token by token.

    Raises:
        BadAdapter: what answers is not the adapter that was trained; the message says by what it shows.
    """
    tokens, from_trainer, from_base = 0, 0.0, 0.0
    for number, (probe, reply) in enumerate(zip(probes, replies, strict=True), start=1):
        where = f"probe {number} of {len(probes)}"
        if reply.prompt_tokens != probe.prompt_tokens:
            raise BadAdapter(f"{where}: the engine reads the prompt as other tokens than the trainer")
        length = len(probe.tokens)
        if reply.tokens[:length] != probe.tokens:
            equal = 0
            while equal < min(length, len(reply.tokens)) and reply.tokens[equal] == probe.tokens[equal]:
                equal += 1
            raise BadAdapter(
                f"{where}: the engine answers other tokens than the trainer's weights, after {equal} equal"
            )
        for ours, theirs, base in zip(reply.logprobs[:length], probe.logprobs, probe.base_logprobs, strict=True):
            difference = abs(ours - theirs)
            if not difference <= tolerance:  # and not `>`: a number that is none is no proof
                raise BadAdapter(
                    f"{where}: a log-probability is {difference:.2g} nats from the trainer's, and {tolerance:g} may be"
                )
            from_trainer, from_base = max(from_trainer, difference), max(from_base, abs(ours - base))
        tokens += length
    return Deltas(tokens=tokens, from_trainer=from_trainer, from_base=from_base)


def require_adapter(deltas: Deltas, *, tolerance: float) -> None:
    """Return if what answered is something else than the base model.

    Raises:
        BadAdapter: it is not, as far as can be told.
    """
    if not deltas.from_base > tolerance:
        raise BadAdapter(
            f"the adapter answers like the base model: log-probabilities differ by {deltas.from_base:.2g} nats at most"
        )
