"""Which questions are near: wrappers, spellings and other numbers; and the sides that follow from it."""

import random
import time
from collections import Counter

import pytest
import rensa
from hypothesis import given, settings
from hypothesis import strategies as st

from gadfly.records import Split
from gadfly.settings import SplitBlocks
from gadfly.store.blocks import BANDS, LARGE, Blocks, block_keys, without_wrapper
from gadfly.store.split import question_hash, split_of
from tests.support.records import unrelated_question

GOLDEN = (3720754196475837662, 4485056419677196890, 4656898746914322233)
QUESTION = "Tom has 37 pens. He buys 25 more and gives 14 of them to Anna. How many pens does he have now?"

SAME = [  # a text with the question in it, which is the same question
    "{}",
    "Question: {}",
    "QUESTION:\n{}",
    "Q. {}",
    "Q: {}\nA:",
    "Problem: {}",
    "[Question] {}",
    "**Question:** {}",
    "**{}**",
    "**{}** Show your work.",
    "*Question:* {}",
    "## Problem\n\n{}",
    "> {}",
    "```\n{}\n```",
    "<question>{}</question>",
    '"{}"',
    "Solve this problem: {}",
    "Solve this problem.\n{}",
    "Please solve the following math problem step by step.\n\n{}",
    "Can you please help me solve this? {}",
    "You are a helpful math tutor. Answer the question.\n\nQuestion: {}",
    "{} Show your work.",
    "{}\n\nLet's think step by step.",
    "{}\nAnswer:",
    "{} Give only the final number.",
    "{}\nPut your final answer in \\boxed{{}}.",
    "{}\n\nExplain your reasoning, then give the final answer.",
    "Hi! {} Thanks!",
    "Frage: {}",
    "问题：{}",
    "Human: {}\nAssistant:",
]
NEAR = [  # another question, which is near; why
    ("Tom has 3 pens. He buys 250 more and gives 1.5 of them to Anna. How many pens does he have now?", "numbers"),
    ("Tom has 1,037 pens. He buys 2/5 more and gives 14 of them to Anna. How many pens does he have now?", "notations"),
    ("Tom has seven pens. He buys twenty more and gives two of them to Anna. How many pens does he have now?", "words"),
    (f"Question 12: {QUESTION}", "a numbered wrapper"),
    (f"3) {QUESTION}", "the number of a list"),
    (f"{QUESTION} Assume that none of them breaks.", "a sentence added"),
    (QUESTION.replace("buys", "purchases"), "a synonym"),
]
APART = [  # two questions that are not near; why
    ("What is 3 + 4?", "What is 3 * 4?", "another operation"),
    ("What is 3 + 4?", "What is the square root of 3?", "another question"),
    (QUESTION, "Tom has 37 pens. How many boxes of 5 does he need for all of them?", "the same beginning"),
    ("Solve this problem: What is 5 - 3?", "Solve this problem: Find the area of a circle.", "the same wrapper"),
    ("Name a prime.", "Name a colour.", "short questions"),
    ("x + 3 = 4. Find x.", "x - 3 = 4. Find x.", "a sign"),
]
KEPT = [  # a question that looks like a wrapper or like markup, and what stays of it
    ("What is 2**3?", "what is 2**3"),
    ("What is 5 - 3?", "what is 5 - 3"),
    ("- 3 + 4", "- 3 + 4"),
    ("a*b*c", "a*b*c"),
    ("What is 2 ** 3 * 4 *x?", "what is 2 ** 3 * 4 *x"),
    ("___ + 3 = 4", "___ + 3 = 4"),
    ("12", "12"),
    ("Show your work.", "show your work"),
    ("Is 7 < 9 and 9 > 8?", "is 7 < 9 and 9 > 8"),
    ("Tom is a teacher. Who is he?", "tom is a teacher who is he"),
]


def shared(one: str, other: str) -> int:
    return len(set(block_keys(one).near) & set(block_keys(other).near))


@pytest.mark.parametrize("wrapper", SAME)
def test_a_wrapper_is_no_part_of_the_question(wrapper: str) -> None:
    assert block_keys(wrapper.format(QUESTION)) == block_keys(QUESTION)


@pytest.mark.parametrize(("other", "why"), NEAR)
def test_a_near_question(other: str, why: str) -> None:
    assert block_keys(other).same != block_keys(QUESTION).same
    assert shared(other, QUESTION) > 0


@pytest.mark.parametrize(("one", "other", "why"), APART)
def test_questions_that_stay_apart(one: str, other: str, why: str) -> None:
    assert not set(block_keys(one)) & set(block_keys(other))


@pytest.mark.parametrize(("question", "kept"), KEPT)
def test_nothing_else_is_removed(question: str, kept: str) -> None:
    assert without_wrapper(question) == kept


@pytest.mark.parametrize("question", ["", "???", "\ud800", "\u200b", "#", "> ", "你好", "x" * 50_000])
def test_anything_has_keys(question: str) -> None:
    assert len(set(block_keys(question))) == 1 + BANDS


@settings(max_examples=50)
@given(st.text(max_size=60), st.sampled_from(SAME))
def test_keys_are_signed_numbers_of_64_bits_and_do_not_vary(question: str, wrapper: str) -> None:
    keys = list(block_keys(wrapper.format(question)))
    assert keys == list(block_keys(wrapper.format(question)))
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_numbers_alone_make_all_keys_equal() -> None:
    assert shared("What is 3 + 4?", "What is 1,250.75 + 99?") == BANDS
    assert shared("3 * 4", "12 * 7 ") == BANDS


def test_a_long_text_takes_milliseconds() -> None:
    started = time.process_time()
    for text in ("**a" * 16_000, "?! " * 16_000, "solve " * 8_000, "1," * 25_000, "<" * 50_000, "\n" * 50_000):
        block_keys(text)
    assert time.process_time() - started < 2


def test_the_stored_keys_stay_valid() -> None:
    """If this fails, a release computes other keys: those of the stored questions have to be computed anew."""
    assert rensa.RMinHash.ALGORITHM_VERSION == 2
    assert block_keys("What is 3 + 4?").same == GOLDEN[0]
    assert block_keys("What is 3 + 4?").near[:2] == GOLDEN[1:]


# ------------------------------------------------------------------------------------------------------------ the sides


class World:
    """Questions as they arrive, each on its side."""

    def __init__(self, *, share: float = 0.2, rule: SplitBlocks = SplitBlocks.NEAR, secret: bytes = b"secret") -> None:
        self.blocks = Blocks({}, Counter(), share, rule)
        self._secret = secret

    def arrive(self, question: str) -> Split:
        own = split_of(question_hash(question), self.blocks.heldout_share, secret=self._secret)
        return self.blocks.place(block_keys(question), own)


@pytest.mark.parametrize("first", list(Split))
def test_twins_follow_the_first_of_their_block(first: Split) -> None:
    blocks = Blocks({}, Counter(), 0.2)
    other = Split.TRAIN if first is Split.HELDOUT else Split.HELDOUT
    assert blocks.place(block_keys(QUESTION), first) is first
    for twin, _ in NEAR:
        assert blocks.place(block_keys(twin), other) is first
    assert blocks.place(block_keys("Something else altogether?"), other) is other


def test_exact_blocks_bind_spellings_only() -> None:
    blocks = Blocks({}, Counter(), 0.2, SplitBlocks.EXACT)
    blocks.place(block_keys("What is 3 + 4?"), Split.HELDOUT)
    assert blocks.place(block_keys("Question: what is 3 + 4"), Split.TRAIN) is Split.HELDOUT
    assert blocks.place(block_keys("What is 3 + 5?"), Split.TRAIN) is Split.TRAIN


def test_a_question_between_two_blocks_follows_the_one_it_shares_more_with() -> None:
    blocks = Blocks({}, Counter(), 0.2)
    keys = block_keys(QUESTION)
    one, other = block_keys("one"), block_keys("other")
    for mine, theirs, side in ((one, 2, Split.TRAIN), (other, 1, Split.HELDOUT)):
        for key in mine.near[:theirs]:
            blocks._enter(key, side)
    between = keys.__class__(same=keys.same, near=(*one.near[:2], other.near[0], *keys.near[3:]))
    assert blocks.place(between, Split.HELDOUT) is Split.TRAIN
    even = keys.__class__(same=1, near=(one.near[0], other.near[0], *range(10)))
    assert blocks.place(even, Split.TRAIN) is Split.HELDOUT, "in doubt nothing is added to training"


@pytest.mark.parametrize("first", list(Split))
def test_a_world_of_one_template_has_both_sides(first: Split) -> None:
    blocks = Blocks({}, Counter(), 0.2)
    rng = random.Random(0)
    sides = []
    for number in range(400):
        own = first if not number else Split.HELDOUT if rng.random() < 0.2 else Split.TRAIN
        sides.append(blocks.place(block_keys(f"What is {number} + {rng.randint(1, 999)}?"), own))
    assert set(sides[:LARGE]) == {first}
    assert 0.12 < sides[LARGE + 1 :].count(Split.HELDOUT) / len(sides[LARGE + 1 :]) < 0.28
    wrapped = [
        blocks.place(block_keys(f"Question: What is 7 + {number}?"), Split.TRAIN) for number in range(1000, 1050)
    ]
    again = [blocks.place(block_keys(f"What is 7 + {number}?"), Split.HELDOUT) for number in range(1000, 1050)]
    assert wrapped == again, "spellings of one question are never parted"


def test_a_large_block_binds_while_both_sides_have_their_share() -> None:
    blocks = Blocks({}, Counter({Split.TRAIN: 80, Split.HELDOUT: 20}), 0.2)
    for number in range(10 * LARGE):
        # Other held-out questions keep that side's share.
        blocks.place(block_keys(unrelated_question(number)), Split.HELDOUT)
        own = Split.TRAIN if not number else Split.HELDOUT
        assert blocks.place(block_keys(f"What is {number} + 1?"), own) is Split.TRAIN
    assert not any(key.is_open for key in blocks.keys.values())


@given(st.lists(st.sampled_from([*SAME, *(twin for twin, _ in NEAR)]), max_size=30), st.binary(min_size=1, max_size=8))
@settings(max_examples=50)
def test_no_order_of_arrival_parts_a_block(texts: list[str], secret: bytes) -> None:
    world = World(share=0.5, secret=secret)
    assert len({world.arrive(text.format(QUESTION)) for text in ["{}", *texts]}) == 1
