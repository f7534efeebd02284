"""`python -m gadfly.service`: serve HTTP on GADFLY_HOST:GADFLY_PORT, in GADFLY_WORKERS processes.

A worker is started with two arguments, the numbers of its socket and of the pipe for its beats.
"""

import sys

from gadfly.imports import quick_imports


def main() -> None:
    with quick_imports():
        from gadfly.service.serve import serve  # noqa: PLC0415  # with the whole application
    serve([int(argument) for argument in sys.argv[1:]])


if __name__ == "__main__":
    main()
