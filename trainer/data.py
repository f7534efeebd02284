"""Which answers of a run are drawn when, and how a run's files hold them."""

import math
import random
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

from gadfly.store.training_data import LabelledAnswer
from gadfly.votes import LabelSource


def _upgraded(values: Any) -> Any:
    """The fields of an answer in a file of release 0.1.0, which held the sample in `key` and no source of the label."""
    if isinstance(values, dict) and "key" in values:
        sample = values["key"].partition("/")[2]
        return values | {"sample": int(sample) if sample else None, "source": LabelSource.REFERENCE}
    return values


StoredAnswer = Annotated[LabelledAnswer, BeforeValidator(_upgraded)]
"""A labelled answer in a file of a run's folder."""


def draw(items: Sequence[LabelledAnswer], *, seed: str, step: int, count: int, balance: bool) -> list[LabelledAnswer]:
    """The items of one step: a pure function of its arguments, so a resumed run draws the same as an unbroken one.

    Items are dealt from shuffled decks, each used up before it is shuffled again. A deck has as many cards as there are
    items, and an item has cards in proportion to the certainty of its label: one, if all are equally certain. With
    `balance`, right and wrong answers have a deck each and are dealt in turn; if one class is empty, all items come
    from the other.
    """
    right = [item for item in items if item.is_right]
    wrong = [item for item in items if not item.is_right]
    if not balance or not right or not wrong:
        return list(_dealt(items, seed, step * count, count))
    # In turn over the whole run, so an odd count gives both classes equal shares in the long run.
    places = range(step * count, (step + 1) * count)
    rights = sum(1 for place in places if place % 2 == 0)
    first_right, first_wrong = (step * count + 1) // 2, step * count // 2
    chosen_right = _dealt(right, f"{seed} right", first_right, rights)
    chosen_wrong = _dealt(wrong, f"{seed} wrong", first_wrong, count - rights)
    return [next(chosen_right) if place % 2 == 0 else next(chosen_wrong) for place in places]


def _dealt(items: Sequence[LabelledAnswer], seed: str, first: int, count: int) -> Iterator[LabelledAnswer]:
    deck_number, deck = -1, list(items)
    for place in range(first, first + count):
        number, position = divmod(place, len(items))
        if number != deck_number:
            rng = random.Random(f"{seed} {number}")  # noqa: S311  # not a secret
            deck_number, deck = number, _deck(items, rng)
            rng.shuffle(deck)
        yield deck[position]


def _deck(items: Sequence[LabelledAnswer], rng: random.Random) -> list[LabelledAnswer]:
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
    return random.Random(" ".join(map(str, parts))).getrandbits(31)  # noqa: S311  # as above
