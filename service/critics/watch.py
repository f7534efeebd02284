"""Automatic rollback: the live critic's verdicts on labelled traffic against those of the critic before it.

Each labelled interaction since the promotion is one outcome: the verdict that its first critique states agrees with the
label, or it does not; no stated verdict is a disagreement, as for the gate. Outcomes of the two critics are paired
within each class, right and wrong answers, and one observation is the mean of a pair of either class. So neither
accuracy is taken as known, and a change in the share of right answers does not look like a change of the critic. The
outcomes of the critic before are its own on labelled traffic, and after those the ones that the gate measured.

A share of the labelled answers is judged by the critic before too (`gadfly.service.critics.shadow`). There both critics
are compared on the same answer, and an observation is the mean over one right and one wrong answer.

After a promotion that began as a canary, the critic before counts only with outcomes of its time. While it runs, the
label queue gives disagreements of both critics first, and on those both look worse than the one before did earlier.

Both tests are bets on the mean loss (`gadfly.evidence`) with half of the error each, so the evidence is half of the
larger one: over all looks together, a critic that is as good as the one before is rolled back with a probability of at
most `ALPHA`. They have no end: labels that arrive late add to them.

Labels come from callers, and a single caller must not be able to roll back a deployment: with several keys, the loss
must also show without the labels of any one of them (`WITHOUT_A_KEY`). Simulated in `bench/watch.py`.
"""

import asyncio
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from gadfly import store
from gadfly.errors import Conflict, GadflyError
from gadfly.evidence import MeanTest
from gadfly.records import Key, Scope, SwapKind, Tier, now
from gadfly.repeating import repeat
from gadfly.service.critics.pointers import CriticLine, CriticPointers
from gadfly.store.database import Database
from gadfly.store.watch import Outcome, OutcomeLog

ALPHA = 0.01  # probability of ever rolling back a critic that is as good as the one before
WITHOUT_A_KEY = 0.2  # the same, for the labels without those of any one key
LEAST_UNITS = 10  # the fewest observations that can show a loss, if each is the greatest possible one
_EVERY_S = 10.0
_READ_LIMIT_S = 120.0  # of a first look, at all outcomes: some seconds per ten million interactions
_TOLERATED_S = 60.0  # of failures, before the service is not ready

log = structlog.get_logger(__name__)


Pair = tuple[Outcome, Outcome]
"""Outcomes on one answer: of the critic before, and of the live one."""


class Decision(StrEnum):
    """The result of the test so far."""

    ROLL_BACK = "roll_back"
    UNDECIDED = "undecided"
    ONE_KEY = "one_key"  # a loss is shown, by the labels of a single caller among several


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchEvidence:
    """The decision and the numbers it rests on. Accuracies in [0, 1]; None without an outcome."""

    decision: Decision
    units: int  # observations of the test that shows more
    wealth: float  # the evidence of a loss: an e-value
    wealth_without_a_key: float | None  # the least one, over the keys; None before a loss shows, and with one key
    keys: int  # callers whose labels count
    accuracy: dict[str, float | None]  # of the live critic, by class
    accuracy_before: dict[str, float | None]


def losses(before: Sequence[Outcome], after: Sequence[Outcome]) -> list[float]:
    """The loss from one critic to the next in balanced verdict accuracy, one observation in [-1, 1] per unit.

    A unit is an outcome of either critic of each class, in order of arrival; as many as the rarest kind allows.
    """
    kinds = [
        [outcome.is_verdict_right for outcome in outcomes if outcome.was_right is was_right]
        for outcomes in (before, after)
        for was_right in (True, False)
    ]
    return [(r0 - r1 + w0 - w1) / 2 for r0, w0, r1, w1 in zip(*kinds, strict=False)]


def paired_losses(pairs: Sequence[Pair]) -> list[float]:
    """The loss on answers that both critics judged, one observation in [-1, 1] for a right and a wrong answer."""
    right, wrong = (
        [before.is_verdict_right - after.is_verdict_right for before, after in pairs if after.was_right is was_right]
        for was_right in (True, False)
    )
    return [(r + w) / 2 for r, w in zip(right, wrong, strict=False)]


def compare(
    before: Sequence[Outcome], after: Sequence[Outcome], *, callers: int, pairs: Sequence[Pair] | None = None
) -> WatchEvidence:
    """Test whether the live critic is worse than the one before.

    Args:
        before: outcomes of the critic before, in a fixed order.
        after: outcomes of the live critic, in order of arrival.
        callers: active keys of callers; one alone may decide, because there is no other whom it could harm.
        pairs: outcomes of both critics on some of these answers, in a fixed order; None without shadow judging.
    """

    def evidence(key: UUID | None = None) -> tuple[int, float]:
        """The number of observations and their evidence, without the labels of one key."""
        observed = losses(before, [outcome for outcome in after if key is None or outcome.key_id != key])
        wealth = MeanTest.of(observed).wealth
        if pairs is None:
            return len(observed), wealth
        same = paired_losses([pair for pair in pairs if key is None or pair[1].key_id != key])
        paired = MeanTest.of(same).wealth
        return (len(observed), wealth / 2) if wealth > paired else (len(same), paired / 2)

    units, wealth = evidence()
    keys = {outcome.key_id for outcome in after}
    without: list[float] = []
    decision = Decision.UNDECIDED
    if wealth >= 1 / ALPHA:  # only then: a test for each key takes long where there are many
        decision = Decision.ROLL_BACK
        without = [evidence(key)[1] for key in keys if key is not None]
        if (len(keys) > 1 or callers > 1) and without and min(without) < 1 / WITHOUT_A_KEY:
            decision = Decision.ONE_KEY
    return WatchEvidence(
        decision=decision,
        units=units,
        wealth=wealth,
        wealth_without_a_key=min(without) if len(keys) > 1 and without else None,
        keys=len(keys),
        accuracy=_accuracy(after),
        accuracy_before=_accuracy([*before, *(old for old, _ in pairs or ())]),
    )


def measured_outcomes(gate: Mapping[str, Any] | None, *, seed: int) -> list[Outcome]:
    """The outcomes of the critic before that the gate measured on held-out answers, in a random order.

    The samples of one answer agree more than those of two, so each answer counts once, at the rate of its class.
    """
    numbers = (gate or {}).get("numbers") or {}
    live, samples = numbers.get("live") or {}, numbers.get("samples") or 1
    outcomes = []
    for name, was_right in (("discrimination_right", True), ("discrimination_wrong", False)):
        share = live.get(name)
        if share is not None:
            answers = share["of"] // samples
            hits = round(answers * share["value"])
            outcomes += [Outcome(was_right=was_right, is_verdict_right=number < hits) for number in range(answers)]
    random.Random(seed).shuffle(outcomes)  # noqa: S311  # a fixed order, no secret
    return outcomes


class RollbackWatch:
    """Tests the live critics of a deployment, one replica at a time, and requests a rollback when it is worse."""

    def __init__(self, database: Database, pointers: CriticPointers, *, is_on: bool, shadow_share: float) -> None:
        self._database = database
        self._pointers = pointers
        self._is_on = is_on
        self._shadow_share = shadow_share
        self.problems: dict[str, str] = {}
        """Why the watch cannot decide although there are labels, by task; a task of which it can is absent."""
        self._failing: tuple[float, str] | None = None  # since when, and why
        self._logs: dict[str, tuple[OutcomeLog, OutcomeLog]] = {}  # by task: of the live critic, and of the one before

    @property
    def failure(self) -> str | None:
        """Why the watch has not worked for a minute; None while it works, or is off."""
        since, reason = self._failing or (math.inf, "")
        return reason if time.monotonic() - since > _TOLERATED_S else None

    async def run(self) -> None:
        """Test the live critic of each task every ten seconds, until cancelled."""
        if self._is_on:
            await repeat(self._check_all, wait=partial(asyncio.sleep, _EVERY_S), failure="watch_failed")

    async def _check_all(self) -> None:
        try:
            for line in self._pointers:
                await self.check(line)
        except Exception as error:
            reason = str(error) if isinstance(error, GadflyError) else type(error).__name__
            self._failing = (self._failing or (time.monotonic(), ""))[0], reason
            raise
        self._failing = None

    async def check(self, line: CriticLine | None = None) -> WatchEvidence | None:
        """Test the live critic of a task, without one of the default task, with the outcomes so far.

        None if there is nothing to test, or another replica tests it.

        Only a critic that the gate or an admin promoted is tested: a rollback is never undone automatically. Outcomes
        are remembered from look to look, and read again before a rollback.
        """
        line = line or self._pointers.default
        last = line.tested_promotion()
        if last is None:
            return None
        live = await self._pointers.resolve(last.version)
        async with self._database.session(limit_s=_READ_LIMIT_S) as session:
            if not await store.watch.lock_watch(session, line.task):
                return None
            await session.execute(text(f"SET LOCAL statement_timeout = {int(1000 * _READ_LIMIT_S)}"))
            since = await store.watch.live_since(session, line.task)
            is_canary = await store.canaries.begun_by(session, last.id) is not None
            since_before = since if is_canary else None
            logs = self._logs.get(line.task)
            if logs is None or (logs[0].version, logs[0].since) != (last.version, since):
                logs = OutcomeLog(last.version, since=since), OutcomeLog(last.from_version, since=since_before)
            measured: list[Outcome] = []
            if live.run_id is not None and not is_canary:
                run = await store.runs.read_run(session, live.run_id)
                measured = measured_outcomes(run.gate, seed=last.version)
            evidence, after = await self._compared(session, logs, measured)
            if evidence.decision is Decision.ROLL_BACK:
                logs = OutcomeLog(last.version, since=since), OutcomeLog(last.from_version, since=since_before)
                evidence, after = await self._compared(session, logs, measured)
            self._logs[line.task] = logs
            self._note(line, _problem(evidence, after, is_paired=self._shadow_share > 0))
            if evidence.decision is not Decision.ROLL_BACK:
                return evidence
            reason = (
                f"on labelled traffic version {last.version} judges {_rates(evidence.accuracy)} correctly, and version "
                f"{last.from_version} judged {_rates(evidence.accuracy_before)}: evidence of a loss "
                f"{evidence.wealth:.3g} from {evidence.units} pairs of both classes, and {1 / ALPHA:g} is needed"
            )
            try:
                await store.swaps.request_swap(session, version=last.from_version, kind=SwapKind.WATCH, reason=reason)
            except Conflict as error:
                log.warning("watch_rollback_refused", reason=str(error))
                return evidence
        log.warning("watch_rollback_requested", version=last.version, to=last.from_version, reason=reason)
        return evidence

    def _note(self, line: CriticLine, problem: str | None) -> None:
        if problem is None:
            self.problems.pop(line.task, None)
        else:
            self.problems[line.task] = problem

    async def _compared(
        self, session: AsyncSession, logs: tuple[OutcomeLog, OutcomeLog], measured: Sequence[Outcome]
    ) -> tuple[WatchEvidence, list[Outcome]]:
        """The evidence with what is new in both logs, and the outcomes of the live critic."""
        live, before = logs
        await live.refresh(session)
        await before.refresh(session)
        pairs = await store.watch.paired_outcomes(session, live.version, before=before.version, since=live.since)
        moment = now()
        keys = await store.keys.list_keys(session)
        callers = sum(_labels(key) and key.is_active(moment) for key in keys)
        after = live.outcomes
        evidence = await asyncio.to_thread(
            compare,
            [*before.outcomes, *measured],
            after,
            callers=callers,
            pairs=pairs if self._shadow_share > 0 else None,
        )
        return evidence, after


def _labels(key: Key) -> bool:
    """Whether it is a caller's key that gives labels."""
    return key.tier is Tier.CALLER and not {Scope.USE, Scope.LABEL}.isdisjoint(key.granted)


def _problem(evidence: WatchEvidence, after: Sequence[Outcome], *, is_paired: bool) -> str | None:
    if evidence.decision is Decision.ONE_KEY:
        return (
            "labelled traffic shows a loss, but only by the labels of one key: automatic rollback needs a second key "
            "whose labels agree"
        )
    right = sum(outcome.was_right for outcome in after)
    pairs = min(right, len(after) - right)
    if len(after) >= LEAST_UNITS and pairs < LEAST_UNITS:
        return (
            f"{right} right and {len(after) - right} wrong labelled answers are too few for automatic rollback, which "
            f"needs {LEAST_UNITS} of each"
        )
    if pairs > evidence.units and not is_paired:
        return (
            f"the critic before has labelled answers for {evidence.units} pairs and the live one for {pairs}: the rest "
            "cannot be compared, so automatic rollback sees large losses only (set GADFLY_SHADOW_SHARE above 0)"
        )
    return None


def _accuracy(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    rates: dict[str, float | None] = {}
    for name, was_right in (("right", True), ("wrong", False)):
        same = [outcome.is_verdict_right for outcome in outcomes if outcome.was_right is was_right]
        rates[name] = sum(same) / len(same) if same else None
    return rates


def _rates(accuracy: Mapping[str, float | None]) -> str:
    return " and ".join(f"{rate:.1%} of {name} answers" for name, rate in accuracy.items() if rate is not None)
