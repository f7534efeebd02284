"""Automatic rollback: a sequential test of the live critic's verdicts on labelled traffic against the previous critic.

Each labelled interaction since the promotion is one Bernoulli outcome: the verdict that its first critique states
agrees with the label, or it does not; no stated verdict is a disagreement, as for the gate. A label is the `correct` of
feedback, or the grade against a reference. Outcomes are not balanced over right and wrong answers but come as the
traffic does, for both critics, so a change of the traffic looks like a change of the critic. Where the previous critic
has too few labelled answers, its accuracy on the gate's held-out items is used instead. That one is balanced; the
margin of ten points allows for the difference.

The test is A. Wald, "Sequential Tests of Statistical Hypotheses", Annals of Mathematical Statistics 16 (1945): after
each outcome the likelihood ratio of H1 (accuracy p0 - 0.1) to H0 (accuracy p0) is compared with two bounds. A critic as
good as the previous one is rolled back with a probability of at most about 1 %; one that is ten points worse is kept
with a probability of about 10 %. A critic that has been kept is not tested again.

Labels come from callers, and a single caller must not be able to roll back a deployment: each key contributes at most a
third of the outcomes (`gadfly.store.watch.verdict_outcomes`). A service without keys has no such bound.
"""

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly import store
from gadfly.errors import Conflict
from gadfly.records import CriticVersion, SwapKind
from gadfly.repeating import repeat
from gadfly.service.critics.pointers import CriticPointers
from gadfly.store.database import Database

MARGIN = 0.1  # H1: the accuracy is lower by this much
ALPHA = 0.01  # probability of rolling back a critic that is as good as the previous one
BETA = 0.1  # probability of keeping a critic that is worse by the margin
LEAST_OF_OWN = 50  # labelled answers of the previous critic that are enough to use its own accuracy on traffic
_MOST_ACCURATE = 0.99  # with p0 = 1, a single wrong verdict would decide
_EVERY_S = 10.0

log = structlog.get_logger(__name__)


class Decision(StrEnum):
    """The result of the test so far."""

    KEEP = "keep"
    ROLL_BACK = "roll_back"
    UNDECIDED = "undecided"


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """The decision and the numbers it rests on."""

    decision: Decision
    outcomes: int  # up to the decision
    right: int
    log_ratio: float  # of the likelihoods of H1 and H0, in nats


def sequential_test(
    outcomes: Iterable[bool], *, p0: float, p1: float, alpha: float = ALPHA, beta: float = BETA
) -> Evidence:
    """Wald's test of H0 (an outcome is right with probability p0) against H1 (p1 < p0), up to its decision.

    Args:
        outcomes: in order of time; those after the decision are not read.
        p0: in (0, 1), above p1.
        p1: in (0, 1).
        alpha: probability of deciding for H1 under H0.
        beta: probability of deciding for H0 under H1.
    """
    if not 0 < p1 < p0 < 1:
        raise ValueError("the test needs 0 < p1 < p0 < 1")
    upper, lower = math.log((1 - beta) / alpha), math.log(beta / (1 - alpha))
    if_right, if_wrong = math.log(p1 / p0), math.log((1 - p1) / (1 - p0))
    count = right = 0
    decision = Decision.UNDECIDED
    for outcome in outcomes:
        count += 1
        right += outcome
        # Computed from the counts: a running sum would accumulate rounding errors.
        ratio = right * if_right + (count - right) * if_wrong
        if ratio >= upper:
            decision = Decision.ROLL_BACK
            break
        if ratio <= lower:
            decision = Decision.KEEP
            break
    log_ratio = right * if_right + (count - right) * if_wrong
    return Evidence(decision=decision, outcomes=count, right=right, log_ratio=log_ratio)


class RollbackWatch:
    """Tests the live critic of a deployment, one replica at a time, and requests a rollback when it is worse."""

    def __init__(self, database: Database, pointers: CriticPointers, *, is_on: bool) -> None:
        self._database = database
        self._pointers = pointers
        self._is_on = is_on

    async def run(self) -> None:
        """Test the live critic every ten seconds, until cancelled."""
        if self._is_on:
            await repeat(self.check, wait=partial(asyncio.sleep, _EVERY_S), failure="watch_failed")

    async def check(self) -> Evidence | None:
        """Test the live critic with the outcomes so far. None if there is nothing to test, or another replica tests it.

        Only a critic that the gate or an admin promoted is tested: a rollback is never undone automatically.
        """
        last = self._pointers.swaps.last_done
        pointers = self._pointers.current
        if last is None or last.kind not in (SwapKind.GATE, SwapKind.PROMOTE) or last.version != pointers.get("live"):
            return None
        if pointers.get("previous") != last.from_version:
            return None
        pending = self._pointers.swaps.pending
        if pending is not None and pending.kind in (SwapKind.ROLLBACK, SwapKind.WATCH):
            return None  # a rollback is already requested
        live = await self._pointers.resolve(last.version)
        async with self._database.session() as session:
            if not await store.watch.lock_watch(session):
                return None
            since = await store.watch.live_since(session)
            outcomes = await store.watch.verdict_outcomes(session, last.version, since=since)
            previous = await store.watch.verdict_outcomes(session, last.from_version)
            p0, source = await _previous_accuracy(session, previous, live)
            if p0 is None or p0 - MARGIN <= 0:
                return None
            p0 = min(p0, _MOST_ACCURATE)
            evidence = sequential_test(outcomes, p0=p0, p1=p0 - MARGIN)
            if evidence.decision is not Decision.ROLL_BACK:
                return evidence
            reason = (
                f"{evidence.right} of {evidence.outcomes} verdicts of version {last.version} on labelled traffic were "
                f"right; version {last.from_version} had {p0:.1%} right ({source}): log-likelihood ratio "
                f"{evidence.log_ratio:.2f} of {p0 - MARGIN:.1%} to {p0:.1%}"
            )
            try:
                await store.swaps.request_swap(session, version=last.from_version, kind=SwapKind.WATCH, reason=reason)
            except Conflict as error:
                log.warning("watch_rollback_refused", reason=str(error))
                return evidence
        log.warning("watch_rollback_requested", version=last.version, to=last.from_version, reason=reason)
        return evidence


async def _previous_accuracy(
    session: AsyncSession, outcomes: Sequence[bool], live: CriticVersion
) -> tuple[float | None, str]:
    """The previous critic's accuracy in [0, 1] and its source; None if it is unknown."""
    if len(outcomes) >= LEAST_OF_OWN:
        return sum(outcomes) / len(outcomes), f"of its {len(outcomes)} on live traffic"
    if live.run_id is None:
        return None, ""
    run = await store.runs.read_run(session, live.run_id)
    return held_out_accuracy(run.gate), "on the gate's held-out items"


def held_out_accuracy(gate: dict[str, Any] | None) -> float | None:
    """The verdict accuracy, in [0, 1], of the critic that the gate compared the live one with; None if not in it."""
    axis = ((gate or {}).get("numbers") or {}).get("discriminability")
    return None if axis is None else float(axis["live"])
