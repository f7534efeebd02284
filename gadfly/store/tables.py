"""The tables of a deployment's records in Postgres.

Columns mirror `gadfly/records.py`. Relations raise unless they were loaded explicitly, so that no attribute hides a
query. A change here needs a migration: `python -m gadfly.migrations "summary of the change"`.
"""

from datetime import date, datetime
from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Dialect,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

from gadfly.grading import Grade
from gadfly.records import (
    AdminAction,
    CanaryOutcome,
    FeedbackSource,
    Kind,
    Ruling,
    Scope,
    Split,
    StopReason,
    SwapKind,
    SwapStatus,
    Tier,
)
from gadfly.storable import storable_json, storable_text
from gadfly.training import EventKind, GateOutcome, RunStatus, Stage, Trigger
from gadfly.verdict import Verdict, VerdictSource
from gadfly.votes import LabelSource, VoteAgreement, Votes, votes_from_json, votes_to_json
from gadfly.webhooks import DeliveryStatus


class StoredText(TypeDecorator[str]):
    """Text that can always be stored: see `gadfly/storable.py`."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else storable_text(value)


class StoredJson(TypeDecorator[Any]):
    """JSON that can always be stored: see `gadfly/storable.py`."""

    impl = JSONB
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return storable_json(value)


class StoredGrades(TypeDecorator[dict[UUID, Grade]]):
    """Grades by the id of the refinement, as a JSON object."""

    impl = JSONB
    cache_ok = True

    def process_bind_param(self, value: dict[UUID, Grade] | None, dialect: Dialect) -> Any:
        return None if value is None else {str(id): grade.value for id, grade in value.items()}

    def process_result_value(self, value: dict[str, str] | None, dialect: Dialect) -> dict[UUID, Grade] | None:
        return None if value is None else {UUID(id): Grade(grade) for id, grade in value.items()}


class StoredScopes(TypeDecorator[tuple[Scope, ...]]):
    """Scopes of a key, as an array of texts."""

    impl = ARRAY(Text)
    cache_ok = True

    def process_bind_param(self, value: tuple[Scope, ...] | None, dialect: Dialect) -> Any:
        return None if value is None else [scope.value for scope in value]

    def process_result_value(self, value: list[str] | None, dialect: Dialect) -> tuple[Scope, ...] | None:
        return None if value is None else tuple(Scope(scope) for scope in value)


class StoredVotes(TypeDecorator[Votes]):
    """Votes as a JSON array. Equal votes are equal values, so that rows can be grouped by them."""

    impl = JSONB
    cache_ok = True

    def process_bind_param(self, value: Votes | None, dialect: Dialect) -> Any:
        return None if value is None else votes_to_json(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Votes | None:
        return None if value is None else votes_from_json(value)


def _enum(values: type[StrEnum], name: str, *, is_checked: bool = True) -> Enum:
    return Enum(
        values,
        name=name,
        native_enum=False,  # a check constraint can gain a value inside a transaction, a type cannot
        create_constraint=is_checked,
        length=32,
        values_callable=lambda members: [member.value for member in members],
    )


_CLOCK = text("clock_timestamp()")
"""The database's clock, which orders rows of all processes; NULL in rows of release 0.1.0."""


SEARCHED_TEXT = (
    "to_tsvector('simple'::regconfig, (\"left\"(question, 20000) || ' '::text) "
    "|| \"left\"(COALESCE(response, ''::text), 20000))"
)
"""What a search in interactions looks in. Postgres limits what one entry may hold, so very long texts are cut."""

P_CORRECT = "(p_correct / NULLIF(p_correct + p_incorrect, 0::double precision))"
"""A critique's probability of `correct` among the two verdict words, as Postgres writes it in the index."""


class Table(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: StoredText,
        bytes: LargeBinary,
        datetime: TIMESTAMP(timezone=True),
        dict[str, Any]: StoredJson,
        dict[UUID, Grade]: StoredGrades,
        Kind: _enum(Kind, "kind"),
        Split: _enum(Split, "split"),
        Tier: _enum(Tier, "tier"),
        Grade: _enum(Grade, "grade"),
        StopReason: _enum(StopReason, "stop_reason"),
        FeedbackSource: _enum(FeedbackSource, "source"),
        VerdictSource: _enum(VerdictSource, "verdict_source"),
        Verdict: _enum(Verdict, "verdict"),
        RunStatus: _enum(RunStatus, "status"),
        Trigger: _enum(Trigger, "trigger"),
        Stage: _enum(Stage, "stage"),
        GateOutcome: _enum(GateOutcome, "outcome"),
        EventKind: _enum(EventKind, "event_kind"),
        SwapKind: _enum(SwapKind, "swap_kind"),
        SwapStatus: _enum(SwapStatus, "swap_status"),
        LabelSource: _enum(LabelSource, "label_source"),
        VoteAgreement: _enum(VoteAgreement, "standing"),
        Ruling: _enum(Ruling, "ruling"),
        AdminAction: _enum(AdminAction, "action"),
        CanaryOutcome: _enum(CanaryOutcome, "canary_outcome"),
        DeliveryStatus: _enum(DeliveryStatus, "delivery_status"),
    }


class QuestionRow(Table):
    """One question's side of the training wall. It holds no text, so it may outlive deleted interactions."""

    __tablename__ = "questions"
    __table_args__ = (
        Index(None, "task", "created_at", "split"),
        Index("ix_questions_unkeyed", "split", "created_at", postgresql_where=text("NOT is_keyed")),
    )

    hash: Mapped[bytes] = mapped_column(primary_key=True)
    split: Mapped[Split]
    created_at: Mapped[datetime]
    # Whether its keys are in `block_keys`. An earlier release that still runs stores questions without keys.
    is_keyed: Mapped[bool] = mapped_column(server_default=text("false"))
    looks: Mapped[int] = mapped_column(server_default=text("0"))  # gates that took its answers as evidence
    retired_at: Mapped[datetime | None]  # when it changed from the held-out to the train side
    is_pinned: Mapped[bool] = mapped_column(server_default=text("false"))  # a caller named its side
    task: Mapped[str] = mapped_column(server_default=text("'math'"))  # part of its hash: `gadfly.store.split`


class BlockKeyRow(Table):
    """What near-duplicate questions have in common, and the side that it binds them to: `gadfly/store/blocks.py`."""

    __tablename__ = "block_keys"

    key: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    split: Mapped[Split]
    questions: Mapped[int]
    in_training: Mapped[bool]
    is_open: Mapped[bool]


class SplitSecretRow(Table):
    """The secret of the deployment without which the side of a new question is unpredictable. One row."""

    __tablename__ = "split_secrets"
    __table_args__ = (CheckConstraint("id = 1", name="id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    secret: Mapped[bytes]


class AnswerRow(Table):
    """One text answered to a question: the votes about it, and its label. It holds no text.

    The text's hash is that of `gadfly.store.labels.text_sha256`. The label of a held-out answer is frozen when it gets
    one; the votes are counted on, and `voted_right` is what they say now.
    """

    __tablename__ = "answers"
    __table_args__ = (
        Index(None, "changed_at"),
        Index(None, "standing", postgresql_where=text("standing = 'conflict'")),
        Index(None, "updated_at"),
        Index("ix_answers_labelled", "question_hash", postgresql_where=text("is_right IS NOT NULL")),
    )

    question_hash: Mapped[bytes] = mapped_column(ForeignKey("questions.hash"), primary_key=True)
    text_sha256: Mapped[bytes] = mapped_column(primary_key=True)
    votes: Mapped[Votes | None] = mapped_column(StoredVotes)  # NULL: labelled by an earlier release, not counted yet
    voted_right: Mapped[bool | None]
    standing: Mapped[VoteAgreement]
    is_right: Mapped[bool | None]  # the label; NULL: there is none
    source: Mapped[LabelSource | None]
    key_id: Mapped[UUID | None] = mapped_column(ForeignKey("keys.id"))  # the only key that supports the label
    changed_at: Mapped[datetime | None]  # `is_right`
    updated_at: Mapped[datetime | None]  # the label with its source and key; NULL: before this column existed
    frozen_at: Mapped[datetime | None]
    ruling: Mapped[Ruling | None]  # an admin's


class LabelModelRow(Table):
    """The newest estimate of the voters' reliabilities; at most one row."""

    __tablename__ = "label_models"
    __table_args__ = (CheckConstraint("id = 1", name="one"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    fitted_at: Mapped[datetime]
    model: Mapped[dict[str, Any]]


class AdminActRow(Table):
    """One act of an admin: who, when, what and why."""

    __tablename__ = "admin_acts"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    key_id: Mapped[UUID | None] = mapped_column(ForeignKey("keys.id"))
    action: Mapped[AdminAction]
    subject: Mapped[str]
    reason: Mapped[str | None]
    details: Mapped[dict[str, Any]]


class CriticVersionRow(Table):
    __tablename__ = "critic_versions"

    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    parent: Mapped[int | None] = mapped_column(ForeignKey("critic_versions.version"))
    base_model: Mapped[str]
    adapter_path: Mapped[str | None]
    adapter_sha256: Mapped[str | None]
    created_at: Mapped[datetime]
    run_id: Mapped[UUID | None] = mapped_column(ForeignKey("training_runs.id"), unique=True)
    prompt_set: Mapped[str | None]
    task: Mapped[str] = mapped_column(server_default=text("'math'"))
    task_version: Mapped[str | None]
    origin: Mapped[dict[str, Any] | None]
    verdict_only: Mapped[bool] = mapped_column(server_default=text("false"))
    examples: Mapped[int] = mapped_column(server_default=text("0"))
    examples_sha256: Mapped[str | None]


class CriticExampleRow(Table):
    """A labelled answer in a critic's prompt. It goes with its interaction, and then the critic cannot be served."""

    __tablename__ = "critic_examples"

    version: Mapped[int] = mapped_column(ForeignKey("critic_versions.version"), primary_key=True, autoincrement=False)
    place: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    interaction_id: Mapped[UUID] = mapped_column(ForeignKey("interactions.id", ondelete="CASCADE"), index=True)
    question: Mapped[str]
    response: Mapped[str]
    critique: Mapped[str]


class CriticProbeRow(Table):
    """The probe record of a critic without an adapter folder, as JSON. It holds no text of a caller."""

    __tablename__ = "critic_probes"

    version: Mapped[int] = mapped_column(ForeignKey("critic_versions.version"), primary_key=True, autoincrement=False)
    record: Mapped[dict[str, Any]]


class GuardedConversationRow(Table):
    """The conversation of a call that a proxy announced. It is deleted after a quarter of an hour."""

    __tablename__ = "guarded_conversations"

    key: Mapped[str] = mapped_column(primary_key=True)  # the id of the proxy's key; empty without keys
    call_id: Mapped[str] = mapped_column(primary_key=True)
    messages: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    kept_at: Mapped[datetime] = mapped_column(index=True)


class CriticCalibrationRow(Table):
    """How a version's probabilities become the probability that an answer is right. Not every version has one."""

    __tablename__ = "critic_calibrations"

    version: Mapped[int] = mapped_column(ForeignKey("critic_versions.version"), primary_key=True, autoincrement=False)
    created_at: Mapped[datetime]
    slope: Mapped[float]
    intercept: Mapped[float]
    traffic_right: Mapped[int]  # labelled answers of the deployment's own traffic at that time
    traffic_wrong: Mapped[int]
    report: Mapped[dict[str, Any]]


class CriticPointerRow(Table):
    __tablename__ = "critic_pointers"
    __table_args__ = (CheckConstraint("name IN ('live', 'candidate', 'previous')", name="name"),)

    task: Mapped[str] = mapped_column(primary_key=True, server_default=text("'math'"))
    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(ForeignKey("critic_versions.version"))
    moved_at: Mapped[datetime]


class KeyRow(Table):
    __tablename__ = "keys"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    tier: Mapped[Tier]
    hint: Mapped[str]
    digest: Mapped[bytes] = mapped_column(unique=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    distrusted_at: Mapped[datetime | None]
    tasks: Mapped[tuple[str, ...] | None] = mapped_column(
        ARRAY(Text, as_tuple=True)
    )  # the tasks that it may use; NULL: all
    scopes: Mapped[tuple[Scope, ...] | None] = mapped_column(StoredScopes)  # NULL: those of its tier
    requests_per_minute: Mapped[int | None]
    engine_calls_per_minute: Mapped[int | None]
    tokens_per_day: Mapped[int | None] = mapped_column(BigInteger)
    max_in_flight: Mapped[int | None]


class DeletedUsageRow(Table):
    """Tokens of the interactions that a key's caller stored on a day (UTC) and that were deleted on that day."""

    __tablename__ = "deleted_usage"

    key_id: Mapped[UUID] = mapped_column(ForeignKey("keys.id", ondelete="CASCADE"), primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    tokens: Mapped[int] = mapped_column(BigInteger)


class BrowserSessionRow(Table):
    """A browser that signed in with a key, by the digest of the secret in its cookie."""

    __tablename__ = "browser_sessions"

    digest: Mapped[bytes] = mapped_column(primary_key=True)
    key_id: Mapped[UUID] = mapped_column(ForeignKey("keys.id", ondelete="CASCADE"))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class LabelReservationRow(Table):
    """An answer that a labeller has reserved. Others get it after `expires_at`."""

    __tablename__ = "label_reservations"

    question_hash: Mapped[bytes] = mapped_column(primary_key=True)
    text_sha256: Mapped[bytes] = mapped_column(primary_key=True)
    labeller: Mapped[str]
    expires_at: Mapped[datetime]


class ChosenAnswerRow(Table):
    """An answer that the label queue handed out because of what critics said about it. A later label measures none."""

    __tablename__ = "chosen_answers"

    question_hash: Mapped[bytes] = mapped_column(primary_key=True)
    text_sha256: Mapped[bytes] = mapped_column(primary_key=True)
    chosen_at: Mapped[datetime]


class LabelSkipRow(Table):
    """An answer that a labeller skipped."""

    __tablename__ = "label_skips"

    labeller: Mapped[str] = mapped_column(primary_key=True)
    question_hash: Mapped[bytes] = mapped_column(primary_key=True)
    text_sha256: Mapped[bytes] = mapped_column(primary_key=True)
    skipped_at: Mapped[datetime]


class EpisodeRow(Table):
    """Interactions about one question, with one critic. `critic_version` is null until the first critique."""

    __tablename__ = "episodes"
    __table_args__ = (UniqueConstraint("id", "question_hash"),)  # target of interactions: one episode, one question

    id: Mapped[UUID] = mapped_column(primary_key=True)
    question_hash: Mapped[bytes] = mapped_column(ForeignKey("questions.hash"))
    critic_version: Mapped[int | None] = mapped_column(ForeignKey("critic_versions.version"))
    created_at: Mapped[datetime]


class InteractionRow(Table):
    __tablename__ = "interactions"
    __table_args__ = (
        ForeignKeyConstraint(["episode_id", "question_hash"], ["episodes.id", "episodes.question_hash"]),
        # request_id leads, because a lookup cannot use an index on a key that may be null.
        Index(
            "uq_interactions_request_id_key_id",
            "request_id",
            "key_id",
            unique=True,
            postgresql_nulls_not_distinct=True,
            postgresql_where=text("request_id IS NOT NULL"),
        ),
        Index(None, "created_at", "id"),
        Index(None, "key_id", "created_at", "id"),
        Index(None, "episode_id"),
        Index(None, "question_hash"),
        Index(None, "critic_version", "created_at", "id"),
        Index(None, "critic_version", "stored_at"),
        Index("ix_interactions_unparsed", "created_at", "id", postgresql_where=text("verdict = 'unparsed'")),
        Index("ix_interactions_text", text(SEARCHED_TEXT), postgresql_using="gin"),
        Index(
            "ix_interactions_judged_at",
            text("(parameters ->> 'judged_at')"),
            postgresql_where=text("(parameters ->> 'judged_at') IS NOT NULL"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[Kind]
    created_at: Mapped[datetime]
    episode_id: Mapped[UUID]
    question_hash: Mapped[bytes] = mapped_column(ForeignKey("questions.hash"))
    key_id: Mapped[UUID | None] = mapped_column(ForeignKey("keys.id"))
    request_id: Mapped[str | None]
    fingerprint: Mapped[str | None]
    question: Mapped[str]
    response: Mapped[str | None]  # null: a question for which the actor samples answers
    reference: Mapped[str | None]
    grade: Mapped[Grade | None]
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    parameters: Mapped[dict[str, Any]]
    model: Mapped[str | None]
    prompt_set: Mapped[str | None]
    critic_version: Mapped[int | None] = mapped_column(ForeignKey("critic_versions.version"))
    adapter_sha256: Mapped[str | None]
    verdict: Mapped[Verdict | None]
    refined_response: Mapped[str | None]
    stop_reason: Mapped[StopReason | None]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    latency_ms: Mapped[float | None]
    text_sha256: Mapped[bytes | None]  # of `response`: `gadfly.store.labels.text_sha256`
    # Against the interaction's own reference. To check it would read the whole table while the migration locks it.
    own_grade: Mapped[Grade | None] = mapped_column(_enum(Grade, "own_grade", is_checked=False))
    stored_at: Mapped[datetime | None] = mapped_column(server_default=_CLOCK)
    grader: Mapped[int | None]
    grade_problem: Mapped[str | None]
    conversation: Mapped[dict[str, Any] | None] = mapped_column(StoredJson(none_as_null=True))
    task: Mapped[str] = mapped_column(server_default=text("'math'"))
    task_version: Mapped[str | None]

    critiques: Mapped[list["CritiqueRow"]] = relationship(lazy="raise", order_by="CritiqueRow.position", viewonly=True)
    refinements: Mapped[list["RefinementRow"]] = relationship(
        lazy="raise", order_by="RefinementRow.position", viewonly=True
    )
    feedback: Mapped[list["FeedbackRow"]] = relationship(
        lazy="raise", order_by="(FeedbackRow.created_at, FeedbackRow.id)", viewonly=True
    )
    question_row: Mapped[QuestionRow] = relationship(lazy="raise", viewonly=True)


class CritiqueRow(Table):
    __tablename__ = "critiques"
    __table_args__ = (
        Index(None, "interaction_id"),
        Index(
            "ix_critiques_confidence",
            text(P_CORRECT),
            postgresql_where=text("round = 0 AND sample = 0 AND NOT supplied"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    interaction_id: Mapped[UUID] = mapped_column(ForeignKey("interactions.id", ondelete="CASCADE"))
    position: Mapped[int]  # among its interaction's, from 0
    round: Mapped[int]
    sample: Mapped[int]
    text: Mapped[str]
    stated: Mapped[Verdict] = mapped_column(_enum(Verdict, "stated"))
    verdict: Mapped[Verdict]
    verdict_source: Mapped[VerdictSource]
    p_correct: Mapped[float | None]
    p_incorrect: Mapped[float | None]
    calibrated_p_right: Mapped[float | None]
    finish_reason: Mapped[str | None]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    supplied: Mapped[bool]


class ShadowVerdictRow(Table):
    """The verdict of another critic on an answer of the live one, for the rollback watch and the label queue."""

    __tablename__ = "shadow_verdicts"
    __table_args__ = (Index(None, "critic_version", "created_at"),)

    interaction_id: Mapped[UUID] = mapped_column(ForeignKey("interactions.id", ondelete="CASCADE"), primary_key=True)
    critic_version: Mapped[int] = mapped_column(
        ForeignKey("critic_versions.version"), primary_key=True, autoincrement=False
    )
    created_at: Mapped[datetime]
    stated: Mapped[Verdict] = mapped_column(_enum(Verdict, "stated"))


class CritiqueDueRow(Table):
    """An answer that the live critic has to judge in the background. The row is deleted when it has."""

    __tablename__ = "critiques_due"

    interaction_id: Mapped[UUID] = mapped_column(ForeignKey("interactions.id", ondelete="CASCADE"), primary_key=True)
    created_at: Mapped[datetime]


class RefinementRow(Table):
    __tablename__ = "refinements"
    __table_args__ = (Index(None, "interaction_id"), Index(None, "critique_id"))

    id: Mapped[UUID] = mapped_column(primary_key=True)
    interaction_id: Mapped[UUID] = mapped_column(ForeignKey("interactions.id", ondelete="CASCADE"))
    position: Mapped[int]  # among its interaction's, from 0
    round: Mapped[int]
    sample: Mapped[int]
    critique_id: Mapped[UUID] = mapped_column(ForeignKey("critiques.id", ondelete="CASCADE"))
    text: Mapped[str]
    finish_reason: Mapped[str | None]
    grade: Mapped[Grade | None]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]


class FeedbackRow(Table):
    __tablename__ = "feedback"
    __table_args__ = (
        CheckConstraint("rating BETWEEN 1 AND 5", name="rating"),
        CheckConstraint("critique_id IS NULL OR refinement_id IS NULL", name="about"),
        Index(None, "interaction_id", "created_at", "id"),
        Index(None, "critique_id"),
        Index(None, "refinement_id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    interaction_id: Mapped[UUID] = mapped_column(ForeignKey("interactions.id", ondelete="CASCADE"))
    key_id: Mapped[UUID | None] = mapped_column(ForeignKey("keys.id"))
    created_at: Mapped[datetime]
    source: Mapped[FeedbackSource]
    critique_id: Mapped[UUID | None] = mapped_column(ForeignKey("critiques.id", ondelete="CASCADE"))
    refinement_id: Mapped[UUID | None] = mapped_column(ForeignKey("refinements.id", ondelete="CASCADE"))
    correct: Mapped[bool | None]
    helpful: Mapped[bool | None]
    reference: Mapped[str | None]
    edited_response: Mapped[str | None]
    edited_reference: Mapped[str | None]
    rating: Mapped[int | None]
    comment: Mapped[str | None]
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    grade: Mapped[Grade | None]
    refinement_grades: Mapped[dict[UUID, Grade]]
    stored_at: Mapped[datetime | None] = mapped_column(server_default=_CLOCK)
    grader: Mapped[int | None]
    grade_problem: Mapped[str | None]


class RequestClaimRow(Table):
    """The replica that processes a request id, so that replicas that receive it concurrently process it once."""

    __tablename__ = "request_claims"
    __table_args__ = (
        Index(
            "uq_request_claims_request_id_key_id",
            "request_id",
            "key_id",
            unique=True,
            postgresql_nulls_not_distinct=True,
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    key_id: Mapped[UUID | None]
    request_id: Mapped[str]
    fingerprint: Mapped[str]
    owner: Mapped[UUID]
    expires_at: Mapped[datetime]


class TrainingRunRow(Table):
    """One training run. The work itself waits in the job queue, under the same id."""

    __tablename__ = "training_runs"
    __table_args__ = (
        Index(None, "task", "created_at"),
        Index(
            "uq_training_runs_request_id_key_id",
            "request_id",
            "key_id",
            unique=True,
            postgresql_nulls_not_distinct=True,
            postgresql_where=text("request_id IS NOT NULL"),
        ),
        Index(None, "created_at", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[RunStatus]
    trigger: Mapped[Trigger]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    key_id: Mapped[UUID | None] = mapped_column(ForeignKey("keys.id"))
    request_id: Mapped[str | None]
    config: Mapped[dict[str, Any]]
    reproduces: Mapped[UUID | None] = mapped_column(ForeignKey("training_runs.id"))
    attempt: Mapped[int]
    cancel_requested_at: Mapped[datetime | None]
    stage: Mapped[Stage | None]
    step: Mapped[int]
    steps: Mapped[int]
    eta_s: Mapped[float | None]
    manifest: Mapped[dict[str, Any] | None]
    gate: Mapped[dict[str, Any] | None]
    outcome: Mapped[GateOutcome | None]
    error: Mapped[str | None]
    task: Mapped[str] = mapped_column(server_default=text("'math'"))


class RunEventRow(Table):
    __tablename__ = "run_events"
    __table_args__ = (Index(None, "run_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    run_id: Mapped[UUID] = mapped_column(ForeignKey("training_runs.id", ondelete="CASCADE"))
    created_at: Mapped[datetime]
    kind: Mapped[EventKind]
    data: Mapped[dict[str, Any]]


class LearningRow(Table):
    """What one answer earned in one stage of a run. It holds no text.

    `answer` is `response`, `sampled` (by the actor, to the interaction's question), or the id of a refinement.
    """

    __tablename__ = "learning_ledger"
    __table_args__ = (Index(None, "interaction_id"),)

    run_id: Mapped[UUID] = mapped_column(ForeignKey("training_runs.id", ondelete="CASCADE"), primary_key=True)
    interaction_id: Mapped[UUID] = mapped_column(primary_key=True)  # it may be deleted while the run learns from it
    answer: Mapped[str] = mapped_column(primary_key=True)
    stage: Mapped[str] = mapped_column(primary_key=True)
    draws: Mapped[int]
    critiques: Mapped[int]
    mean_score: Mapped[float]
    verdicts_right: Mapped[int]
    first_step: Mapped[int]
    last_step: Mapped[int]


class TombstoneRow(Table):
    """An interaction that was deleted, so that a replica's late replay does not bring it back."""

    __tablename__ = "tombstones"

    interaction_id: Mapped[UUID] = mapped_column(primary_key=True)
    forgotten_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)


class ForgetOrderRow(Table):
    """A deletion by episode, key, time or kind: it also holds for records of before that are stored after it."""

    __tablename__ = "forget_orders"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    ordered_at: Mapped[datetime]
    episode_id: Mapped[UUID | None]
    key_id: Mapped[UUID | None]
    since: Mapped[datetime | None]
    until: Mapped[datetime | None]
    kind: Mapped[str | None]


class CriticLossRow(Table):
    """A critic that learned from answers which were deleted since, or that continues such a one (0 answers)."""

    __tablename__ = "critic_losses"

    version: Mapped[int] = mapped_column(ForeignKey("critic_versions.version"), primary_key=True, autoincrement=False)
    answers: Mapped[int]
    first_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    last_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)


class SwapRow(Table):
    """One move of a task's live pointer. At most one of a task is pending: concurrent requests wait for each other."""

    __tablename__ = "swaps"
    __table_args__ = (
        Index("uq_swaps_pending", "task", unique=True, postgresql_where=text("status = 'pending'")),
        Index(None, "version", "requested_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(ForeignKey("critic_versions.version"))
    from_version: Mapped[int] = mapped_column(ForeignKey("critic_versions.version"))
    kind: Mapped[SwapKind]
    status: Mapped[SwapStatus]
    requested_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    key_id: Mapped[UUID | None] = mapped_column(ForeignKey("keys.id"))
    reason: Mapped[str | None]
    task: Mapped[str] = mapped_column(server_default=text("'math'"))


class CanaryRow(Table):
    """A promotion that begins with a share of the requests. At most one of a task runs."""

    __tablename__ = "canaries"
    __table_args__ = (
        Index(
            "uq_canaries_running",
            "task",
            unique=True,
            postgresql_where=text("started_at IS NOT NULL AND ended_at IS NULL"),
        ),
    )

    swap_id: Mapped[UUID] = mapped_column(ForeignKey("swaps.id", ondelete="CASCADE"), primary_key=True)
    task: Mapped[str]
    version: Mapped[int] = mapped_column(ForeignKey("critic_versions.version"))
    from_version: Mapped[int] = mapped_column(ForeignKey("critic_versions.version"))
    share: Mapped[float]
    for_s: Mapped[int | None]
    for_requests: Mapped[int | None]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    outcome: Mapped[CanaryOutcome | None]
    reason: Mapped[str | None]


class SwapReceiptRow(Table):
    __tablename__ = "swap_receipts"
    __table_args__ = (UniqueConstraint("swap_id", "replica_id"), Index(None, "version", "created_at"))

    id: Mapped[UUID] = mapped_column(primary_key=True)
    swap_id: Mapped[UUID] = mapped_column(ForeignKey("swaps.id", ondelete="CASCADE"))
    replica_id: Mapped[UUID]
    version: Mapped[int] = mapped_column(ForeignKey("critic_versions.version"))
    created_at: Mapped[datetime]
    details: Mapped[dict[str, Any]]


class EngineProofRow(Table):
    """A process of an engine, by the name that it gave itself, has proven to a replica that it answers as a critic."""

    __tablename__ = "engine_proofs"

    process: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(ForeignKey("critic_versions.version"), primary_key=True, autoincrement=False)
    replica_id: Mapped[UUID]
    proved_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    proof: Mapped[dict[str, Any]]


class ReplicaRow(Table):
    """A process of the service that reported lately; the leases of all decide when a critic may be unloaded."""

    __tablename__ = "replicas"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    live_version: Mapped[int | None] = mapped_column(ForeignKey("critic_versions.version"))
    leases: Mapped[dict[str, Any]]
    engines: Mapped[dict[str, Any]]
    problem: Mapped[str | None]
    live: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))  # the version of each task


class WebhookEndpointRow(Table):
    """Where events are announced. Training code cannot read the secret."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    url: Mapped[str]
    events: Mapped[tuple[str, ...]] = mapped_column(ARRAY(Text, as_tuple=True))
    secret: Mapped[str]
    created_at: Mapped[datetime]


class WebhookDeliveryRow(Table):
    """One announcement to one endpoint, written in the transaction of its event."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_due", "endpoint_id", "next_at", postgresql_where=text("status = 'pending'")),
        Index(None, "status", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    endpoint_id: Mapped[UUID]  # no foreign key: see `gadfly.store.webhooks`
    event: Mapped[str]
    body: Mapped[str]
    created_at: Mapped[datetime]
    status: Mapped[DeliveryStatus]
    attempts: Mapped[int]
    next_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    problem: Mapped[str | None]
