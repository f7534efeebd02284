import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gadfly.records import Split
from gadfly.store.split import normalise_question, question_hash, split_of

SECRET = bytes(range(32))
SAME = [  # two askings, why they are one question
    ("What is 2 + 2?", "what is  2 + 2", "case, space, closing mark"),
    ("What is 2 + 2?\n", "\tWhat is\n2 + 2 ?", "line ends"),
    ('"What is 2 + 2?"', "What is 2 + 2?", "quoted as a whole"),
    ("Janet’s ducks lay 16 eggs", "Janet's ducks lay 16 eggs", "typographic apostrophe"),
    ("5 − 3", "5 - 3", "minus sign and hyphen"),
    ("pages 3–5", "pages 3-5", "dash"),
    ("cafe\u0301", "caf\u00e9", "composed and decomposed"),
    ("STRASSE", "straße", "case folding, not lower case"),
    ("１２ apples", "12 apples", "full-width digits"),
    ("1\u200b2 apples\ufeff", "12 apples", "invisible characters"),
    ("Help me, please!!", "help me, please", "tone"),
    ("a\u00a0b", "a b", "no-break space"),
    ("x\x00y", "x\ufffdy", "as it would be stored"),
]
DIFFERENT = [
    ("What is 5 + 2?", "What is 5 + 3?", "another number"),
    ("What is 5² ?", "What is 52?", "superscript"),
    ("What is H₂ + 1?", "What is H2 + 1?", "subscript"),
    ("3½ cups", "31/2 cups", "vulgar fraction"),
    ("3 ① 4", "314", "circled digit"),
    ("-5 + 3", "5 + 3", "leading sign"),
    (".5 + 3", "5 + 3", "leading decimal point"),
    ("What is 5!", "What is 5?", "factorial"),
    ("What is (n+1)!", "What is (n+1)?", "factorial of an expression"),
    ("What is n!", "What is n?", "factorial of a variable"),
    ("1,000 eggs", "1000 eggs", "a comma may be a decimal point"),
    ("1 2", "12", "space between digits"),
    ("0.5", "05", "decimal point"),
    ("What is 50%", "What is 50", "percent"),
]


@pytest.mark.parametrize(("one", "other", "why"), SAME)
def test_one_question(one: str, other: str, why: str) -> None:
    assert normalise_question(one) == normalise_question(other)
    assert question_hash(one) == question_hash(other)


@pytest.mark.parametrize(("one", "other", "why"), DIFFERENT)
def test_two_questions(one: str, other: str, why: str) -> None:
    assert question_hash(one) != question_hash(other)


@pytest.mark.parametrize("question", ["???", "!", " . ", "''", "\ud800", "\u200b"])
def test_anything_has_a_hash(question: str) -> None:
    assert len(question_hash(question)) == 32


def test_tens_of_thousands_of_quotation_marks_are_quickly_off() -> None:
    started = time.process_time()
    assert normalise_question("'" * 50_000 + "x" + "'" * 50_000) == "x"
    assert time.process_time() - started < 2  # a new text for each pair would take a minute


@given(st.text(max_size=40))
@example("ŉ")
@example("𝘼")
@example("₋")
def test_normalising_is_idempotent(question: str) -> None:
    assert normalise_question(normalise_question(question)) == normalise_question(question)


@given(st.integers(min_value=-(10**9), max_value=10**9), st.integers(min_value=-(10**9), max_value=10**9))
def test_other_numbers_are_another_question(one: int, other: int) -> None:
    same = question_hash(f"What is {one} times 3?") == question_hash(f"What is {other} times 3?")
    assert same == (one == other)


def test_the_split_follows_the_share() -> None:
    hashes = [question_hash(f"What is {number} + 1?") for number in range(10_000)]
    heldout = {hash_ for hash_ in hashes if split_of(hash_, 0.2, secret=SECRET) is Split.HELDOUT}
    assert 1_850 < len(heldout) < 2_150  # 0.2 +- 3.75 standard deviations
    larger = {hash_ for hash_ in hashes if split_of(hash_, 0.3, secret=SECRET) is Split.HELDOUT}
    assert heldout < larger  # a larger share adds only


def test_the_split_is_unknown_without_the_secret() -> None:
    hashes = [question_hash(f"What is {number} + 1?") for number in range(10_000)]
    ours, theirs, bare = (
        {hash_ for hash_ in hashes if is_heldout(hash_)}
        for is_heldout in (
            lambda hash_: split_of(hash_, 0.2, secret=SECRET) is Split.HELDOUT,
            lambda hash_: split_of(hash_, 0.2, secret=b"another") is Split.HELDOUT,
            lambda hash_: int.from_bytes(hash_[:8]) < 0.2 * 2**64,  # the side that a caller can compute
        )
    )
    for guess in (theirs, bare):
        assert 300 < len(ours & guess) < 500  # 20 % of a guess of 20 % is right by chance: 400 +- 20
