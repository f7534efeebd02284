"""Groups of replies, and their layout for a forward pass, which computes each prompt once and has no padding.

The critiques of one question-answer pair share their prompt, which is most of their tokens. A pack is one row that
holds the prompt once, followed by its replies. Each reply attends to the prompt and itself alone, and its positions
continue from the end of the prompt. The result equals that of one row per reply, but the work on the prompt is done
once instead of k times, and the gradients of all replies reach the prompt in one backward pass. A pack holds as many
groups as fit.

Axis letters: T tokens of a pack, N reply tokens, R replies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, slots=True)
class Group:
    """One question-answer pair and its k sampled critiques, as the engine's own token ids.

    Raises:
        ValueError: an empty prompt, no or an empty reply, or lengths that do not fit each other.
    """

    prompt: tuple[int, ...]
    replies: tuple[tuple[int, ...], ...]
    engine_logprobs: tuple[tuple[float, ...], ...]  # of each reply's tokens, in nats, at temperature 1
    scores: tuple[float, ...]  # one per reply

    def __post_init__(self) -> None:
        if not self.prompt or not self.replies or not all(self.replies):
            raise ValueError("a group has a prompt and replies, and none of them is empty")
        if len(self.scores) != len(self.replies):
            raise ValueError(f"{len(self.replies)} replies have {len(self.scores)} scores")
        if [len(item) for item in self.engine_logprobs] != [len(item) for item in self.replies]:
            raise ValueError("each token of a reply has one log-probability of the engine")

    @classmethod
    def unscored(cls, prompt: Sequence[int], *replies: Sequence[int]) -> Self:
        """A group without scores and log-probabilities, for fine-tuning and probes: those fields are zeros."""
        return cls(
            tuple(prompt),
            tuple(tuple(reply) for reply in replies),
            tuple((0.0,) * len(reply) for reply in replies),
            (0.0,) * len(replies),
        )

    @property
    def reply_tokens(self) -> int:
        return sum(map(len, self.replies))

    @property
    def packed_tokens(self) -> int:
        """Tokens that the group takes up in a pack. A reply's last token predicts nothing, so it is left out."""
        return len(self.prompt) + self.reply_tokens - len(self.replies)


@dataclass(frozen=True, slots=True)
class Pack:
    """One row of a forward pass.

    Reply token n is predicted at position `read_N[n]` of the row, and is `targets_N[n]`. Both list the groups and their
    replies in order, `lengths_R` tokens for each reply.
    """

    groups: tuple[int, ...]  # indices of its groups among all groups that were packed, in the order of the row
    tokens_T: tuple[int, ...]
    positions_T: tuple[int, ...]
    read_N: tuple[int, ...]
    targets_N: tuple[int, ...]
    lengths_R: tuple[int, ...]
    # For each token, the number of its group in the row, and of its reply in the row, or -1 in a prompt.
    group_T: tuple[int, ...]
    reply_T: tuple[int, ...]

    def renumbered(self, numbers: Sequence[int]) -> Self:
        """The same pack with group i called `numbers[i]`."""
        return replace(self, groups=tuple(numbers[index] for index in self.groups))


def pack(groups: Sequence[Group], max_tokens: int) -> list[Pack]:
    """Lay groups out in rows of at most `max_tokens`; a larger group gets a row of its own.

    First fit decreasing: the longest group first, each into the first row with room. Depends on the groups alone.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(groups)), key=lambda item: (-groups[item].packed_tokens, item)):
        size = groups[index].packed_tokens
        place = next((number for number, left in enumerate(room) if left >= size), None)
        if place is None:
            rows.append([index])
            room.append(max_tokens - size)
        else:
            rows[place].append(index)
            room[place] -= size
    return [_lay_out(groups, row) for row in rows]


def _lay_out(groups: Sequence[Group], row: Sequence[int]) -> Pack:
    tokens: list[int] = []
    positions: list[int] = []
    read: list[int] = []
    targets: list[int] = []
    lengths: list[int] = []
    group_of: list[int] = []
    reply_of: list[int] = []
    for number, index in enumerate(row):
        group = groups[index]
        tokens += group.prompt
        positions += range(len(group.prompt))
        reply_of += [-1] * len(group.prompt)
        end_of_prompt = len(tokens) - 1
        for reply in group.replies:
            read += [end_of_prompt, *range(len(tokens), len(tokens) + len(reply) - 1)]
            tokens += reply[:-1]
            positions += range(len(group.prompt), len(group.prompt) + len(reply) - 1)
            reply_of += [len(lengths)] * (len(reply) - 1)
            targets += reply
            lengths.append(len(reply))
        group_of += [number] * (len(tokens) - len(group_of))
    return Pack(
        tuple(row),
        tuple(tokens),
        tuple(positions),
        tuple(read),
        tuple(targets),
        tuple(lengths),
        tuple(group_of),
        tuple(reply_of),
    )
