"""`python -m gadfly.tasks.child FOLDER LIMIT_S`: the grading process of a task, which `Grader` feeds over pipes."""

import sys
from pathlib import Path

from gadfly.errors import BadSettings
from gadfly.grading import run_child
from gadfly.tasks.manifest import Manifest
from gadfly.tasks.task import load_rules


def main() -> None:
    folder, limit_s = Path(sys.argv[1]), float(sys.argv[2])
    try:
        run_child(lambda: load_rules(Manifest.read(folder), folder, limit_s=limit_s), timeout_s=limit_s)
    except BadSettings as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
