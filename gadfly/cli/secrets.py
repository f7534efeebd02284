"""`python -m gadfly.cli.secrets FOLDER`: creates the database password for docker compose, once, in a volume."""

import secrets
import sys
from pathlib import Path


def make(folder: Path) -> None:
    """Write `db.password` (if it is missing) and the `pgpass` of libpq into `folder`."""
    password = folder / "db.password"
    if not password.exists():
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / ".db.password"
        new.touch(mode=0o600)
        new.write_text(secrets.token_urlsafe(32))
        new.rename(password)
    passfile = folder / "pgpass"
    passfile.touch(mode=0o600)
    passfile.write_text(f"*:*:*:gadfly:{password.read_text()}\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
