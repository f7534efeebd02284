"""What vLLM loads from this package: named in `pyproject.toml` as an entry point of `vllm.general_plugins`.

vLLM only logs when importing a plugin fails and then serves without it, but lets an error of `register` end the
process. So nothing of vLLM is imported here, and everything that can fail happens in `register`.
"""

import multiprocessing

from gadfly.tether import end_with_parent


def register() -> None:
    """Called by vLLM once in each of its processes, before it builds anything."""
    from gadfly.engine import cpu_eager, cpu_lora, cpu_seeds

    # vLLM's server ends its children when it ends, but not when it is killed: the child that holds the weights would
    # then keep memory and processor for ever.
    end_with_parent()
    cpu_lora.install()
    if multiprocessing.parent_process() is not None:  # the server itself samples nothing, and the import takes seconds
        cpu_eager.install()
        cpu_seeds.install()
