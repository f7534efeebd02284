"""Top log-probabilities in one batch with the log-probabilities of given tokens.

Where one request of a batch asks for the log-probabilities of given tokens (`logprob_token_ids`, as every critique
does), vLLM's V1 sampler reports those for the whole batch: a request for `top_logprobs` gets its sampled token and
nothing else, or token 0 with -inf. The given tokens themselves are right. This fills in the likeliest tokens of the
other requests. Source: vLLM 0.32, vllm/v1/sample/sampler.py, the last lines of `forward`.
"""

from typing import Any


def install() -> None:
    """Corrects the V1 sampler in this process, on any device; the V2 runner has another sampler."""
    import torch
    from torch.nn.functional import pad
    from vllm.v1.outputs import LogprobsTensors
    from vllm.v1.sample.sampler import Sampler

    if getattr(Sampler, "_gadfly_keeps_top", False):
        return
    forward, gather = Sampler.forward, Sampler.gather_specific_token_logprobs

    def forward_noting_top(self: Any, logits: Any, sampling_metadata: Any, *given: Any, **options: Any) -> Any:
        self._gadfly_top = sampling_metadata.max_num_logprobs or 0  # -1: the whole vocabulary, which is left alone
        return forward(self, logits, sampling_metadata, *given, **options)

    def gather_with_top(self: Any, logprobs: Any, logprob_token_ids: dict[int, list[int]], sampled: Any) -> Any:
        found = gather(self, logprobs, logprob_token_ids, sampled)
        others = [row for row in range(logprobs.shape[0]) if row not in logprob_token_ids]
        if found is None or self._gadfly_top < 1 or not others:
            return found
        top = torch.topk(logprobs[others], self._gadfly_top, dim=-1)
        missing = max(0, 1 + self._gadfly_top - found.logprobs.shape[1])  # the first column is the sampled token
        ids, values = pad(found.logprob_token_ids, (0, missing)), pad(found.logprobs, (0, missing), value=-torch.inf)
        ids[others, 1 : 1 + self._gadfly_top] = top.indices.to(ids.dtype)
        values[others, 1 : 1 + self._gadfly_top] = top.values
        return LogprobsTensors(ids, values, found.selected_token_ranks)

    Sampler.forward, Sampler.gather_specific_token_logprobs = forward_noting_top, gather_with_top
    Sampler._gadfly_keeps_top = True
