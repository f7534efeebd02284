"""What vLLM loads from this package: named in `pyproject.toml` as an entry point of `vllm.general_plugins`.

vLLM only logs when importing a plugin fails and then serves without it, but lets an error of `register` end the
process. So nothing of vLLM is imported here, and everything that can fail happens in `register`.
"""

import ctypes
import multiprocessing
import os
import signal

_PR_SET_PDEATHSIG = 1


def register() -> None:
    """Called by vLLM once in each of its processes, before it builds anything."""
    from engine import cpu_lora, cpu_seeds

    end_with_parent()
    cpu_lora.install()
    if multiprocessing.parent_process() is not None:  # the server itself samples nothing, and the import takes seconds
        cpu_seeds.install()


def end_with_parent() -> None:
    """Has the kernel end this process when the one that started it is gone.

    vLLM's server ends its children when it ends, but not when it is killed: the child that holds the weights would then
    keep memory and processor for ever. In the server itself this does nothing.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent.pid:  # it was gone before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)
