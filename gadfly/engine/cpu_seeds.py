"""Seeded requests on CPU: a prompt that is computed in chunks must not crash the engine.

After every chunk vLLM samples a token, discards it and rewinds the request's random generator by its offset. A CPU
generator has no offset, so vLLM 0.32 crashes with "CPU Generator does not use offset" at the first request that has a
seed and a prompt longer than one step's tokens, or a seed and a prompt that arrives in a full step.
"""

from typing import Any


def install() -> None:
    """Removes a request's generator while vLLM samples a token to discard. Idempotent, and harmless in a fixed vLLM."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if "_gadfly_seeds" not in vars(CPUModelRunner):
        CPUModelRunner._gadfly_seeds = True
        CPUModelRunner.sample_tokens = set_aside_generators(CPUModelRunner.sample_tokens)


def set_aside_generators(sample_tokens: Any) -> Any:
    """The method `sample_tokens` without the generators of the rows whose token is discarded."""

    def sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        discarded = self.discard_request_mask.np[: self.input_batch.num_reqs].nonzero()[0].tolist()
        aside = {row: generators.pop(row) for row in discarded if row in generators}
        try:
            return sample_tokens(self, *args, **kwargs)
        finally:
            generators.update(aside)

    return sample
