"""`python -m gadfly.engine.serve_line`: prints the command that starts an engine with all that the hot swap needs.

For `gadfly doctor`, which starts this as a process, as it starts the engine.
"""

import argparse
import sys
from collections.abc import Sequence

from gadfly.engine.command import serve_line
from gadfly.settings import Device, Settings


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gadfly.engine.serve_line", description=__doc__)
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--name", required=True, help="served name of the base model")
    parser.add_argument("--device", required=True, type=Device, choices=(Device.CPU, Device.GPU))
    parser.add_argument("--version", required=True, help="of vLLM")
    parser.add_argument("--port", type=int)
    print(serve_line(Settings.load(), **vars(parser.parse_args(arguments))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
