"""Sampling on CPU without a C++ compiler: the functions that vLLM passes to torch.compile run eagerly.

vLLM 0.32 compiles parts of its sampler even with `--enforce-eager`, among them the count of more likely tokens, which
every request for log-probabilities needs. On CPU, torch.compile generates C++ and calls a compiler at the first such
request: without a compiler the engine crashes with `InvalidCxxCompiler`, with one the first caller waits half a minute.
The functions are a few tensor operations each and return the same values when they run eagerly.
"""


def install() -> None:
    """Disables torch.compile in this process if it runs on CPU, where vLLM compiles nothing else."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        import torch._dynamo.config

        torch._dynamo.config.disable = True
