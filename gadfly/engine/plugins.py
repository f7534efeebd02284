"""Gadfly's vLLM plugin, an entry point of `vllm.general_plugins` in `pyproject.toml`.

If the import of a plugin fails, vLLM logs the error and serves without the plugin; an error in `register` ends the
process. So this module does not import vllm at the top, and everything that can fail happens in `register`.
"""

import multiprocessing

from gadfly.tether import end_with_parent


def register() -> None:
    """Called by vLLM once in each of its processes, before the engine is built."""
    from gadfly.engine import cpu_eager, cpu_fork, cpu_lora, cpu_seeds, mixed_logprobs

    # vLLM's server ends its children when it exits, but not when it is killed: the child with the weights would then
    # hold memory and CPU permanently.
    end_with_parent()
    cpu_lora.install()
    if multiprocessing.parent_process() is not None:  # the server process does not sample, and the import takes seconds
        cpu_eager.install()
        cpu_seeds.install()
        mixed_logprobs.install()
    else:
        cpu_fork.install()
