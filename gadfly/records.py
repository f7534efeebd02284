"""The records of a deployment, as plain values: queries return them and the recorder stores them.

`gadfly/store/tables.py` defines their tables and `service/wire/` their HTTP shapes. The spool stores them as JSON, so
every field has a JSON form, and a record read back equals the record written.
"""

from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

import uuid_utils.compat

from gadfly.calibration import Calibration, CalibrationReport
from gadfly.grading import Grade
from gadfly.task_names import DEFAULT_TASK
from gadfly.training import GateOutcome
from gadfly.verdict import Verdict, VerdictSource


class Kind(StrEnum):
    """The origin of an interaction."""

    CRITIQUE = "critique"
    REFINE = "refine"
    CHAT = "chat"  # an answer of the actor, or one refined for the caller, by /v1/chat/completions
    IMPORT = "import"


class Split(StrEnum):
    """The side of the training wall that a question is on, permanently."""

    TRAIN = "train"
    HELDOUT = "heldout"


class SwapKind(StrEnum):
    """The reason for a move of the live pointer."""

    GATE = "gate"  # the gate decided to promote, and automatic promotion is on
    PROMOTE = "promote"  # an admin
    ROLLBACK = "rollback"  # an admin
    WATCH = "watch"  # labelled live traffic shows that the new critic is worse


class SwapStatus(StrEnum):
    PENDING = "pending"
    DONE = "done"  # the pointer moved
    REFUSED = "refused"  # the old critic stays live


class CanaryOutcome(StrEnum):
    """How a canary ended."""

    WIDENED = "widened"  # its critic answers all requests
    ROLLED_BACK = "rolled_back"  # the critic before answers all requests again
    REPLACED = "replaced"  # another critic, or another base model, took its place


class Tier(StrEnum):
    """The permissions of a key: callers use the service and see their own rows, admins may see and do everything."""

    CALLER = "caller"
    ADMIN = "admin"


class Scope(StrEnum):
    """What a key of the tier caller may do. Admin keys may do everything, also what no scope allows."""

    USE = "use"  # have answers judged and rewritten; read, label and delete the key's own
    LABEL = "label"  # take all callers' answers from the label queue, and vote on them
    READ = "read"  # read the traffic of all callers, labels, runs and critics
    TRAIN = "train"  # plan, request, follow, cancel and reproduce training runs


class Ruling(StrEnum):
    """An admin's decision about the label of an answer."""

    RIGHT = "right"
    WRONG = "wrong"
    NONE = "none"  # it gets no label: it cannot be judged
    VOTES = "votes"  # the votes decide, as without a ruling


class AdminAction(StrEnum):
    """What an admin did."""

    DISTRUST_KEY = "distrust_key"
    TRUST_KEY = "trust_key"
    SET_LABEL = "set_label"
    CREATE_KEY = "create_key"
    REVOKE_KEY = "revoke_key"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    WITHDRAW_FEEDBACK = "withdraw_feedback"  # of another key
    FORGET = "forget"
    WIDEN_CANARY = "widen_canary"  # its critic answers all requests from then on
    CREATE_WEBHOOK = "create_webhook"
    DELETE_WEBHOOK = "delete_webhook"
    LIMIT_KEY = "limit_key"


class LabelState(StrEnum):
    """Whether an answer has a label, and which."""

    RIGHT = "right"
    WRONG = "wrong"
    NONE = "none"
    CONFLICT = "conflict"  # none, because its votes differ


class QueueReason(StrEnum):
    """Why a label of an answer teaches much, the strongest first."""

    CONFLICT = "conflict"  # the votes differ, so that there is no label
    DISAGREEMENT = "disagreement"  # another critic gave the other verdict
    CONTRADICTED = "contradicted"  # the only vote contradicts a critic that is sure
    UNCERTAIN = "uncertain"  # the critic's confidence is near 0.5
    NEW = "new"  # no critic has judged it


class StopReason(StrEnum):
    """The reason why a refinement loop ended."""

    ROUNDS = "rounds"  # every requested round was run
    JUDGED_CORRECT = "judged_correct"  # when=if_incorrect, and the critic judged the answer correct


class FeedbackSource(StrEnum):
    CALLER = "caller"
    IMPORT = "import"


class Contents(StrEnum):
    """What the rows of an export are."""

    INTERACTIONS = "interactions"
    PAIRS = "pairs"
    SFT = "sft"


class Subject(StrEnum):
    """What pairs and rows for fine-tuning are about."""

    ANSWERS = "answers"
    CRITIQUES = "critiques"
    REWRITES = "rewrites"  # edits of callers, in place of the actor's rewrites


def new_id() -> UUID:
    """A UUIDv7: unique, and ordered by creation."""
    return uuid_utils.compat.uuid7()


def now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Token counts, as reported by the engine."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """Requests that an actor's own endpoint answered, and their tokens as it counted them."""

    requests: int = 0
    usage: Usage = Usage()


@dataclass(frozen=True, kw_only=True, slots=True)
class Critique:
    """One critique that the critic wrote, or that a caller supplied to /refine (`supplied`)."""

    id: UUID
    round: int  # counts from 0
    sample: int  # counts from 0
    text: str
    stated: Verdict  # the verdict in the text: that of exactly one final verdict line, or UNPARSED
    verdict: Verdict  # the reported verdict: the stated one, else read from the engine
    verdict_source: VerdictSource
    p_correct: float | None  # probability of the verdict token "correct" after the verdict prefix, full vocabulary
    p_incorrect: float | None
    finish_reason: str | None  # the engine's: stop, length
    usage: Usage = Usage()
    supplied: bool = False
    calibrated_p_right: float | None = None  # that the answer is right; None: the critic has no calibration

    @property
    def calibrated_confidence(self) -> float | None:
        """Probability that the reported verdict is right, in [0, 1]; below 0.5 where the other verdict is likelier."""
        if self.calibrated_p_right is None or self.verdict is Verdict.UNPARSED:
            return None
        return self.calibrated_p_right if self.verdict is Verdict.CORRECT else 1 - self.calibrated_p_right

    @property
    def confidence(self) -> float | None:
        """Probability of the reported verdict among the two verdict tokens, in [0, 1]."""
        if self.p_correct is None or self.p_incorrect is None or self.verdict is Verdict.UNPARSED:
            return None
        total = self.p_correct + self.p_incorrect
        if total <= 0:
            return None
        return (self.p_correct if self.verdict is Verdict.CORRECT else self.p_incorrect) / total


@dataclass(frozen=True, kw_only=True, slots=True)
class Refinement:
    """One answer that the actor rewrote with a critique."""

    id: UUID
    round: int
    sample: int
    critique_id: UUID
    text: str
    finish_reason: str | None
    grade: Grade | None  # against the reference, when one is known
    usage: Usage = Usage()

    @property
    def is_cut(self) -> bool:
        """Whether its token limit ended it."""
        return self.finish_reason == "length"


@dataclass(frozen=True, kw_only=True, slots=True)
class Interaction:
    """One answered /critique or /refine, one answer of /v1/chat/completions, or one imported row."""

    id: UUID
    kind: Kind
    created_at: datetime
    episode_id: UUID
    key_id: UUID | None  # the caller's key; None in keyless mode and for imports
    request_id: str | None  # the caller's idempotency key, unique per caller
    fingerprint: str | None  # sha256 (hex) of the request body under this request_id
    question: str
    response: str | None  # None: an imported question, for which the actor samples answers
    reference: str | None
    grade: Grade | None  # of `response`, against the newest known reference
    metadata: dict[str, Any]
    parameters: dict[str, Any]  # of the request: n, temperature, max_tokens, seed, rounds, when, samples, ...
    model: str | None  # the actor that refined; the critic's base for a critique; an imported row's own
    prompt_set: str | None
    critic_version: int | None  # None for imports
    adapter_sha256: str | None
    verdict: Verdict | None  # majority over samples (critique) or of the last round (refine)
    refined_response: str | None
    stop_reason: StopReason | None
    usage: Usage
    latency_ms: float | None
    critiques: tuple[Critique, ...] = ()
    refinements: tuple[Refinement, ...] = ()
    grader: int | None = None  # the version of the task's grader; None without a reference, and for grades of 0.1.0
    grade_problem: str | None = None  # why `reference` cannot be read: there is no grade
    conversation: dict[str, Any] | None = None  # of /v1/chat/completions: `messages` with the answer, and `tools`
    task: str = DEFAULT_TASK  # the name of the task that it was asked under
    task_version: str | None = None  # of the task's files; None for rows of releases that knew no tasks
    critique_due: bool = False  # stored with the first copy: the live critic judges it in the background


@dataclass(frozen=True, slots=True)
class TaskId:
    """The task that a row belongs to: its name, and the version of its files."""

    name: str
    version: str | None = None  # None: not known, as for rows of releases that knew no tasks


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """Feedback about an interaction, or about one of its critiques or refinements. Appended, never overwritten.

    `correct` and `rating` are about the critique or the refinement that is named, else about the response.
    `gadfly/votes.py` says which label they give.
    """

    id: UUID
    interaction_id: UUID
    key_id: UUID | None
    created_at: datetime
    source: FeedbackSource
    critique_id: UUID | None = None
    refinement_id: UUID | None = None
    correct: bool | None = None
    helpful: bool | None = None
    reference: str | None = None
    edited_response: str | None = None
    edited_reference: str | None = None  # the answer that `edited_response` states, if it can be read
    rating: int | None = None  # 1 (worst) to 5 (best)
    comment: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    grade: Grade | None = None  # of the interaction's `response` against this feedback's reference, also an edited one
    refinement_grades: dict[UUID, Grade] = field(default_factory=dict)  # of its refinements, against the same
    grader: int | None = None  # as in `Interaction`
    grade_problem: str | None = None  # why `reference` cannot be read: there is no grade


class CriticStatus(StrEnum):
    """Whether a critic was trained, and measured by the gate of its run."""

    UNTRAINED = "untrained"  # version 0, the base model under the critic's prompt
    EXAMPLES = "examples"  # the base model with labelled examples in the critic's prompt
    TRAINED = "trained"

    @classmethod
    def of(cls, *, adapter_sha256: str | None, examples: int = 0) -> "CriticStatus":
        """The status of a critic with this adapter, or none, and this number of examples in its prompt."""
        if adapter_sha256 is not None:
            return cls.TRAINED
        return cls.EXAMPLES if examples else cls.UNTRAINED


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticVersion:
    """One immutable critic. A version without adapter and examples is the base model under the prompts of its task.

    A later version has an adapter, or labelled examples in its prompt. Versions are numbered over all tasks, so that a
    name of an engine belongs to one critic.
    """

    version: int
    parent: int | None
    base_model: str
    adapter_path: str | None
    adapter_sha256: str | None
    created_at: datetime
    run_id: UUID | None = None  # the training run that made it
    prompt_set: str | None = None  # the prompts it was trained with; None for version 0
    task: str = DEFAULT_TASK  # the name of the task whose answers it judges
    task_version: str | None = None  # of the task's files; None for critics of releases that knew no tasks
    origin: dict[str, Any] | None = None  # of a pulled critic: `source`, and there `run_id` and `gate`
    verdict_only: bool = False  # trained without references: the effect of its critiques on rewrites was never rewarded
    examples: int = 0  # labelled examples in its prompt
    examples_sha256: str | None = None  # of the examples' texts

    @property
    def status(self) -> CriticStatus:
        return CriticStatus.of(adapter_sha256=self.adapter_sha256, examples=self.examples)

    @property
    def is_base(self) -> bool:
        """Whether it is the base model under the critic's prompt and nothing else."""
        return self.adapter_path is None and not self.examples

    @property
    def engine_name(self) -> str:
        """The model name that the engine serves this critic under.

        It carries the start of the adapter's hash: after a restore of an older database, or in two deployments that
        share an engine, a version's number may stand for two adapters.
        """
        if self.adapter_path is None:
            return "base"
        return f"critic@{self.version}" + (f"-{self.adapter_sha256[:8]}" if self.adapter_sha256 else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Swap:
    """One move of the live pointer: pending, done or refused. `version` is its target."""

    id: UUID
    version: int
    from_version: int
    kind: SwapKind
    status: SwapStatus
    requested_at: datetime
    finished_at: datetime | None
    key_id: UUID | None
    reason: str | None  # for the request, or for the refusal
    task: str = DEFAULT_TASK  # whose live pointer it moves


@dataclass(frozen=True, kw_only=True, slots=True)
class CanaryTerms:
    """How a promotion begins: with a share of the requests, until a time or a number of them is reached."""

    share: float  # in (0, 1)
    for_s: int | None  # None: not limited by time
    for_requests: int | None  # stored answers of its critic; None: not limited by them


@dataclass(frozen=True, kw_only=True, slots=True)
class Canary:
    """A promotion whose critic first answers a share of the requests; the critic before answers the rest."""

    swap_id: UUID
    task: str
    version: int
    from_version: int
    share: float
    for_s: int | None
    for_requests: int | None
    started_at: datetime | None  # None: its swap has not moved the pointer
    ended_at: datetime | None
    outcome: CanaryOutcome | None
    reason: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SwapReceipt:
    """The evidence of one replica in one swap: hashes, deltas, engines, leases, times."""

    id: UUID
    swap_id: UUID
    replica_id: UUID
    version: int
    created_at: datetime
    details: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticCalibration:
    """How a critic version's probabilities become the probability that an answer is right, and how well they do."""

    version: int
    created_at: datetime
    calibration: Calibration
    report: CalibrationReport


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """Answers that a critic learned from and that were forgotten since; 0: only a version that it continues did."""

    answers: int
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticHistory:
    """The gate's decision about a critic version, and the swaps that made it live."""

    outcome: GateOutcome | None
    gate: dict[str, Any] | None  # the gate's report
    calibration: CriticCalibration | None
    swaps: list[Swap]  # the newest first
    receipts: list[SwapReceipt]  # the newest first
    forgotten: Loss | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Replica:
    """One process of the service, as it last reported itself."""

    id: UUID
    started_at: datetime
    seen_at: datetime
    live_version: int | None  # the version it answers with for its default task
    leases: dict[int, int]  # requests in flight by version
    engines: tuple[str, ...]
    problem: str | None  # why it does not answer with the version of a live pointer
    live: dict[str, int] = field(default_factory=dict)  # the version it answers with, by task


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyLimits:
    """How much a key may use; None: without limit."""

    requests_per_minute: int | None = None
    engine_calls_per_minute: int | None = None
    tokens_per_day: int | None = None
    max_in_flight: int | None = None

    @property
    def limits(self) -> dict[str, int]:
        """The limits that are set, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(KeyLimits)}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Key(KeyLimits):
    """An API key as stored. The secret itself is shown once, when the key is made."""

    id: UUID
    name: str
    tier: Tier
    hint: str  # the secret's first characters, for recognition
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    distrusted_at: datetime | None = None  # since then its labels count for nothing
    tasks: tuple[str, ...] | None = None  # the tasks that it may use; None: all
    scopes: tuple[Scope, ...] | None = None  # None: those of its tier

    @property
    def granted(self) -> tuple[Scope, ...]:
        """The scopes in force: all for an admin; for a caller those that it was given, or else `use`."""
        if self.tier is Tier.ADMIN:
            return tuple(Scope)
        return (Scope.USE,) if self.scopes is None else self.scopes

    def is_active(self, at: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


@dataclass(frozen=True, kw_only=True, slots=True)
class BrowserSession:
    """A browser that signed in with a key. Only the digest of its secret is stored."""

    key: Key
    created_at: datetime
    expires_at: datetime

    def is_active(self, at: datetime) -> bool:
        return at < self.expires_at and self.key.is_active(at)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdminAct:
    """One act of an admin."""

    id: UUID
    at: datetime  # by the database's clock
    key_id: UUID | None  # the admin's key; None: the command line on the database, or a service without keys
    action: AdminAction
    subject: str  # the id of the key, the interaction, the swap or the feedback
    reason: str | None
    details: dict[str, Any]


Record = Interaction | Feedback
Pointer = Literal["live", "candidate", "previous"]
