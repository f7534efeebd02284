"""Request bodies from arguments, files and standard input."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gadfly.errors import BadInput


def read_text(value: str | None) -> str | None:
    """The argument itself, the content of the file in `@path`, or standard input for `-`.

    Raises:
        BadInput: the file cannot be read.
    """
    if value is None or (value != "-" and not value.startswith("@")):
        return value
    if value == "-":
        return sys.stdin.read()
    try:
        return Path(value[1:]).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{value[1:]} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}.") from None


def request_body(question: str | None, response: str | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request. Without question and response it is read from standard input; `fields` override it.

    Raises:
        BadInput: a required field is missing, or standard input is not a JSON object.
    """
    body: dict[str, Any] = {}
    if question is None and response is None and not sys.stdin.isatty():
        try:
            body = json.loads(sys.stdin.read() or "{}")
        except ValueError as error:
            raise BadInput(f"Standard input is not JSON: {error}.") from None
        if not isinstance(body, dict):
            raise BadInput("Standard input must be one JSON object, as POST /critique takes it.")
    texts = {"question": read_text(question), "response": read_text(response)}
    body |= {name: value for name, value in {**texts, **fields}.items() if value is not None}
    missing = [f"--{name}" for name in texts if name not in body]
    if missing:
        raise BadInput(f"Give {' and '.join(missing)}, or a JSON object on standard input.")
    return body


def read_train_options(file: Path | None, pairs: Sequence[str]) -> dict[str, Any]:
    """Training options from a JSON file and from `name=value` pairs, which win; `alarms.kl=1` sets one in a group.

    Raises:
        BadInput: the file holds no JSON object, or a pair is malformed.
    """
    options: dict[str, Any] = {}
    if file is not None:
        try:
            options = json.loads(file.expanduser().read_bytes())
        except OSError as error:
            raise BadInput(f"{file} cannot be read: {error.strerror}.") from None
        except ValueError as error:
            raise BadInput(f"{file} is not JSON: {error}.") from None
        if not isinstance(options, dict):
            raise BadInput(f"{file} must hold one JSON object of training options.")
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not all(name.split(".")):
            raise BadInput(f"--set {pair}: use name=value, as in --set steps_stage_1=50 or --set alarms.kl=1.5.")
        *groups, last = name.split(".")
        target = options
        for group in groups:
            target = target.setdefault(group, {})
            if not isinstance(target, dict):
                raise BadInput(f"--set {pair}: {group} is not a group of options.")
        target[last] = _value(value)
    return options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
