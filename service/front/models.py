"""The names of the models that /v1 offers, and their meanings."""

import re
from dataclasses import dataclass
from enum import StrEnum

from gadfly.errors import NotFound
from gadfly.service.wire.common import CriticChoice

_CRITIC = re.compile(r"critic@(\d{1,9})")


class Role(StrEnum):
    """Who writes the text of an answer."""

    ACTOR = "actor"  # the actor's answer as it is
    REFINED = "refined"  # the actor's answer, rewritten with the critic's critique
    CRITIC = "critic"  # a critique of the last assistant turn


@dataclass(frozen=True, slots=True)
class Model:
    """One model of /v1. `critic` is the critic that `critic` models answer with."""

    role: Role
    critic: CriticChoice = "live"


def model_of(name: str) -> Model:
    """The model with this name.

    Raises:
        NotFound: there is none.
    """
    for role in Role:
        if name == role.value:
            return Model(role)
    if (versioned := _CRITIC.fullmatch(name)) and int(versioned[1]) < 2**31:
        return Model(Role.CRITIC, int(versioned[1]))
    raise NotFound(f"there is no model {name!r}; the models are actor, refined, critic, and critic@N for version N")
