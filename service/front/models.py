"""The names of the models that /v1 offers, and their meanings."""

import re
from dataclasses import dataclass
from enum import StrEnum

from gadfly.errors import NotFound
from gadfly.service.wire.common import CriticChoice

_CRITIC = re.compile(r"critic@(\d{1,9})")
_SEPARATOR = "/"


class Writer(StrEnum):
    """Who writes the text of an answer."""

    ACTOR = "actor"  # the actor's answer as it is
    REFINED = "refined"  # the actor's answer, rewritten with the critic's critique
    CRITIC = "critic"  # a critique of the last assistant turn


@dataclass(frozen=True, slots=True)
class FrontModel:
    """One model of /v1. `critic` is the critic that `critic` models answer with; `task` None is the default task."""

    role: Writer
    critic: CriticChoice = "live"
    task: str | None = None


def model_of(name: str) -> FrontModel:
    """The model with this name, which may begin with a task, as in `sql/refined`.

    Raises:
        NotFound: there is none. Whether the task is served is not checked.
    """
    task, separator, own = name.rpartition(_SEPARATOR)
    if bool(task) is bool(separator):
        for role in Writer:
            if own == role.value:
                return FrontModel(role, task=task or None)
        if (versioned := _CRITIC.fullmatch(own)) and int(versioned[1]) < 2**31:
            return FrontModel(Writer.CRITIC, int(versioned[1]), task=task or None)
    raise NotFound(
        f"there is no model {name!r}; the models are actor, refined, critic, and critic@N for version N, with another "
        "task than the default one before them, as in sql/refined"
    )


def name_of(role: str, *, task: str | None) -> str:
    """The name of a model of a task; None: of the default task."""
    return role if task is None else f"{task}{_SEPARATOR}{role}"
