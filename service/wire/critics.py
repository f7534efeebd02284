"""Shapes of /critics, /admin/promote and /admin/rollback."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import (
    Field,
    StrictInt,
)

from gadfly.records import (
    CriticHistory,
    CriticVersion,
    Pointer,
    SwapKind,
    SwapStatus,
)
from gadfly.service.wire.common import Reason, Wire
from gadfly.training import GateOutcome


class PromoteRequest(Wire):
    version: StrictInt = Field(ge=0, lt=2**31, description="The version to make live.")
    reason: Reason | None = Field(None, description="The reason, stored with the swap.")


class RollbackRequest(Wire):
    from_version: StrictInt | None = Field(
        None,
        ge=0,
        lt=2**31,
        description="The version that must be live, else 409: a repeated request then does not roll back twice.",
    )
    reason: Reason | None = Field(None, description="The reason, stored with the swap.")


class CriticVersionView(Wire):
    version: int
    parent: int | None
    base_model: str
    adapter_sha256: str | None
    created_at: datetime
    verdict_only: bool = Field(
        description="Whether it was trained without references. If it is live, /refine is answered by the newest "
        "version that was not."
    )
    archived: bool = Field(description="Whether it is based on another model than the one that is served.")
    pointers: list[Pointer]


class SwapView(Wire):
    """One move of the live pointer: pending, done or refused."""

    id: UUID
    version: int
    from_version: int
    kind: SwapKind
    status: SwapStatus
    requested_at: datetime
    finished_at: datetime | None
    reason: str | None = Field(description="The reason of the request, or of the refusal. Shown to admins only.")


class ReceiptView(Wire):
    """A swap receipt: what one replica proved and did when it began to answer with this version."""

    swap_id: UUID
    replica_id: UUID
    created_at: datetime
    details: dict[str, Any] = Field(
        description="Hashes, each engine's proof, requests in flight at the move, lost requests, and times."
    )


class CriticHistoryView(CriticVersionView):
    """One critic, its origin, and its swaps."""

    run_id: UUID | None = Field(description="The training run that made it.")
    prompt_set: str | None
    outcome: GateOutcome | None = Field(description="The decision of its run's gate.")
    gate: dict[str, Any] | None = Field(description="The gate's report.")
    swaps: list[SwapView] = Field(description="Newest first, including refused ones.")
    receipts: list[ReceiptView] = Field(description="Newest first.")


def version_view(critic: CriticVersion, pointers: Mapping[Pointer, int], *, served: str) -> CriticVersionView:
    """A critic, where the base model `served` is served."""
    return CriticVersionView.of(critic, archived=critic.base_model != served, pointers=_names_of(critic, pointers))


def history_view(
    critic: CriticVersion, pointers: Mapping[Pointer, int], history: CriticHistory, *, served: str, for_admin: bool
) -> CriticHistoryView:
    """A critic and its history; only admins see the reasons of swaps and the addresses of engines."""
    swaps, receipts = history.swaps, history.receipts
    if not for_admin:
        swaps = [replace(swap, reason=None) for swap in swaps]
        receipts = [replace(receipt, details=_without_engines(receipt.details)) for receipt in receipts]
    return CriticHistoryView.of(
        critic,
        archived=critic.base_model != served,
        pointers=_names_of(critic, pointers),
        outcome=history.outcome,
        gate=history.gate and _without_evidence(history.gate),
        swaps=swaps,
        receipts=receipts,
    )


def _names_of(critic: CriticVersion, pointers: Mapping[Pointer, int]) -> list[Pointer]:
    return sorted(name for name, version in pointers.items() if version == critic.version)


def _without_evidence(gate: dict[str, Any]) -> dict[str, Any]:
    """The report without its observations, which later runs read and people do not."""
    numbers = {name: value for name, value in gate["numbers"].items() if name != "evidence"}
    return gate | {"numbers": numbers}


def _without_engines(details: dict[str, Any]) -> dict[str, Any]:
    proofs = [{name: value for name, value in proof.items() if name != "engine"} for proof in details["engines"]]
    return details | {"engines": proofs}
