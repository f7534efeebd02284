"""Which answers of a run are drawn when, and how a run's files hold them."""

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BeforeValidator

from gadfly.store.training_data import LabelledAnswer
from gadfly.votes import LabelSource

LEAST_WEIGHT = 0.1
"""The weight of an answer that the critic is certain about, relative to one that it is wholly uncertain about."""

UNKNOWN = 0.5
"""The uncertainty of an answer that the critic has not judged."""


def _upgraded(values: Any) -> Any:
    """The fields of an answer in a file of release 0.1.0, which held the sample in `key` and no source of the label."""
    if isinstance(values, dict) and "key" in values:
        sample = values["key"].partition("/")[2]
        return values | {"sample": int(sample) if sample else None, "source": LabelSource.REFERENCE}
    return values


StoredAnswer = Annotated[LabelledAnswer, BeforeValidator(_upgraded)]
"""A labelled answer in a file of a run's folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What is known about the answers of a run before it draws them."""

    fresh: Collection[str] = ()  # keys of the answers whose label is new since the run of the critic at the start
    confidences: Mapping[UUID, float] = field(default_factory=dict)  # P(right) by the critic that served the answer

    def is_fresh(self, item: LabelledAnswer) -> bool:
        """Whether an answer's label is new; the actor's own answers are as new as the reference they are graded by."""
        return item.key.partition("/")[0] in self.fresh


@dataclass(frozen=True, kw_only=True, slots=True)
class DealerState:
    """The decks of a dealer, as a checkpoint stores them."""

    dealt: int = 0
    left: dict[str, list[str]] = field(default_factory=dict)  # by deck: keys of the answers that it still holds
    shuffles: dict[str, int] = field(default_factory=dict)  # by deck
    uncertainties: dict[str, float] = field(default_factory=dict)  # by key, as the run's own critiques showed them


class Dealer:
    """Deals the answers of one stage from shuffled decks, each used up before it is shuffled again.

    With `balance`, right and wrong answers are dealt in turn; if one class is empty, all come from the other. Of each
    class, a share `fresh_share` comes from the fresh answers and the rest from the others; the share is smaller where a
    fresh answer would be dealt more than `fresh_repeats` times in `total` draws. A class without fresh answers deals
    the others, and does not leave its draws to the other class: a verdict must not be learned from an answer's age.

    A deck has as many cards as there are answers, and an answer has cards in proportion to the certainty of its label:
    one, if all are equally certain. Answers that the critic is uncertain about tend to come first: a deck is shuffled
    by weights (Efraimidis and Spirakis 2006), which rise from `LEAST_WEIGHT` to 1 with the uncertainty. That is
    4p(1 - p): of the probability that the served critic gave, and, once an answer's critiques were scored in this run,
    of their scores (`observe`). Without `uncertain_first` all weigh the same.

    A dealer depends on its arguments and on its observations. `state` and `resumed` carry it over an interruption.
    """

    def __init__(
        self,
        items: Sequence[LabelledAnswer],
        *,
        seed: str,
        balance: bool,
        total: int = 0,
        fresh_share: float = 0.0,
        fresh_repeats: int = 1,
        uncertain_first: bool = True,
        known: Known | None = None,
    ) -> None:
        known = known or Known()
        self._items = {item.key: item for item in items}
        self._seed = seed
        self._uncertain_first = uncertain_first
        is_balanced = balance and len({item.is_right for item in items}) == 2
        self._classes = ("right", "wrong") if is_balanced else ("all",)
        self._decks: dict[str, list[str]] = {}
        for item in items:
            name = ("right" if item.is_right else "wrong") if is_balanced else "all"
            age = "fresh" if fresh_share and known.is_fresh(item) else "replay"
            self._decks.setdefault(f"{name} {age}", []).append(item.key)
        draws = total / len(self._classes)
        self._shares = {
            name: min(fresh_share, fresh_repeats * len(self._decks.get(f"{name} fresh", ())) / max(draws, 1.0))
            for name in self._classes
        }
        self._uncertainties = {
            item.key: 4 * known.confidences[item.id] * (1 - known.confidences[item.id])
            for item in items
            if item.id in known.confidences
        }
        self._observed: dict[str, float] = {}
        self._dealt = 0
        self._left: dict[str, list[str]] = {}
        self._shuffles: dict[str, int] = {}

    def resumed(self, state: DealerState) -> Self:
        """This dealer at the place where another with the same arguments had the state `state`."""
        self._dealt = state.dealt
        self._left = {deck: list(keys) for deck, keys in state.left.items()}
        self._shuffles = dict(state.shuffles)
        self._observed = dict(state.uncertainties)
        return self

    @property
    def state(self) -> DealerState:
        return DealerState(
            dealt=self._dealt,
            left={deck: list(keys) for deck, keys in self._left.items()},
            shuffles=dict(self._shuffles),
            uncertainties=dict(self._observed),
        )

    def deal(self, count: int) -> list[LabelledAnswer]:
        """The next `count` answers."""
        return [self._next() for _ in range(count)]

    def observe(self, item: LabelledAnswer, scores: Sequence[float]) -> None:
        """Take note of the scores of an answer's critiques: it counts as uncertain if they differ."""
        mean = sum(scores) / len(scores)
        self._observed[item.key] = min(1.0, 4 * sum((score - mean) ** 2 for score in scores) / len(scores))

    def _next(self) -> LabelledAnswer:
        name = self._classes[self._dealt % len(self._classes)]
        place = self._dealt // len(self._classes)  # within the class
        self._dealt += 1
        share = self._shares[name]
        is_fresh = int((place + 1) * share) > int(place * share)
        wanted, other = (f"{name} {age}" for age in (("fresh", "replay") if is_fresh else ("replay", "fresh")))
        return self._items[self._from_deck(wanted if wanted in self._decks else other)]

    def _from_deck(self, deck: str) -> str:
        if not self._left.get(deck):
            number = self._shuffles.get(deck, 0)
            self._shuffles[deck] = number + 1
            rng = random.Random(f"{self._seed} {deck} {number}")  # noqa: S311  # not a secret
            cards = _cards([self._items[key] for key in self._decks[deck]], rng)
            places = [(rng.random() ** (1 / self._weight(item.key)), item.key) for item in cards]
            self._left[deck] = [key for _, key in sorted(places)]
        return self._left[deck].pop()

    def _weight(self, key: str) -> float:
        if not self._uncertain_first:
            return 1.0
        uncertainty = self._observed.get(key, self._uncertainties.get(key, UNKNOWN))
        return LEAST_WEIGHT + (1 - LEAST_WEIGHT) * uncertainty


def _cards(items: Sequence[LabelledAnswer], rng: random.Random) -> list[LabelledAnswer]:
    """As many cards as items: each item the whole part of its share, and one more with the chance of the rest.

    Systematic resampling (Kitagawa 1996): one random start, then equal steps along the summed certainties.
    """
    total = math.fsum(item.certainty for item in items)
    if total <= 0 or len({item.certainty for item in items}) == 1:
        return list(items)
    deck: list[LabelledAnswer] = []
    step, passed = total / len(items), 0.0
    mark = step * rng.random()
    for item in items:
        passed += item.certainty
        while mark < passed and len(deck) < len(items):
            deck.append(item)
            mark += step
    return deck + [items[-1]] * (len(items) - len(deck))  # a rounding error at the end


def seed_of(*parts: object) -> int:
    """A seed of 31 bits for the engine, which depends on all the parts and nothing else."""
    return random.Random(" ".join(map(str, parts))).getrandbits(31)  # noqa: S311  # not a secret
