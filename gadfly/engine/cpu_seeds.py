"""Seeded requests on CPU: a prompt that is computed in pieces must not end the engine.

After every piece vLLM samples a token, throws it away and turns the request's random generator back by moving its
offset. A CPU generator has none, so vLLM 0.32 ends with "CPU Generator does not use offset" at the first request that
has a seed and a prompt of more than one step's tokens, or merely the bad luck to come in a full step.
"""

from typing import Any


def install() -> None:
    """Sets a request's generator aside while a token is sampled that nobody gets; what a fixed vLLM does, it leaves."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if "_gadfly_seeds" not in vars(CPUModelRunner):
        CPUModelRunner._gadfly_seeds = True
        CPUModelRunner.sample_tokens = set_aside_generators(CPUModelRunner.sample_tokens)


def set_aside_generators(sample_tokens: Any) -> Any:
    """The method, called with the generators of those rows only whose token counts."""

    def sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        discarded = self.discard_request_mask.np[: self.input_batch.num_reqs].nonzero()[0].tolist()
        aside = {row: generators.pop(row) for row in discarded if row in generators}
        try:
            return sample_tokens(self, *args, **kwargs)
        finally:
            generators.update(aside)

    return sample
