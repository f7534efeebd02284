"""A class name has one meaning in the whole project, so that a search for it finds one definition."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("gadfly", "service", "trainer", "migrations", "lab")


def _classes(root: Path) -> dict[str, list[str]]:
    """Each class at the top level of a module, with the files that define it."""
    places = defaultdict(list)
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):  # does not follow the links in gadfly/
            for node in ast.parse(path.read_text("utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(str(path.relative_to(root)))
    return places


def test_no_class_name_is_used_twice() -> None:
    classes = _classes(ROOT)
    assert len(classes) > 300
    assert {name: places for name, places in classes.items() if len(places) > 1} == {}
