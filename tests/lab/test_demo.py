"""The demo's command: settings reach the deployment that it starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def demo(*arguments: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GADFLY_")}
    gadfly = Path(sys.executable).with_name("gadfly")
    done = subprocess.run(
        [str(gadfly), "demo", *arguments],
        env=environment | {"COLUMNS": "300"}, cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.database
def test_settings_reach_the_deployment(tmp_path: Path) -> None:
    home = tmp_path / "home"
    said = demo("--model", str(tmp_path / "no-model"), "--home", str(home), folder=tmp_path)
    assert "no-model" in said
    assert "The demo ended early" in said
