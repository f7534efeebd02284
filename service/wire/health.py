"""Shapes of /readyz and /state."""

from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field

from gadfly.engine_health import EngineStanding
from gadfly.records import CriticStatus, Pointer, Swap, SwapKind, SwapStatus


class Check(BaseModel):
    ok: bool
    detail: str
    seconds: float


class Readiness(BaseModel):
    """`ready`: the service can answer requests and store the answers; `detail` of a failed check gives the reason.

    Three checks do not affect `ready`. `swap`: after a refused swap the service answers as before. `actor`: while its
    own endpoint is unavailable the service still critiques. `sampling`, whether the engines sample as they report: one
    that does not still answers, and training does without it. `watch` does: while automatic rollback has been failing
    for a minute, a worse critic would stay live.
    """

    ready: bool
    engine: Check
    database: Check
    critic: Check
    disk: Check
    swap: Check
    actor: Check
    sampling: Check
    watch: Check


class EngineState(BaseModel):
    url: str
    in_flight: int
    reachable: bool
    health: EngineStanding = Field(
        description="sound; ejected: it failed several requests in a row and gets none for some seconds, while another "
        "engine can answer; trial: it answered a probe after that, and gets one request at a time."
    )
    adapters: bool | None = Field(
        description="Whether it loads adapters at run time. false: it serves version 0 only; null: not known yet."
    )
    critics: list[int] = Field(description="Versions that this engine has proven to serve; version 0 needs no proof.")


def path_of(swap: Swap) -> str:
    """The request that shows a swap with its reason."""
    return f"GET /critics/{swap.version}"


class SwapState(BaseModel):
    version: int
    from_version: int
    kind: SwapKind
    status: SwapStatus
    reason: str | None = Field(
        description="For a refused swap, where its reason can be read: reasons may hold people's texts and need a key."
    )

    @classmethod
    def of(cls, swap: Swap | None) -> "SwapState | None":
        if swap is None:
            return None
        return cls(
            version=swap.version,
            from_version=swap.from_version,
            kind=swap.kind,
            status=swap.status,
            reason=f"the last swap was refused; see {path_of(swap)}" if swap.status is SwapStatus.REFUSED else None,
        )


class ReplicaState(BaseModel):
    id: UUID
    live_critic: int | None
    in_flight: dict[str, int]
    problem: str | None


class SpoolState(BaseModel):
    records: int
    bytes: int
    rejected: int


class TaskState(BaseModel):
    """One task of the deployment and its critics."""

    name: str
    version: str = Field(description="The version of the task's files.")
    live_critic: int | None = Field(description="The version that this replica answers with by default.")
    status: CriticStatus | None = Field(description="Whether that version was trained.")
    is_loaded: bool = Field(
        description="Whether an engine serves it now. false: it is loaded and proven at the next request."
    )
    pointers: dict[Pointer, int]
    swap: SwapState | None
    watch: str | None = Field(description="As in `State`.")


class State(BaseModel):
    """The present state of this replica: requests in flight by critic version, engines, replicas and the spool.

    `live_critic`, `task`, `task_version`, `pointers`, `swap` and `watch` are of the default task; `tasks` has all.
    """

    status: Literal["starting", "running"]
    uptime_s: float
    live_critic: int | None = Field(description="The version that this replica answers with by default.")
    task: str = Field(description="What the critic judges: the name of the task.")
    task_version: str = Field(description="The version of the task's files.")
    pointers: dict[Pointer, int] = Field(description="The versions of live, candidate and previous.")
    swap: SwapState | None = Field(description="The swap in progress, else the last one.")
    tasks: list[TaskState] = Field(default_factory=list, description="The tasks, the default one first.")
    replicas: list[ReplicaState] = Field(description="All replicas of this deployment, this one included.")
    in_flight: dict[str, int]
    engines: list[EngineState]
    watch: str | None = Field(description="Why automatic rollback cannot decide, although labels arrive; null: it can.")
    records_pending: int
    spool: SpoolState
