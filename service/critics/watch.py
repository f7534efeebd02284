"""Back by itself: a sequential test of the live critic's verdicts on labelled traffic against what it took over from.

Each labelled interaction since the promotion is one Bernoulli outcome: the verdict that its first critique states
agrees with the label, or it does not; no stated verdict is a disagreement, as for the gate. A label is what somebody
said with `correct`, or the grade against a reference. The two sides are not balanced: outcomes come as the traffic has
them, as do those of the critic before, and a change of the traffic itself looks like a change of the critic. Where the
critic before has too few labelled answers of its own, its accuracy on the gate's held-out items stands in, which is
balanced over right and wrong answers; the margin of ten points leaves room for that.

The test is A. Wald, "Sequential Tests of Statistical Hypotheses", Annals of Mathematical Statistics 16 (1945): after
each outcome the likelihood ratio of H1 (accuracy p0 - 0.1) to H0 (accuracy p0) is held against two bounds. A critic as
good as the one before is rolled back with a probability of at most about 1 %, one that is ten points worse is kept with
about 10 %. Once it has been kept, it is not tested again.

Labels come from callers, and one of them must not roll a deployment back alone: each key makes a third of the outcomes
at most (`gadfly.store.watch.verdict_outcomes`). A service without keys has no such bound.
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

MARGIN = 0.1  # H1: so much of the accuracy is lost
ALPHA = 0.01  # chance to go back although nothing is lost
BETA = 0.1  # chance to keep a critic that is worse by the margin
LEAST_OF_OWN = 50  # labelled answers of the critic before, from which on its own traffic says how good it was
_MOST_ACCURATE = 0.99  # a critic that was never wrong would be beaten by one mistake
_EVERY_S = 10.0

log = structlog.get_logger(__name__)


class Decision(StrEnum):
    """What the outcomes so far say about the new critic."""

    KEEP = "keep"
    GO_BACK = "go_back"
    GO_ON = "go_on"  # not enough to tell


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What decided, and after how many outcomes."""

    decision: Decision
    outcomes: int
    right: int
    log_ratio: float  # of the likelihoods of H1 and H0, in nats


def sequential_test(
    outcomes: Iterable[bool], *, p0: float, p1: float, alpha: float = ALPHA, beta: float = BETA
) -> Evidence:
    """Wald's test of H0 (an outcome is right with probability p0) against H1 (p1 < p0), up to its decision.

    Args:
        outcomes: in the order in which they were seen; those after the decision are not looked at.
        p0: in (0, 1), above p1.
        p1: in (0, 1).
        alpha: chance to decide for H1 under H0.
        beta: chance to decide for H0 under H1.
    """
    if not 0 < p1 < p0 < 1:
        raise ValueError("the test needs 0 < p1 < p0 < 1")
    upper, lower = math.log((1 - beta) / alpha), math.log(beta / (1 - alpha))
    if_right, if_wrong = math.log(p1 / p0), math.log((1 - p1) / (1 - p0))
    count = right = 0
    decision = Decision.GO_ON
    for outcome in outcomes:
        count += 1
        right += outcome
        # From the counts and not as a running sum, so that no rounding adds up.
        ratio = right * if_right + (count - right) * if_wrong
        if ratio >= upper:
            decision = Decision.GO_BACK
            break
        if ratio <= lower:
            decision = Decision.KEEP
            break
    log_ratio = right * if_right + (count - right) * if_wrong
    return Evidence(decision=decision, outcomes=count, right=right, log_ratio=log_ratio)


class RollbackWatch:
    """Tests the live critic of a deployment, one replica at a time, and asks for the way back when it is worse."""

    def __init__(self, database: Database, pointers: CriticPointers, *, is_on: bool) -> None:
        self._database = database
        self._pointers = pointers
        self._is_on = is_on

    async def run(self) -> None:
        """Test the live critic every ten seconds, until cancelled."""
        if self._is_on:
            await repeat(self.check, wait=partial(asyncio.sleep, _EVERY_S), failure="watch_failed")

    async def check(self) -> Evidence | None:
        """Test the live critic with what is known now. None where there is nothing to test, or another replica does.

        Only a critic that the gate or an admin promoted is tested: going back is not undone by itself.
        """
        last = self._pointers.swaps.last_done
        pointers = self._pointers.current
        if last is None or last.kind not in (SwapKind.GATE, SwapKind.PROMOTE) or last.version != pointers.get("live"):
            return None
        if pointers.get("previous") != last.from_version:
            return None
        pending = self._pointers.swaps.pending
        if pending is not None and pending.kind in (SwapKind.ROLLBACK, SwapKind.WATCH):
            return None  # the way back is asked for already
        live = await self._pointers.resolve(last.version)
        async with self._database.session() as session:
            if not await store.watch.lock_watch(session):
                return None
            since = await store.watch.live_since(session)
            outcomes = await store.watch.verdict_outcomes(session, last.version, since=since)
            before = await store.watch.verdict_outcomes(session, last.from_version)
            p0, source = await _accuracy_before(session, before, live)
            if p0 is None or p0 - MARGIN <= 0:
                return None
            p0 = min(p0, _MOST_ACCURATE)
            evidence = sequential_test(outcomes, p0=p0, p1=p0 - MARGIN)
            if evidence.decision is not Decision.GO_BACK:
                return evidence
            reason = (
                f"{evidence.right} of {evidence.outcomes} verdicts of version {last.version} on labelled traffic were "
                f"right, and version {last.from_version} had {p0:.1%} right ({source}): log-likelihood ratio "
                f"{evidence.log_ratio:.2f} of {p0 - MARGIN:.1%} to {p0:.1%}"
            )
            try:
                await store.swaps.request_swap(session, version=last.from_version, kind=SwapKind.WATCH, reason=reason)
            except Conflict as error:
                log.warning("watch_does_not_go_back", reason=str(error))
                return evidence
        log.warning("watch_goes_back", version=last.version, to=last.from_version, reason=reason)
        return evidence


async def _accuracy_before(session: AsyncSession, own: Sequence[bool], live: CriticVersion) -> tuple[float | None, str]:
    """How often the critic before was right, and where that is known from; None where it is not."""
    if len(own) >= LEAST_OF_OWN:
        return sum(own) / len(own), f"of its own {len(own)} on live traffic"
    if live.run_id is None:
        return None, ""
    run = await store.runs.read_run(session, live.run_id)
    return held_out_accuracy(run.gate), "on the gate's held-out items"


def held_out_accuracy(gate: dict[str, Any] | None) -> float | None:
    """The verdict accuracy of the critic that the gate measured the live one against, in [0, 1]; None without one."""
    axis = ((gate or {}).get("numbers") or {}).get("discriminability")
    return None if axis is None else float(axis["live"])
