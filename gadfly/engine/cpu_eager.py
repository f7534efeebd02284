"""Sampling on CPU without a C++ compiler: the functions that vLLM hands to torch.compile run as they are written.

vLLM 0.32 compiles parts of its sampler whatever `--enforce-eager` says, among them the count of likelier tokens that
every request for log-probabilities needs. On CPU, torch.compile writes C++ and calls a compiler at the first such
request: without a compiler the engine ends with `InvalidCxxCompiler`, with one the first caller waits half a minute.
The functions are a few tensor operations each, and run eagerly they return the same values.
"""


def install() -> None:
    """Switches torch.compile off in this process if it computes on CPU, where vLLM compiles nothing else."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        import torch._dynamo.config

        torch._dynamo.config.disable = True
