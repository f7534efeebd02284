"""The names of the models that /v1 offers, and what each means."""

import re
from dataclasses import dataclass
from enum import StrEnum

from gadfly.errors import NotFound
from gadfly.service.wire.common import CriticChoice

_CRITIC = re.compile(r"critic@(\d{1,9})")


class Writer(StrEnum):
    """Who writes the text of an answer."""

    ACTOR = "actor"  # the actor's answer as it is
    REFINED = "refined"  # the actor's answer, rewritten with the critic's critique
    CRITIC = "critic"  # a critique of the last assistant turn


@dataclass(frozen=True, slots=True)
class FrontModel:
    """One model of /v1. `critic` is the critic that `critic` models answer with."""

    role: Writer
    critic: CriticChoice = "live"


def model_of(name: str) -> FrontModel:
    """The model with this name.

    Raises:
        NotFound: there is none.
    """
    for role in Writer:
        if name == role.value:
            return FrontModel(role)
    if (versioned := _CRITIC.fullmatch(name)) and int(versioned[1]) < 2**31:
        return FrontModel(Writer.CRITIC, int(versioned[1]))
    raise NotFound(f"there is no model {name!r}; the models are actor, refined, critic, and critic@N for version N")
