"""A deployment that has run for a month: three critics, a run of each, traffic, votes, swaps and a run in progress."""

import json
import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select

from gadfly import store
from gadfly.api_keys import issue_key
from gadfly.grading import Grade
from gadfly.records import Feedback, Interaction, Key, Kind, SwapKind, SwapStatus, Tier, new_id, now
from gadfly.settings import SplitBlocks
from gadfly.store.database import Database
from gadfly.store.tables import (
    CanaryRow,
    CriticVersionRow,
    RunEventRow,
    SwapReceiptRow,
    SwapRow,
    TrainingRunRow,
    WebhookDeliveryRow,
)
from gadfly.training import EventKind, GateOutcome, RunStatus, Stage, TrainConfig, Trigger
from gadfly.verdict import Verdict, VerdictSource
from gadfly.webhooks import DeliveryStatus, WebhookEndpoint, WebhookEvent, new_secret
from tests.support.records import make_critique, make_feedback, make_interaction, make_key, make_refinement

DAYS = 30
STEPS = 60
_ACCURACY = {0: 0.64, 1: 0.83, 2: 0.86}
_PLACES = (
    ("baker", "rolls", "boxes", "gives away"),
    ("gardener", "bulbs", "trays", "plants"),
    ("teacher", "pens", "packs", "hands out"),
    ("farmer", "eggs", "cartons", "sells"),
    ("librarian", "books", "shelves", "lends"),
)


class World:
    """The ids that tests look for."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.admin_key = ""  # a secret, as are the next
        self.caller_key = ""
        self.finished_run = new_id()
        self.undecided_run = new_id()
        self.running_run = new_id()
        self.refined = new_id()
        self.waiting: list[UUID] = []


async def fill(database: Database, *, base_model: str, traffic: int = 240, waiting: int = 40) -> World:
    """Store the world. The live critic is version 0, which needs no adapter."""
    world, rng, today = World(), random.Random(5), now()
    world.keys = [make_key(name=name, hint=f"gf_{name[:4]}") for name in ("ada", "grace")]
    limits = {"requests_per_minute": 600, "engine_calls_per_minute": 1200, "tokens_per_day": 2_000_000}
    world.keys.append(make_key(name="evaluation bot", hint="gf_eval", max_in_flight=8, **limits))
    async with database.session() as session:
        await store.critics.ensure_version_zero(session, base_model)
        for key in world.keys:
            await store.keys.insert_key(session, key, key.id.bytes)
        _, world.admin_key = await issue_key(session, name="operations", tier=Tier.ADMIN)
        _, world.caller_key = await issue_key(session, name="shop assistant", tier=Tier.CALLER)
    async with database.session() as session:
        session.add_all(_runs(world, today))
        await session.flush()
        session.add_all(_critics(world, today, base_model))
        await session.flush()
        *swaps, receipt = _swaps(today)
        session.add_all(swaps)
        await session.flush()
        session.add(receipt)
        session.add_all(_events(world, today, rng))
        await store.critics.set_pointer(session, "candidate", 2)
    interactions = list(_traffic(rng, today, traffic))
    feedback = list(_votes(world, rng, interactions))
    fresh = list(_fresh(rng, today, waiting))
    world.waiting = [interaction.id for interaction in fresh]
    refined = _refined(today)
    world.refined = refined.id
    async with database.session() as session:
        await store.interactions.insert_interactions(
            session, [*interactions, *fresh, refined], feedback, heldout_share=0.35, split_blocks=SplitBlocks.EXACT
        )
        others = [(each.id, _other(each.verdict)) for each in fresh[1 : waiting // 4]]
        await store.shadow.insert_verdicts(session, 1, others)
    return world


async def begin_canary(database: Database) -> None:
    """Let the swap to version 1 be a canary that began ten minutes ago."""
    async with database.session() as session:
        swap_id = await session.scalar(select(SwapRow.id).where(SwapRow.kind == SwapKind.GATE))
        session.add(
            CanaryRow(
                swap_id=swap_id, task="math", version=1, from_version=0, share=0.25, for_s=86_400, for_requests=500,
                started_at=now() - timedelta(minutes=10), ended_at=None, outcome=None, reason=None,
            )
        )  # fmt: skip


async def add_webhooks(database: Database) -> None:
    """Two webhooks, and a delivery in each state. None is due, so nothing is sent."""
    today = now()
    every, one = (
        WebhookEndpoint(
            id=new_id(), url=f"http://127.0.0.1:9/{path}", events=events, secret=new_secret(), created_at=today
        )
        for path, events in (
            ("hooks/gadfly", tuple(WebhookEvent)),
            ("services/a-long-path/that-names/the-channel-of-the-team", (WebhookEvent.RUN_ALARM,)),
        )
    )
    outcomes = (
        (every, WebhookEvent.CRITIC_PROMOTED, DeliveryStatus.DELIVERED, 1, None),
        (every, WebhookEvent.RUN_ENDED, DeliveryStatus.DEAD, 9, "status 503"),
        (one, WebhookEvent.RUN_ALARM, DeliveryStatus.PENDING, 3, "no answer within 15 s"),
    )
    async with database.session() as session:
        for endpoint in (every, one):
            await store.webhooks.insert_endpoint(session, endpoint)
        session.add_all(
            WebhookDeliveryRow(
                id=new_id(), endpoint_id=endpoint.id, event=event, created_at=today - timedelta(minutes=5 * place),
                body=json.dumps({"type": event, "timestamp": today.isoformat(), "data": {"task": "math"}}),
                status=status, attempts=attempts, next_at=today + timedelta(hours=1), problem=problem,
                ended_at=None if status is DeliveryStatus.PENDING else today,
            )
            for place, (endpoint, event, status, attempts, problem) in enumerate(outcomes)
        )  # fmt: skip


def _other(verdict: Verdict | None) -> Verdict:
    return Verdict.CORRECT if verdict is Verdict.INCORRECT else Verdict.INCORRECT


def _problem(rng: random.Random, *, is_right: bool) -> tuple[str, str, str, list[str]]:
    """A question, an answer, the right answer, and the sentences of the answer."""
    who, what, where, does = rng.choice(_PLACES)
    each, count = rng.randint(6, 24), rng.randint(3, 19)
    whole = each * count
    gone = rng.randint(5, whole - 1)
    slip = 0 if is_right else rng.choice((-10, -1, 1, 2, 10))
    stated = whole - gone + slip
    question = (
        f"A {who} keeps {each} {what} in each of {count} {where}. She {does} {gone} of them. How many {what} are left?"
    )
    steps = [
        f"There are {count} * {each} = {whole} {what} at first.",
        f"She {does} {gone} of them, so {whole} - {gone} = {stated} {what} are left.",
    ]
    return question, " ".join(steps) + f" The answer is {stated}.", str(whole - gone), steps


def _critique_text(steps: list[str], verdict: Verdict) -> str:
    good = verdict is Verdict.CORRECT
    last = "The subtraction gives this number." if good else "The subtraction does not give this number; do it again."
    return (
        f"Step sentence: {steps[0]}\nCorrectness of the step: Correct\n"
        "Explanation: The product is what the question describes.\n"
        f"Step sentence: {steps[1]}\nCorrectness of the step: {'Correct' if good else 'Wrong'}\nExplanation: {last}\n"
        f"Correctness of the final answer: {'Correct' if good else 'Wrong'}\nExplanation: "
        + ("Both steps follow from the question." if good else "The second step is at fault, so the answer is too.")
    )


def _judged(
    rng: random.Random, at: datetime, *, version: int, is_right: bool, verdict: Verdict, confidence: float
) -> Interaction:
    question, response, reference, steps = _problem(rng, is_right=is_right)
    p_correct = confidence if verdict is Verdict.CORRECT else 1 - confidence
    critique = make_critique(
        text=_critique_text(steps, verdict),
        stated=verdict,
        verdict=verdict,
        verdict_source=VerdictSource.STATED,
        p_correct=p_correct,
        p_incorrect=1 - p_correct,
    )
    return make_interaction(
        id=new_id(),
        created_at=at,
        question=question,
        response=response,
        critiques=(critique,),
        verdict=verdict,
        critic_version=version,
        adapter_sha256=None if version == 0 else f"{version}" * 64,
        metadata={"app": "shop assistant", "expected": reference},
        latency_ms=rng.uniform(180, 900),
    )


def _traffic(rng: random.Random, today: datetime, count: int) -> Iterator[Interaction]:
    for number in range(count):
        at = today - timedelta(days=DAYS * (1 - number / count), minutes=-rng.randint(0, 50))
        version = 0 if at < today - timedelta(days=20) or at > today - timedelta(days=2) else 1
        is_right = rng.random() < 0.55
        hits = rng.random() < _ACCURACY[version]
        verdict = Verdict.CORRECT if is_right == hits else Verdict.INCORRECT
        confidence = min(0.995, max(0.52, rng.gauss(0.84 if hits else 0.68, 0.1)))
        interaction = _judged(
            rng, min(at, today), version=version, is_right=is_right, verdict=verdict, confidence=confidence
        )
        interaction.metadata["is_right"] = is_right
        yield interaction


def _votes(world: World, rng: random.Random, interactions: list[Interaction]) -> Iterator[Feedback]:
    for number, interaction in enumerate(interactions):
        if rng.random() < 0.15:
            continue
        at = interaction.created_at + timedelta(minutes=rng.randint(5, 90))
        is_right = bool(interaction.metadata["is_right"])
        yield make_feedback(interaction.id, key_id=world.keys[number % 2].id, created_at=at, correct=is_right)
        if number % 40 == 7:
            yield make_feedback(interaction.id, key_id=world.keys[2].id, created_at=at, correct=not is_right)


def _fresh(rng: random.Random, today: datetime, count: int) -> Iterator[Interaction]:
    for number in range(count):
        confidence = 0.5 + 0.45 * number / count
        verdict = rng.choice((Verdict.CORRECT, Verdict.INCORRECT))
        yield _judged(
            rng,
            today - timedelta(minutes=2 + 3 * number),
            version=0,
            is_right=rng.random() < 0.5,
            verdict=verdict,
            confidence=confidence,
        )


def _refined(today: datetime) -> Interaction:
    steps = ["She packs 5 * 12 = 60 rolls.", "She gives 17 away, so 60 - 17 = 33 rolls are left."]
    critique = make_critique(text=_critique_text(steps, Verdict.INCORRECT), p_correct=0.08, p_incorrect=0.92)
    rewrite = make_refinement(
        critique.id,
        text="She packs 5 * 12 = 60 rolls. She gives 17 away, so 60 - 17 = 43 rolls are left. The answer is 43.",
        grade=Grade.RIGHT,
    )
    return make_interaction(
        refined=True,
        kind=Kind.REFINE,
        created_at=today,
        question="A baker packs 12 rolls in a box. She fills 5 boxes and gives away 17 rolls. How many are left?",
        response=" ".join(steps) + " The answer is 33.",
        reference="43",
        grade=Grade.WRONG,
        critiques=(critique,),
        refinements=(rewrite,),
        refined_response=rewrite.text,
        parameters={"votes": 1, "rounds": 1, "samples": 1, "when": "always"},
    )


# ----------------------------------------------------------------------------------------------------- critics and runs


def _axis(name: str, difference: float, reach: float) -> dict[str, Any]:
    return {
        "name": name, "units": 180, "live": 0.64, "candidate": 0.64 + difference, "difference": difference,
        "low": difference - reach, "high": difference + reach, "gain": 31.0 if difference > reach else 2.4,
        "within_margin": 50.0, "loss": 0.1,
    }  # fmt: skip


def _gate(outcome: GateOutcome, difference: float) -> dict[str, Any]:
    helpful = _axis("helpfulness", difference / 3, 0.045)
    return {
        "outcome": outcome.value,
        "live": 0,
        "numbers": {
            "items": 240, "right": 128, "wrong": 112, "questions": 214, "with_reference": 160, "confidence": 0.95,
            "margin": 0.05, "min_items": 20, "samples": 4, "seed": 7, "wealth": 31.0 if difference > 0.1 else 6.2,
            "wealth_needed": 25.0, "discriminability": _axis("discriminability", difference, 0.06),
            "helpfulness": helpful, "utility": [_axis("utility at 48 % right", difference * 0.9, 0.07)], "anchor": [],
            "apart": None, "traffic": {"right": 120, "wrong": 100}, "live": {}, "candidate": {},
            "threshold_alone": None, "evidence": {"units": []},
        },
        "reasons": [
            f"Discriminability changed by {100 * difference:+.1f} points over 180 units of whole questions.",
            f"Helpfulness changed by {100 * difference / 3:+.1f} points; a loss of 5 points is ruled out.",
        ],
    }  # fmt: skip


def _runs(world: World, today: datetime) -> list[TrainingRunRow]:
    config = TrainConfig(seed=7, steps_stage_1=40, steps_stage_2=20).model_dump(mode="json")

    def run(id: UUID, days: float, **fields: Any) -> TrainingRunRow:
        began = today - timedelta(days=days)
        return TrainingRunRow(
            **{
                "id": id, "status": RunStatus.SUCCEEDED, "trigger": Trigger.LABELS, "created_at": began,
                "started_at": began, "finished_at": began + timedelta(hours=2), "config": config, "attempt": 1,
                "stage": Stage.PUBLISH, "step": STEPS, "steps": STEPS,
                "manifest": {"base_sha256": "b" * 64, "seed": 7, "answers": [{"id": str(new_id())} for _ in range(9)]},
                **fields,
            }
        )  # fmt: skip

    return [
        run(world.finished_run, 20.2, gate=_gate(GateOutcome.PROMOTE, 0.19), outcome=GateOutcome.PROMOTE),
        run(
            world.undecided_run, 1.4, trigger=Trigger.ADMIN, gate=_gate(GateOutcome.NOT_ENOUGH_EVIDENCE, 0.04),
            outcome=GateOutcome.NOT_ENOUGH_EVIDENCE,
        ),
        run(
            world.running_run, 0.02, trigger=Trigger.ADMIN, status=RunStatus.RUNNING, finished_at=None,
            stage=Stage.STAGE_1, step=24, eta_s=1260.0, manifest=None,
        ),
    ]  # fmt: skip


def _critics(world: World, today: datetime, base_model: str) -> list[CriticVersionRow]:
    return [
        CriticVersionRow(
            version=version,
            parent=version - 1,
            base_model=base_model,
            adapter_path=f"run-{version}",
            adapter_sha256=f"{version}" * 64,
            created_at=today - timedelta(days=days),
            run_id=run_id,
            prompt_set="stepwise@1",
            task="math",
            verdict_only=False,
        )
        for version, days, run_id in ((1, 20.1, world.finished_run), (2, 1.3, world.undecided_run))
    ]


def _swaps(today: datetime) -> list[Any]:
    def swap(version: int, before: int, kind: SwapKind, days: float, **fields: Any) -> SwapRow:
        at = today - timedelta(days=days)
        return SwapRow(
            **{
                "id": new_id(), "version": version, "from_version": before, "kind": kind, "status": SwapStatus.DONE,
                "requested_at": at, "finished_at": at + timedelta(seconds=4), "reason": None, **fields,
            }
        )  # fmt: skip

    promoted = swap(1, 0, SwapKind.GATE, 20, reason="a gain of discriminability is proven")
    moved = promoted.finished_at or today
    receipt = SwapReceiptRow(
        id=new_id(),
        swap_id=promoted.id,
        replica_id=new_id(),
        version=1,
        created_at=moved,
        details={
            "from_version": 0,
            "adapter_sha256": "1" * 64,
            "engines": [
                {"engine": "http://engine:8001", "vllm": "0.32.0", "probes": 8, "load_s": 0.8, "probe_s": 1.1,
                 "deltas": {"tokens": 412, "from_trainer": 0.0021, "from_base": 3.42}}
            ],
            "in_flight": 3, "lost": 0, "mixed": {"probes": 16, "mixed": 0},
            "times": {"requested_at": promoted.requested_at.isoformat(), "moved_at": moved.isoformat()},
        },
    )  # fmt: skip
    back = swap(0, 1, SwapKind.ROLLBACK, 2, reason="too many false alarms on refunds")
    refused = swap(2, 0, SwapKind.PROMOTE, 1, status=SwapStatus.REFUSED, reason="engine http://engine:8001 has no room")
    return [promoted, back, refused, receipt]


def _events(world: World, today: datetime, rng: random.Random) -> list[RunEventRow]:
    events: list[RunEventRow] = []

    def add(run_id: UUID, at: datetime, kind: EventKind, **data: Any) -> None:
        events.append(RunEventRow(run_id=run_id, created_at=at, kind=kind, data=data))

    for run_id, days, steps in (
        (world.finished_run, 20.2, STEPS),
        (world.undecided_run, 1.4, STEPS),
        (world.running_run, 0.02, 24),
    ):
        at = today - timedelta(days=days)
        for stage in (Stage.SELECT, Stage.POOL, Stage.WARM_START):
            add(run_id, at, EventKind.STAGE, stage=stage.value, step=0)
        for step in range(1, steps + 1):
            if step in (1, 41):
                add(run_id, at, EventKind.STAGE, stage=(Stage.STAGE_1 if step == 1 else Stage.STAGE_2).value, step=step)
            done = step / STEPS
            noise = rng.gauss(0, 0.03)
            add(
                run_id, at + timedelta(seconds=60 * step), EventKind.STEP, step=step, seconds=58 + rng.random() * 9,
                metrics={
                    "mean_score": 0.42 + 0.4 * done + noise, "discrimination_right": 0.71 + 0.16 * done + noise,
                    "discrimination_wrong": 0.5 + 0.33 * done - noise, "discrimination_balanced": 0.6 + 0.25 * done,
                    "kl": 0.02 + 0.3 * done, "mean_tokens": 96 + 22 * done + 40 * noise, "entropy": 0.5 - 0.2 * done,
                    "answer_leakage": 0.02 + 0.03 * rng.random(), "no_verdict": 0.08 * (1 - done),
                    "zero_advantage": 0.2 + noise, "logprob_gap_mean": 0.003, "verdict_drift": 0.05 + abs(noise),
                },
            )  # fmt: skip
            if step in (1, 30):
                verdict = Verdict.CORRECT if step == 1 else Verdict.INCORRECT
                add(
                    run_id, at + timedelta(seconds=60 * step + 10), EventKind.SAMPLES, step=step, stage="stage_1",
                    samples=[
                        {
                            "interaction_id": str(new_id()), "was_right": False, "verdict": verdict.value,
                            "score": float(step > 1), "refined": None, "critique": _critique_text(
                                ["There are 5 * 12 = 60 rolls.", "She sells 17, so 60 - 17 = 33 are left."], verdict
                            ),
                        }
                    ],
                )  # fmt: skip
            if step % 10 == 0:
                add(
                    run_id, at + timedelta(seconds=60 * step + 20), EventKind.VALIDATION, step=step,
                    metrics={"balanced": 0.62 + 0.2 * done, "coverage": 0.95, "merit": 0.5 + done / 4},
                )  # fmt: skip
        if steps == STEPS:
            add(run_id, at + timedelta(hours=1), EventKind.NOTE, message="The best checkpoint is that of step 60.")
            add(run_id, at + timedelta(hours=2), EventKind.STATUS, status="succeeded", error=None)
    add(
        world.undecided_run, today - timedelta(days=1.38), EventKind.ALARM,
        message="verdict drift 0.46 is above 0.45 for 5 steps", evidence={"verdict_drift": 0.46},
    )  # fmt: skip
    return events
