"""The store: tables in Postgres, and all SQL, with one module per subject: `store.runs.read_run(session, id)`.

Every function takes a session and runs in its transaction.
"""

from gadfly.store import (
    acts,
    calibrations,
    chat,
    claims,
    critic_examples,
    critics,
    disputes,
    guarded,
    interactions,
    keys,
    labels,
    replicas,
    runs,
    scores,
    shadow,
    swaps,
    tasks,
    training_data,
    wall,
    watch,
    wear,
)

__all__ = [
    "acts",
    "calibrations",
    "chat",
    "claims",
    "critic_examples",
    "critics",
    "disputes",
    "guarded",
    "interactions",
    "keys",
    "labels",
    "replicas",
    "runs",
    "scores",
    "shadow",
    "swaps",
    "tasks",
    "training_data",
    "wall",
    "watch",
    "wear",
]
