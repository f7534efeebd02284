"""The pages name files, headings, commands, modules, targets, variables and options that exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from markdown.extensions.toc import slugify

from docs import reference
from gadfly.cli.main import app
from gadfly.cli.options import variable_of
from gadfly.service.errors import STATUS
from gadfly.settings import Settings
from gadfly.training import AlarmLimits, TrainConfig

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [
    *sorted(REPOSITORY.glob("*.md")),
    *sorted(REPOSITORY.glob("configs/*.md")),
    *sorted(REPOSITORY.glob("docs/**/*.md")),
]
COMMAND: Any = typer.main.get_command(app)  # made once: it takes as long as all other work of this file
OPTIONS = [*TrainConfig.model_fields, *(f"alarms.{name}" for name in AlarmLimits.model_fields)]
# Of the Makefile and of the tests: `Settings` lets them pass.
NOT_SETTINGS = {"GADFLY_EXTRA", "GADFLY_TEST_CLIENTS", "GADFLY_TEST_ENGINE_URL"}

_BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_SHELLS = {"sh", "bash", "console", "shell"}
_ENDS = {";", "|", "||", "&&", "&", ">", ">>"}


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return _BLOCK.sub("", page.read_text())


def commands(page: Path) -> Iterator[str]:
    """Lines of shell blocks, and code inside sentences."""
    for language, block in _BLOCK.findall(page.read_text()):
        if language in _SHELLS:
            for line in re.sub(r"\\\n", " ", block).splitlines():
                yield line.removeprefix("$ ")
    for code in _INLINE.findall(prose(page)):
        yield " ".join(code.split())


def words(line: str) -> list[str]:
    """A command as the shell splits it, without its comment; nothing where a line is a part of something longer."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return []


def anchors(page: Path) -> set[str]:
    """Anchors that a page has both in the site and on the forge."""
    text = reference.on_page_markdown(page.read_text())
    headings = [re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in _HEADING.findall(text)]
    of_site = {slugify(heading, "-") for heading in headings}
    return of_site & {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link}: there is no such file"
        if anchor:
            assert anchor in anchors(target), f"{link}: there is no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page: Path) -> None:
    for line in commands(page):
        given = words(line)
        for place, word in enumerate(given):
            if word == "gadfly" or word.endswith("/bin/gadfly"):
                check_gadfly(given[place + 1 :], line)
            elif word == "-m" and place and "python" in given[place - 1].lower() and place + 1 < len(given):
                check_module(given[place + 1], line)
        if given and given[0] == "make":
            check_target(given[1:], line)


def check_gadfly(arguments: list[str], line: str) -> None:
    """Sub-command and options as the command line has them."""
    command = COMMAND
    options: dict[str, Any] = {}
    is_value = False
    for argument in arguments:
        if argument in _ENDS:
            break
        options |= {name: part for part in command.params for name in (*part.opts, *part.secondary_opts)}
        if is_value:
            is_value = False
        elif argument.startswith("-") and argument != "-":
            name, equals, _ = argument.partition("=")
            assert name in {*options, "--help", "-h"}, f"{line}: there is no option {name}"
            is_value = not equals and name in options and not options[name].is_flag
        elif hasattr(command, "commands") and argument != "...":
            assert argument in command.commands, f"{line}: there is no command {argument}"
            command = command.commands[argument]
    for place, argument in enumerate(arguments[:-1]):
        option = arguments[place + 1].partition("=")[0]
        if argument == "--set" and option.lower() != "name":
            assert option in OPTIONS, f"{line}: there is no training option {option}"


def check_module(module: str, line: str) -> None:
    if module.partition(".")[0] in ("gadfly", "bench", "lab"):
        path = REPOSITORY / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"{line}: there is no {module}"


def check_target(arguments: list[str], line: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for target in arguments:
        if target in _ENDS:
            break
        if not target.startswith("-") and "=" not in target:
            assert target in targets, f"{line}: there is no target {target}"


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted(REPOSITORY.glob("docker-compose*.yml")), REPOSITORY / "alembic.ini"], ids=name_of
)
def test_variables_are_settings(page: Path) -> None:
    named = set(re.findall(r"\bGADFLY_[A-Z0-9_]*[A-Z0-9]", page.read_text()))
    assert named - NOT_SETTINGS <= {variable_of(name) for name in Settings.model_fields}


def test_every_setting_and_option_is_in_the_reference() -> None:
    settings, training = reference.settings(), reference.training() + reference.alarms()
    for name in Settings.model_fields:
        assert f"| `{variable_of(name)}` |" in settings
    for name in OPTIONS:
        assert name == "alarms" or f"| `{name}` |" in training
    for line in (settings + training).splitlines():
        assert not line.endswith("|  |"), f"{line}: its meaning is missing"


def test_every_route_command_metric_and_error_is_in_the_reference() -> None:
    http, shapes = reference.http(), reference.shapes()
    for path, operations in reference.openapi()["paths"].items():
        for method in operations:
            assert f"### {method.upper()} {path}\n" in http
    for link in re.findall(r"\]\(#([a-z]+)\)", http + shapes):
        assert re.search(rf"^### {link}$", shapes, re.MULTILINE | re.IGNORECASE), f"there is no shape {link}"
    listed = reference.commands()
    for name in COMMAND.commands:
        assert f"### gadfly {name}" in listed
    errors = reference.errors()
    for _, status, title in STATUS:
        assert f"| {status} | {title} |" in errors
    assert reference.metrics().count("| `gadfly_") > 10


def test_every_page_of_the_reference_is_made() -> None:
    places = [
        place for page in (REPOSITORY / "docs" / "reference").glob("*.md")
        for place in re.findall(r"<!-- reference: (\w+) -->", page.read_text())
    ]  # fmt: skip
    assert sorted(places) == sorted(reference.MADE)
