import pytest

from gadfly.trainer.rl.packing import Group, pack

ONE = Group.unscored([10, 11, 12], [1, 2], [3, 4, 5])  # 3 + 1 + 2 = 6 tokens of a row
TWO = Group.unscored([20, 21], [6, 7, 8])  # 2 + 2 = 4
SHORT = Group.unscored([30], [9])  # 1: its only reply token is predicted by the prompt


def test_a_pack_holds_a_prompt_once_and_each_replys_positions_continue_it() -> None:
    [row] = pack([ONE], 6)
    assert row.tokens_T == (10, 11, 12, 1, 3, 4)
    assert row.positions_T == (0, 1, 2, 3, 3, 4)
    assert row.read_N == (2, 3, 2, 4, 5)
    assert row.targets_N == (1, 2, 3, 4, 5)
    assert row.lengths_R == (2, 3)
    assert row.group_T == (0, 0, 0, 0, 0, 0)
    assert row.reply_T == (-1, -1, -1, 0, 1, 1)


def test_groups_share_a_row_with_room() -> None:
    [row] = pack([SHORT, TWO, ONE], 11)
    assert row.groups == (2, 1, 0)  # the longest first
    assert row.tokens_T == (10, 11, 12, 1, 3, 4, 20, 21, 6, 7, 30)
    assert row.positions_T == (0, 1, 2, 3, 3, 4, 0, 1, 2, 3, 0)
    assert row.read_N == (2, 3, 2, 4, 5, 7, 8, 9, 10)
    assert row.lengths_R == (2, 3, 3, 1)
    assert row.group_T == (0,) * 6 + (1,) * 4 + (2,)
    assert row.reply_T == (-1, -1, -1, 0, 1, 1, -1, -1, 2, 2, -1)


@pytest.mark.parametrize(
    ("max_tokens", "rows", "why"),
    [
        (10, [(2, 1), (0,)], "ten tokens hold the two largest groups"),
        (7, [(2, 0), (1,)], "the smallest group goes into the row with room"),
        (1, [(2,), (1,), (0,)], "a group that is too large gets a row of its own"),
    ],
)
def test_rows_are_filled(max_tokens: int, rows: list[tuple[int, ...]], why: str) -> None:
    assert [row.groups for row in pack([SHORT, TWO, ONE], max_tokens)] == rows, why


def test_no_groups_make_no_rows() -> None:
    assert pack([], 8) == []


@pytest.mark.parametrize(
    ("prompt", "replies", "logprobs", "scores"),
    [
        ((), ((1,),), ((0.0,),), (0.0,)),
        ((1,), (), (), ()),
        ((1,), ((),), ((),), (0.0,)),
        ((1,), ((1, 2),), ((0.0,),), (0.0,)),
        ((1,), ((1,), (2,)), ((0.0,), (0.0,)), (0.0,)),
    ],
)
def test_a_group_with_missing_or_unequal_parts_is_refused(
    prompt: tuple[int, ...],
    replies: tuple[tuple[int, ...], ...],
    logprobs: tuple[tuple[float, ...], ...],
    scores: tuple[float, ...],
) -> None:
    with pytest.raises(ValueError, match=r"group|scores|token"):
        Group(prompt, replies, logprobs, scores)
