"""A command-line flag for every setting, generated from `Settings`."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any

import typer
from pydantic import SecretStr

from gadfly.settings import ENV_PREFIX, Settings, without_password

_PREFIX = "setting_"  # keeps the flags apart from arguments of a command such as `temperature`
_PANEL = "Settings (accepted by every command)"


def flag_of(name: str) -> str:
    """The flag of the setting `name`."""
    return f"--{name.replace('_', '-')}"


def variable_of(name: str) -> str:
    """The environment variable of the setting `name`."""
    return f"{ENV_PREFIX}{name.upper()}"


class ValueSource(StrEnum):
    """Source of a setting's value."""

    DEFAULT = "default"
    ENVIRONMENT = "environment"
    FLAG = "flag"


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting, safe to print."""

    name: str
    value: str | None
    source: ValueSource
    given_as: str | None  # the variable or flag, None for a default
    description: str


def takes_settings(
    *, show: bool = False, without: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a flag for every setting to a command, which receives `settings`, or the raw values as `flags`.

    Args:
        show: list the flags in the command's help. Hidden flags work too.
        without: settings without a flag, because the command has an option of that name.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own_parameters = inspect.signature(command, eval_str=True).parameters
        options = _options(show, without)

        @wraps(command)
        def run(context: typer.Context, **arguments: Any) -> None:
            flags = remember(context, arguments)
            if "flags" in own_parameters:
                arguments["flags"] = flags
            if "settings" in own_parameters:
                arguments["settings"] = Settings.load(flags)
            command(**arguments)

        parameters = [
            inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
            *(
                parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
                for name, parameter in own_parameters.items()
                if name not in ("flags", "settings")
            ),
            *options,
        ]
        del run.__wrapped__  # typer would read the command's own signature through it
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def remember(context: typer.Context, arguments: dict[str, Any]) -> dict[str, str]:
    """Move the settings' flags out of `arguments` into the result, over those given before the command."""
    flags: dict[str, str] = context.ensure_object(dict)
    for name in Settings.model_fields:
        value = arguments.pop(_PREFIX + name, None)
        if value is not None:
            flags[name] = value
    return flags


def describe(settings: Settings, *, flags: Mapping[str, str], environment: Mapping[str, str]) -> list[SettingRow]:
    """Every setting with its value and source, secrets hidden."""
    variables = {name.upper(): name for name in environment}  # pydantic ignores case
    rows = []
    for name, field in Settings.model_fields.items():
        variable = variables.get(variable_of(name))
        if name in flags:
            source, given_as = ValueSource.FLAG, flag_of(name)
        elif variable is not None and environment[variable] != "":
            source, given_as = ValueSource.ENVIRONMENT, variable
        else:
            source, given_as = ValueSource.DEFAULT, None
        value = shown(name, getattr(settings, name))
        rows.append(SettingRow(name, value, source, given_as, field.description or ""))
    return rows


def shown(name: str, value: Any) -> str | None:
    """A setting's value without keys and passwords, safe to print."""
    if value is None:
        return None
    if isinstance(value, SecretStr):
        secret = value.get_secret_value()
        return without_password(secret) if name.endswith("_url") else "********"
    if isinstance(value, tuple):
        return ",".join(without_password(item) for item in value)
    return without_password(str(value))


def _options(show: bool, without: Sequence[str]) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(
            _PREFIX + name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                str | None,
                typer.Option(
                    flag_of(name),
                    metavar=_metavar(field.annotation),
                    help=f"{field.description} ({variable_of(name)}{_default(field.default)})",
                    rich_help_panel=_PANEL,
                    show_default=False,
                    hidden=not show,
                ),
            ],
        )
        for name, field in Settings.model_fields.items()
        if name not in without
    ]


def _default(value: Any) -> str:
    text = shown("", value)
    return f", default {text}" if text else ""


def _metavar(annotation: Any) -> str:
    if isinstance(annotation, types.UnionType):
        annotation = next(item for item in typing.get_args(annotation) if item is not type(None))
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return "|".join(annotation)
    return {int: "N", float: "N"}.get(annotation, "TEXT")
