"""Shapes of /critics, /admin/promote and /admin/rollback."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from pydantic import (
    Field,
    StrictInt,
)

from gadfly.records import (
    CriticHistory,
    CriticVersion,
    Pointer,
    Receipt,
    Swap,
    SwapKind,
    SwapStatus,
)
from gadfly.service.wire.common import Reason, Wire
from gadfly.training import GateOutcome


class PromoteRequest(Wire):
    version: StrictInt = Field(ge=0, lt=2**31, description="The critic that is to be live.")
    reason: Reason | None = Field(None, description="Why, for whoever reads it later.")


class RollbackRequest(Wire):
    from_version: StrictInt | None = Field(
        None, ge=0, lt=2**31, description="The critic that must be live: a repeat then does not go forward again."
    )
    reason: Reason | None = Field(None, description="Why, for whoever reads it later.")


class CriticVersionView(Wire):
    version: int
    parent: int | None
    base_model: str
    adapter_sha256: str | None
    created_at: datetime
    pointers: list[Pointer]

    @classmethod
    def of(cls, critic: CriticVersion, pointers: Mapping[Pointer, int]) -> Self:
        names = sorted(name for name, version in pointers.items() if version == critic.version)
        return cls(
            version=critic.version,
            parent=critic.parent,
            base_model=critic.base_model,
            adapter_sha256=critic.adapter_sha256,
            created_at=critic.created_at,
            pointers=names,
        )


class SwapView(Wire):
    """One move of the live pointer: asked for, done or refused."""

    id: UUID
    version: int
    from_version: int
    kind: SwapKind
    status: SwapStatus
    requested_at: datetime
    finished_at: datetime | None
    reason: str | None = Field(description="Why it was asked for, or why it was refused. For admins.")

    @classmethod
    def of(cls, swap: Swap) -> Self:
        return cls(
            id=swap.id,
            version=swap.version,
            from_version=swap.from_version,
            kind=swap.kind,
            status=swap.status,
            requested_at=swap.requested_at,
            finished_at=swap.finished_at,
            reason=swap.reason,
        )


class ReceiptView(Wire):
    """What one service proved and did when this version went live there."""

    swap_id: UUID
    replica_id: UUID
    created_at: datetime
    details: dict[str, Any] = Field(
        description="Hashes, each engine's proof, requests in flight at the move, how many were lost, and times."
    )

    @classmethod
    def of(cls, receipt: Receipt) -> Self:
        return cls(
            swap_id=receipt.swap_id,
            replica_id=receipt.replica_id,
            created_at=receipt.created_at,
            details=receipt.details,
        )


class CriticHistoryView(CriticVersionView):
    """One critic with where it comes from and how it went live."""

    run_id: UUID | None = Field(description="The training run that made it.")
    prompt_set: str | None
    outcome: GateOutcome | None = Field(description="What the gate of its run decided.")
    gate: dict[str, Any] | None = Field(description="The report of the gate.")
    swaps: list[SwapView] = Field(description="Newest first, those that were refused too.")
    receipts: list[ReceiptView] = Field(description="Newest first.")

    @classmethod
    def whole(
        cls, critic: CriticVersion, pointers: Mapping[Pointer, int], history: CriticHistory, *, for_admin: bool
    ) -> Self:
        swaps, receipts = history.swaps, history.receipts
        if not for_admin:
            swaps = [replace(swap, reason=None) for swap in swaps]
            receipts = [replace(receipt, details=_without_engines(receipt.details)) for receipt in receipts]
        return cls(
            **dict(CriticVersionView.of(critic, pointers)),
            run_id=critic.run_id,
            prompt_set=critic.prompt_set,
            outcome=history.outcome,
            gate=history.gate,
            swaps=[SwapView.of(swap) for swap in swaps],
            receipts=[ReceiptView.of(receipt) for receipt in receipts],
        )


def _without_engines(details: dict[str, Any]) -> dict[str, Any]:
    proofs = [{name: value for name, value in proof.items() if name != "engine"} for proof in details["engines"]]
    return details | {"engines": proofs}
