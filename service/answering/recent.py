"""The results of the last minutes by request id, for repeats that arrive while Postgres cannot be asked."""

import time
from collections import OrderedDict
from dataclasses import dataclass
from uuid import UUID

from gadfly.records import Interaction

RequestKey = tuple[UUID | None, str]
"""A caller's key and its request id."""


@dataclass(frozen=True, slots=True)
class _Result:
    interaction: Interaction
    at: float  # monotonic seconds
    characters: int


class RecentResults:
    """Bounded by age and by characters of text."""

    def __init__(self, *, keep_s: float = 300.0, max_characters: int = 32 * 2**20) -> None:
        self._keep_s = keep_s
        self._max_characters = max_characters
        self._results: OrderedDict[RequestKey, _Result] = OrderedDict()
        self._characters = 0
        self._complete_since = time.monotonic()

    @property
    def is_complete(self) -> bool:
        """Whether it has every result of this process in the last `keep_s` seconds."""
        return time.monotonic() - self._complete_since >= self._keep_s

    def get(self, key: RequestKey) -> Interaction | None:
        result = self._results.get(key)
        return None if result is None or self._is_old(result) else result.interaction

    def put(self, key: RequestKey, interaction: Interaction) -> None:
        self._drop(key)
        result = _Result(interaction, time.monotonic(), _characters(interaction))
        self._results[key] = result
        self._characters += result.characters
        while self._results:
            oldest, first = next(iter(self._results.items()))
            if self._is_old(first):
                self._drop(oldest)
            elif self._characters > self._max_characters:
                self._drop(oldest)
                self._complete_since = time.monotonic()
            else:
                break

    def forget(self, interaction_id: UUID) -> None:
        """Drop a deleted interaction."""
        for key in [key for key, result in self._results.items() if result.interaction.id == interaction_id]:
            self._drop(key)

    def _drop(self, key: RequestKey) -> None:
        result = self._results.pop(key, None)
        if result is not None:
            self._characters -= result.characters

    def _is_old(self, result: _Result) -> bool:
        return time.monotonic() - result.at > self._keep_s


def _characters(interaction: Interaction) -> int:
    texts = [interaction.question, interaction.response or ""]
    texts += [critique.text for critique in interaction.critiques]
    texts += [refinement.text for refinement in interaction.refinements]
    return sum(map(len, texts))
