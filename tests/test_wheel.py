"""The wheel: it carries every file that the packages read, and migrates a database away from the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parent.parent
LINKED = ("service", "trainer", "migrations", "lab")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources: setuptools leaves files in the folder of the sources."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("gadfly", *LINKED):
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(REPOSITORY / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", target, source],
        check=True,
    )
    [wheel] = target.glob("*.whl")
    return wheel


def test_every_file_of_the_packages_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = {Path(name).name for name in archive.namelist() if ".dist-info/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE"}
    own = {"gadfly": REPOSITORY / "gadfly"} | {f"gadfly/{name}": REPOSITORY / name for name in LINKED}
    wanted = {
        f"{prefix}/{path.relative_to(folder)}"
        for prefix, folder in own.items()
        for path in folder.rglob("*")  # which does not follow links
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert found == wanted


def test_it_migrates_a_database_without_the_checkout(wheel: Path, postgres: PostgresServer, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    postgres.execute("CREATE DATABASE from_wheel")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GADFLY_")}
    environment |= {
        "PYTHONPATH": str(site),
        "GADFLY_DATABASE_URL": postgres.url_of("from_wheel"),
        "GADFLY_HOME": str(tmp_path / "home"),
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert run("-c", "import gadfly.store.database; print(gadfly.store.database.__file__)").startswith(str(site))
    gadfly = "from gadfly.cli.main import main; main()"
    run("-c", gadfly, "migrate")
    run("-c", gadfly, "migrate", "--check")
    postgres.execute("DROP DATABASE from_wheel WITH (FORCE)")
