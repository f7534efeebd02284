"""What a run learns from: labelled answers, the actor's own first answers beside them, and who is drawn when."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Self
from uuid import UUID, uuid5

from gadfly.store.labels import LabelSource
from gadfly.store.training_data import LabelledAnswer


class Origin(StrEnum):
    LOGGED = "logged"
    POOL = "pool"  # the actor sampled it for this run


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """An answer to judge. `key` names it within the run; `reference` is there when it can serve stage II."""

    key: str
    interaction_id: UUID  # the logged row, for a pooled answer the row whose question and reference it has
    question_hash: bytes
    question: str
    response: str
    is_right: bool
    reference: str | None
    origin: Origin

    @classmethod
    def logged(cls, answer: LabelledAnswer) -> Self:
        return cls(
            key=str(answer.interaction_id),
            interaction_id=answer.interaction_id,
            question_hash=answer.question_hash,
            question=answer.question,
            response=answer.response,
            is_right=answer.is_right,
            reference=answer.reference,
            origin=Origin.LOGGED,
        )

    def pooled(self, sample: int, response: str, *, is_right: bool) -> "Item":
        """The same question with an answer of the actor's."""
        return replace(
            self, key=f"{self.interaction_id}/{sample}", response=response, is_right=is_right, origin=Origin.POOL
        )

    def to_answer(self) -> LabelledAnswer:
        """The item as an evaluation takes it, under an id of its own: judgements of two critics are paired by it."""
        pooled = self.origin is Origin.POOL
        return LabelledAnswer(
            interaction_id=uuid5(self.interaction_id, self.key) if pooled else self.interaction_id,
            question_hash=self.question_hash,
            question=self.question,
            response=self.response,
            is_right=self.is_right,
            source=LabelSource.REFERENCE,
            reference=self.reference,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"interaction_id": str(self.interaction_id), "question_hash": self.question_hash.hex()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(
            **values
            | {
                "interaction_id": UUID(values["interaction_id"]),
                "question_hash": bytes.fromhex(values["question_hash"]),
                "origin": Origin(values["origin"]),
            }
        )


def draw(items: Sequence[Item], *, seed: str, step: int, count: int, balance: bool) -> list[Item]:
    """The items of one step: a pure function of its arguments, so that a resumed run draws what an unbroken one drew.

    Items are dealt from shuffled decks, each used up before it is shuffled anew. With `balance` there is a deck of
    right and one of wrong answers, dealt from in turn; when one class is missing, all come from the other.
    """
    right = [item for item in items if item.is_right]
    wrong = [item for item in items if not item.is_right]
    if not balance or not right or not wrong:
        return list(_dealt(items, seed, step * count, count))
    # In turn over the whole run, so that an odd count gives both classes the same share in the long run.
    places = range(step * count, (step + 1) * count)
    rights = sum(1 for place in places if place % 2 == 0)
    first_right, first_wrong = (step * count + 1) // 2, step * count // 2
    chosen_right = _dealt(right, f"{seed} right", first_right, rights)
    chosen_wrong = _dealt(wrong, f"{seed} wrong", first_wrong, count - rights)
    return [next(chosen_right) if place % 2 == 0 else next(chosen_wrong) for place in places]


def _dealt(items: Sequence[Item], seed: str, first: int, count: int) -> Iterator[Item]:
    deck_number, deck = -1, list(items)
    for place in range(first, first + count):
        number, position = divmod(place, len(items))
        if number != deck_number:
            deck_number, deck = number, list(items)
            random.Random(f"{seed} {number}").shuffle(deck)  # noqa: S311  # no secret depends on it
        yield deck[position]


def seed_of(*parts: object) -> int:
    """A seed for the engine that depends on all parts and on nothing else; 31 bits."""
    return random.Random(" ".join(map(str, parts))).getrandbits(31)  # noqa: S311  # as above
