"""Passwords and owners of the volumes of docker compose."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gadfly.cli import secrets


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    made = {name: tmp_path / name for name in ("application", "superuser", "keys")}
    for folder in made.values():
        folder.mkdir()
    return made


def test_passwords_are_made_once(folders: dict[str, Path]) -> None:
    secrets.make_passwords(**folders)
    first = {path: path.read_text() for folder in folders.values() for path in folder.iterdir()}
    secrets.make_passwords(**folders)
    assert {path: path.read_text() for path in first} == first
    application, superuser = folders["application"] / "gadfly", folders["superuser"] / "password"
    assert len(application.read_text()) > 40
    assert application.read_text() != superuser.read_text()
    assert (folders["application"] / "pgpass").read_text() == f"*:*:*:gadfly:{application.read_text()}\n"


def test_only_the_owner_reads_what_libpq_and_the_superuser_use(folders: dict[str, Path]) -> None:
    before = os.umask(0o077)
    try:
        secrets.make_passwords(**folders)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for folder in folders.values() for path in folder.iterdir()}
    # The user postgres reads the application's password when the database is created.
    assert modes == {"gadfly": 0o644, "pgpass": 0o600, "password": 0o600}


def test_the_password_of_an_earlier_release_moves(folders: dict[str, Path]) -> None:
    (folders["keys"] / "db.password").write_text("from before")
    (folders["keys"] / "pgpass").write_text("*:*:*:gadfly:from before\n")
    (folders["keys"] / "admin.key").write_text("gf_key")
    secrets.make_passwords(**folders)
    assert (folders["application"] / "gadfly").read_text() == "from before"
    assert (folders["application"] / "pgpass").read_text() == "*:*:*:gadfly:from before\n"
    assert [path.name for path in folders["keys"].iterdir()] == ["admin.key"]


def test_a_kill_in_the_middle_leaves_no_half_password(folders: dict[str, Path]) -> None:
    (folders["application"] / ".gadfly").write_text("ha")
    secrets.make_passwords(**folders)
    assert sorted(path.name for path in folders["application"].iterdir()) == ["gadfly", "pgpass"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_root_get_the_user_of_the_containers(tmp_path: Path, folders: dict[str, Path]) -> None:
    data = tmp_path / "data"
    (data / "runs").mkdir(parents=True)
    (data / "runs" / "old").write_text("x")
    outside = tmp_path / "outside"
    outside.write_text("x")
    (data / "link").symlink_to(outside)
    command = [sys.executable, "-m", "gadfly.cli.secrets", "--user=10001:10002"]
    command += [f"--{name}={folder}" for name, folder in folders.items()]
    subprocess.run([*command, str(data)], check=True, env=os.environ)
    for path in (data, data / "runs", data / "runs" / "old", data / "home", folders["application"] / "pgpass"):
        assert (path.stat().st_uid, path.stat().st_gid) == (10001, 10002), path
    assert outside.stat().st_uid == 0
    assert (folders["superuser"] / "password").stat().st_uid == 0
