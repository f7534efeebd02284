"""Large imports at the start of a process."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Collects no garbage during the imports inside.

    Imports make hundreds of thousands of objects that stay, and collections among them take a fifth of the processor
    time of a start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
