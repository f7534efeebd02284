"""`python -m gadfly.cli.secrets`: prepares the volumes of docker compose, as root, before every start.

It creates the database's two passwords once, and gives the folders that the containers write to the user they run as.
Release 0.1 kept the password in the volume of the admin key, and ran its containers as root: the password moves, and
the files change their owner.
"""

import argparse
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

_BEFORE = "db.password"  # in the volume of the admin key, in release 0.1


def make_passwords(*, application: Path, superuser: Path, keys: Path) -> None:
    """Write the passwords that are missing, and the `pgpass` of libpq.

    Args:
        application: a folder for the database and its clients: `gadfly`, the application's password, and `pgpass`.
        superuser: a folder for the database alone: `password`.
        keys: the folder of the admin key, which contained the application's password before.
    """
    password = application / "gadfly"
    before = keys / _BEFORE
    if not password.exists():
        _write(password, before.read_text() if before.exists() else secrets.token_urlsafe(32), mode=0o644)
    _write(application / "pgpass", f"*:*:*:gadfly:{password.read_text()}\n", mode=0o600)
    if not (superuser / "password").exists():
        _write(superuser / "password", secrets.token_urlsafe(32), mode=0o600)
    before.unlink(missing_ok=True)
    (keys / "pgpass").unlink(missing_ok=True)


def give(folders: Sequence[Path], *, user: int, group: int) -> None:
    """Make `user` and `group` the owner of everything in the folders. Links are not followed."""
    for folder in folders:
        for parent, _, files in os.walk(folder):
            for path in (Path(parent), *(Path(parent, name) for name in files)):
                owner = path.lstat()
                if (owner.st_uid, owner.st_gid) != (user, group):
                    os.chown(path, user, group, follow_symlinks=False)


def _write(path: Path, text: str, *, mode: int) -> None:
    """Replace the file as a whole: a kill leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    unfinished.unlink(missing_ok=True)
    unfinished.touch(mode=mode)
    unfinished.chmod(mode)
    unfinished.write_text(text)
    unfinished.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gadfly.cli.secrets")
    parser.add_argument("--application", type=Path, required=True, help="folder of the application's password")
    parser.add_argument("--superuser", type=Path, required=True, help="folder of the database superuser's password")
    parser.add_argument("--keys", type=Path, required=True, help="folder of the admin key")
    parser.add_argument("--user", required=True, help="user and group that the containers run as, as UID:GID")
    parser.add_argument("folders", nargs="*", type=Path, help="other folders that the containers write to")
    given = parser.parse_args()
    make_passwords(application=given.application, superuser=given.superuser, keys=given.keys)
    user, _, group = given.user.partition(":")
    home = [folder / "home" for folder in given.folders[:1]]  # caches of vLLM and the hub
    for folder in home:
        folder.mkdir(parents=True, exist_ok=True)
    give([given.application, given.keys, *given.folders], user=int(user), group=int(group or user))


if __name__ == "__main__":
    main()
