"""The contents of the reference pages, made from the code when the site is built: a hook of MkDocs.

A page marks the place with a line of its own, `<!-- reference: settings -->`; the word names a function of `MADE`. This
file imports neither vLLM nor the training libraries, and needs no database and no engine.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import typer.main
from fastapi.routing import APIRoute
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel

from gadfly.cli.main import app as command_line
from gadfly.cli.options import flag_of, variable_of
from gadfly.errors import NotAllowed
from gadfly.service.app import create_app
from gadfly.service.dependencies import RouteNeeds
from gadfly.service.errors import STATUS, describe
from gadfly.service.metrics import Metrics
from gadfly.settings import Settings
from gadfly.training import AlarmLimits, TrainConfig

Schema = Mapping[str, Any]

_PLACE = re.compile(r"^<!-- reference: (\w+) -->$", re.MULTILINE)
_PAGES = {"TrainConfig": "training.md", "AlarmLimits": "training.md#alarms"}  # shapes with a page of their own
_FORMATS = {"uuid": "UUID", "date-time": "time", "password": "secret"}
_SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_LARGEST = 2**31  # a limit from here on only says which integers Postgres stores


# ------------------------------------------------------------------------------------------------ called by MkDocs


def on_config(config: Any) -> Any:
    """Put every decision into the navigation."""
    pages = sorted(Path(config["docs_dir"], "decisions").glob("*.md"))
    for entry in config["nav"]:
        if "Decisions" in entry:
            entry["Decisions"] = [f"decisions/{page.name}" for page in pages]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in each place that a page marks.

    Raises:
        KeyError: a page marks a place for something that is not made here.
    """
    return _PLACE.sub(lambda place: MADE[place[1]](), markdown)


# -------------------------------------------------------------------------------------------------------- contents


def settings() -> str:
    """Every setting: variable, flag, default, meaning."""
    schema = Settings.model_json_schema()
    rows = [
        (f"`{variable_of(name)}`", f"`{flag_of(name)}`", kind(part, schema), default(part), meaning(part, schema))
        for name, part in schema["properties"].items()
    ]
    return table(("variable", "flag", "value", "default", "meaning"), rows)


def training() -> str:
    """Every option of a training run, its alarms aside."""
    return _options(TrainConfig, leave_out="alarms")


def alarms() -> str:
    """Every limit that stops a training run."""
    return _options(AlarmLimits, prefix="alarms.")


def commands() -> str:
    """Every command of `gadfly` with its own arguments and options; all take the settings besides."""
    return "\n\n".join(_commands(typer.main.get_command(command_line), "gadfly"))


def http() -> str:
    """Every route: its key, what it takes, what it answers."""
    parts = []
    for path, operations in openapi()["paths"].items():
        for method, operation in operations.items():
            needs = _needs(method.upper(), path, operation)
            parts += [f"### {method.upper()} {path}", operation["description"], needs]
            parts += [_parameters(operation), _answers(operation)]
    return "\n\n".join(filter(None, parts))


def shapes() -> str:
    """Every JSON object and enumeration that a route takes or gives."""
    parts = []
    for name, schema in sorted(openapi()["components"]["schemas"].items()):
        if name not in _PAGES:
            parts += [f"### {name}", schema.get("description", "")]
            parts.append(_fields(schema) if "properties" in schema else f"Value: {kind(schema, {})}.")
    return "\n\n".join(filter(None, parts))


def errors() -> str:
    """Every refusal: status, title, type, whether it says when to try again, and when it is given."""
    rows = []
    mapped = [type_("") for type_, _, _ in STATUS]
    for error in (*mapped, NotAllowed(""), NotAllowed("", authenticated=True), Exception()):
        document, headers = describe(error)
        again = "yes" if "retry-after" in headers else ""
        when = document.detail or sentence(type(error))
        rows.append((str(document.status), document.title, f"`{document.type}`", again, when))
    return table(("status", "title", "type", "Retry-After", "when"), sorted(rows))


def metrics() -> str:
    """Every metric of a service: name, type, labels, meaning."""
    rows = []
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            [family] = metric.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            rows.append((f"`{name}`", family.type, labels, family.documentation))
    return table(("metric", "type", "labels", "meaning"), rows)


MADE: Mapping[str, Callable[[], str]] = {
    made.__name__: made for made in (settings, training, alarms, commands, http, shapes, errors, metrics)
}


# ----------------------------------------------------------------------------------------------------------- parts


@cache
def openapi() -> dict[str, Any]:
    """The description of the HTTP API that a service gives at /openapi.json."""
    return create_app(Settings()).openapi()


def _options(model: type[BaseModel], *, prefix: str = "", leave_out: str = "") -> str:
    schema = model.model_json_schema()
    rows = [
        (f"`{prefix}{name}`", kind(part, schema), default(part), meaning(part, schema))
        for name, part in schema["properties"].items()
        if name != leave_out
    ]
    return table(("option", "value", "default", "meaning"), rows)


def _commands(command: Any, path: str) -> list[str]:
    if hasattr(command, "commands"):
        return [
            part for name in sorted(command.commands) for part in _commands(command.commands[name], f"{path} {name}")
        ]
    rows = [
        (f"`{' / '.join([*part.opts, *part.secondary_opts])}`", part.help or "")
        for part in command.params
        if not part.hidden and not part.name.startswith("setting_")
    ]
    return [f"### {path}", command.help, *([table(("argument or option", "meaning"), rows)] if rows else [])]


@cache
def _routes() -> dict[tuple[str, str], APIRoute]:
    routes = (route for route in create_app(Settings()).routes if isinstance(route, APIRoute))
    return {(method, route.path): route for route in routes for method in route.methods}


def _needs(method: str, path: str, operation: Schema) -> str:
    route = _routes()[method, path]
    found = [part.call for part in route.dependant.dependencies if isinstance(part.call, RouteNeeds)]
    key = str(found[0]) if found else "Needs no key."
    if "requestBody" not in operation:
        return key
    [content] = operation["requestBody"]["content"].values()
    return f"{key} The body is a {kind(content['schema'], {})}."


def _parameters(operation: Schema) -> str:
    rows = [
        (f"`{part['name']}`", part["in"], kind(part["schema"], {}), default(part["schema"]), meaning(part, {}))
        for part in operation.get("parameters", ())
    ]
    return table(("parameter", "in", "value", "default", "meaning"), rows) if rows else ""


def _answers(operation: Schema) -> str:
    rows, refusals = [], []
    for status, answer in sorted(operation["responses"].items()):
        contents = dict(answer.get("content", {}))
        if "application/problem+json" in contents:
            refusals.append(status)
            continue
        shape = contents.pop("application/json", {}).get("schema")
        shapes = [*([kind(shape, {})] if shape else []), *(f"`{media}`" for media in contents)]
        rows.append((status, ", ".join(shapes), answer["description"].replace("Successful Response", "")))
    refused = f"\n\nRefuses with {', '.join(refusals)}: see [Errors](errors.md)." if refusals else ""
    return table(("status", "answer", "meaning"), rows) + refused


def _fields(schema: Schema) -> str:
    required = schema.get("required", ())
    rows = [
        (f"`{name}`", kind(part, {}), "required" if name in required else default(part), meaning(part, {}))
        for name, part in schema["properties"].items()
    ]
    return table(("field", "value", "default", "meaning"), rows)


# ------------------------------------------------------------------------------------------------------- in Markdown


def kind(part: Schema, whole: Schema) -> str:
    """The values that a part of a JSON schema allows, in a few words.

    A definition is written out where it is in `whole`, and linked to where it is not.
    """
    match part:
        case {"$ref": ref}:
            name = ref.rpartition("/")[2]
            if name in whole.get("$defs", {}):
                return kind(whole["$defs"][name], whole)
            return f"[{name}]({_PAGES.get(name, '#' + name.lower())})"
        case {"anyOf": choices}:
            return " or ".join(dict.fromkeys(kind(choice, whole) for choice in choices))
        case {"const": value}:
            return f"`{value}`"
        case {"enum": values}:
            return ", ".join(f"`{value}`" for value in values)
        case {"type": "array"}:
            return f"list of {kind(part['items'], whole)}"
        case {"type": "boolean"}:
            return "true or false"
        case {"type": "integer" | "number" as number}:
            limits = [
                f"{sign} {part[name]:,.10g}" for name, sign in _SIGNS.items() if part.get(name, _LARGEST) < _LARGEST
            ]
            return " ".join([number, ", ".join(limits)]).strip()
        case {"type": "string"}:
            longest = f" of at most {part['maxLength']:,} characters" if "maxLength" in part else ""
            return _FORMATS.get(part.get("format", ""), "text") + longest
        case {"type": other}:
            return str(other)
        case _:
            return "any JSON"


def default(part: Schema) -> str:
    """The default of a setting, option or field; empty where it is null or nothing."""
    value = part.get("default")
    if value in (None, "", []):
        return ""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def meaning(part: Schema, whole: Schema) -> str:
    """The description of a setting, option or field, or of the values that it may have; empty where there is none."""
    if "description" not in part and "$ref" in part:
        return str(whole.get("$defs", {}).get(part["$ref"].rpartition("/")[2], {}).get("description", ""))
    return str(part.get("description", ""))


def sentence(documented: type) -> str:
    """The first paragraph of a docstring."""
    return (documented.__doc__ or "").partition("\n\n")[0]


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")
