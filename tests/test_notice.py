"""NOTICE names every package of the images whose licence asks for more than a copy of itself."""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

NOTICE = Path(__file__).resolve().parent.parent / "NOTICE"
ASKS_FOR_MORE = re.compile(r"GPL|MPL|Mozilla|Proprietary|Commercial|EUPL", re.IGNORECASE)


def _bundled() -> set[str]:
    """Names of all packages that `gadfly[cpu]` brings with it."""
    seen: set[tuple[str, str]] = set()
    waiting = [("gadfly", ""), ("gadfly", "cpu")]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        try:
            requirements = map(Requirement, distribution(name).requires or [])
        except PackageNotFoundError:  # for another platform, or left out by pyproject.toml
            continue
        seen.add((name, extra))
        for requirement in requirements:
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(requirement.name, wanted) for wanted in ("", *requirement.extras)]
    return {name for name, _ in seen}


def _licence(name: str) -> str:
    metadata = distribution(name).metadata
    given = metadata["License-Expression"] or metadata["License"] or ""
    classified = [line for line in metadata.get_all("Classifier") or [] if line.startswith("License")]
    return " ".join([given.partition("\n")[0], *classified])


def test_every_demanding_licence_is_named() -> None:
    demanding = {name.lower() for name in _bundled() if ASKS_FOR_MORE.search(_licence(name))}
    assert demanding
    named = set(re.findall(r"[\w.-]+", NOTICE.read_text().lower()))
    assert demanding - named == set()
