import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gadfly.errors import UnreadableReference
from gadfly.grading import Grade, Grader, extract_answer, grade, grade_many, read_reference
from gadfly.grading.kinds import Choice, Number, Text, YesNo
from gadfly.grading.numbers import Unread
from gadfly.grading.text import MAX_RESPONSE_CHARS
from tests.support.grading_cases import CASES, MATH_CASES, REFERENCES, UNREADABLE
from tests.support.grading_causes import CAUSES, CUT, Must

LIMIT_S = 1.0
SLOW_S = 3.0  # far below seconds for each character more, far above a busy machine
HANGS = "9^{9^{9^{9}}}"  # sympy tries to compute it
ROOT = Path(__file__).parents[2]

# Children that go wrong, put in the real one's place.
READY = "import json, sys\nprint(json.dumps({'ready': True}), flush=True)\n"
DIES_AT_A_RESPONSE = (
    sys.executable,
    "-c",
    READY
    + """for line in sys.stdin:
    for response, reference, is_cut, question in json.loads(line):
        if response == "poison" or reference == "poison":
            sys.exit(3)
        print(json.dumps({"outcome": "" if response is None else "right"}), flush=True)""",
)
FAILS = (
    sys.executable,
    "-c",
    READY
    + """for line in sys.stdin:
    for response, reference, is_cut, question in json.loads(line):
        outcome = "no_answer" if response else "cannot be read" if reference == "poison" else ""
        print(json.dumps({"outcome": outcome, "failed": "KeyError: 'x'"}), flush=True)""",
)
NEVER_STARTS = (sys.executable, "-c", "import sys; sys.exit(1)")


@pytest.mark.parametrize(("reply", "reference", "expected", "reason"), CASES, ids=[case[3] for case in CASES])
def test_case(reply: str, reference: str, expected: Grade, reason: str) -> None:
    assert grade(reply, read_reference(reference)) is expected, reason


@pytest.mark.parametrize(("reply", "reference", "expected", "reason"), MATH_CASES, ids=[case[3] for case in MATH_CASES])
def test_math_case(reply: str, reference: str, expected: Grade, reason: str) -> None:
    assert grade(reply, read_reference(reference)) is expected, reason


ALLOWED = {
    Must.RIGHT: {Grade.RIGHT},
    Must.NOT_RIGHT: {Grade.WRONG, Grade.NO_ANSWER},
    Must.DOUBT: {Grade.NO_ANSWER},
    Must.WRONG: {Grade.WRONG},
}


@pytest.mark.parametrize("cause", CAUSES)
def test_cause(cause: str) -> None:
    failed = [
        (reply, reference, must, found)
        for reply, reference, must in CAUSES[cause]
        if (found := grade(reply, read_reference(reference))) not in ALLOWED[must]
    ]
    assert failed == []


def test_a_cut_reply_has_an_answer_only_where_one_was_stated_before_the_cut() -> None:
    failed = [
        (reply, reference, must, found)
        for reply, reference, must in CUT
        if (found := grade(reply, read_reference(reference), is_cut=True)) not in ALLOWED[must]
    ]
    assert failed == []


LEFT_SIDES = (
    *(
        "x_1",
        "f(2)",
        "f'(2)",
        "a_{10}",
        "|z|",
        r"\overline{AB}",
        r"\angle ABC",
        "P(A|B)",
        r"\mathbb{E}[X]",
        r"\bar{x}",
        r"\det A",
    ),
    *(
        r"\gcd(12,18)",
        r"\max f",
        r"\lim_{x\to 2} f(x)",
        r"\sum_{n=1}^{\infty} a_n",
        r"\int_0^1 f(x)\,dx",
        r"\frac{dy}{dx}",
    ),
    *(
        r"\frac{\partial f}{\partial x}",
        "y''",
        r"\sin x",
        r"\log_2 x",
        "e^x",
        "2x",
        r"\frac{x}{y}",
        r"\arg z",
        r"\binom{6}{2}",
    ),
    *(
        "2^{3}",
        r"\sqrt{16}",
        r"7 \times 8",
        r"\sin 90^\circ",
        "5!",
        r"\Delta x",
        r"x \bmod 7",
        "x^2+y^2",
        "x_1x_2",
        r"\vec{a}\cdot\vec{b}",
    ),
)


@pytest.mark.parametrize("left", LEFT_SIDES)
def test_an_equation_takes_no_other_right_side(left: str) -> None:
    values = ("3", r"\frac{1}{2}", r"2\sqrt{3}", "-3")
    for value in values:
        reference = read_reference(f"{left} = {value}")
        for other in values:
            assert (grade(f"\\boxed{{{left} = {other}}}", reference) is Grade.RIGHT) is (other == value), (
                left,
                value,
                other,
            )


@pytest.mark.parametrize(
    "text", ["1. Add.\n2. Divide.\n3.", "### Step 3", "Figure 3", "- days: 3", "Then 3 people leave, and the"]
)
def test_what_is_no_answer_to_one_reference_is_none_to_its_number(text: str) -> None:
    for reference in ("3", "5", "B", "yes", "1, 2"):
        assert grade(text, read_reference(reference)) is Grade.NO_ANSWER


def test_a_made_up_next_question_makes_no_right_reply_wrong() -> None:
    next_task = "\n\nQuestion: Tom has 3 pens and buys 958.\nThe answer is 961."
    rows = [row for cause in CAUSES.values() for row in cause if row[2] is Must.RIGHT]
    assert [row for row in rows if grade(row[0] + next_task, read_reference(row[1])) is Grade.WRONG] == []


REPEATED = (
    *(
        "9",
        "1 ",
        "1,",
        "A: ",
        "the answer is ",
        "\\boxed{",
        "{",
        "(",
        "$",
        "\n",
        "1. ",
        "Q: ",
        "Problem 1:\n",
        "Question: ?\n",
        "**",
        "~~",
    ),
    *(
        "<b>",
        "&#36;",
        "<|im_end|>",
        '{"answer": ',
        "not ",
        "is ",
        "is not ",
        "or ",
        "yes ",
        "because ",
        "one half ",
        "3 hours ",
        "May 3, ",
    ),
    *(
        "x < ",
        "\\cup ",
        "=",
        "-",
        "٣",
        "答案",
        "'",
        " per ",
        "\\begin{aligned}",
        "\\\\",
        "<think>",
        "? ",
        "\u202f1",
        "0.\\overline{",
        "| ",
        "#### 1\n",
    ),
)


@pytest.mark.parametrize("reference", ["18", "0.5", "(B) 12", "yes", "1, 2", "Paris", "3 hours 20 minutes", "x > 3"])
def test_no_text_of_100_kilobytes_takes_long(reference: str) -> None:
    read = read_reference(reference)
    for piece in REPEATED:
        text = "The answer is 18 " + piece * (100_000 // len(piece)) + " 5"
        started = time.process_time()
        grade(text, read)
        assert time.process_time() - started < SLOW_S, piece


@pytest.mark.parametrize(("text", "answer", "reason"), REFERENCES, ids=[case[2] for case in REFERENCES])
def test_reference(text: str, answer: object, reason: str) -> None:
    assert read_reference(text).answer == answer, reason


@pytest.mark.parametrize(("text", "reason"), UNREADABLE, ids=[case[1] for case in UNREADABLE])
def test_unreadable_reference_is_an_error_for_its_sender(text: str, reason: str) -> None:
    with pytest.raises(UnreadableReference) as error:
        read_reference(text)
    assert error.value.field == "reference"
    assert len(str(error.value)) < 300, reason


def test_table_is_large_enough_and_says_each_thing_once() -> None:
    rows = CASES + MATH_CASES
    assert len(rows) >= 150
    assert len({(reply, reference) for reply, reference, _, _ in rows}) == len(rows)


def test_plain_rules_and_this_import_leave_sympy_alone() -> None:
    code = (
        "import sys; from gadfly.grading.process import grade, read_reference\n"
        "assert grade('A: 18', read_reference('18')) == 'right'\n"
        "assert grade('A: B', read_reference('B')) == 'right'\n"
        "assert not {'sympy', 'math_verify', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# --- properties

NUMBERS = st.one_of(
    st.integers(-(10**12), 10**12).map(str),
    st.integers(-(10**9), 10**9).map(lambda n: f"{n:,}"),
    st.decimals(-(10**6), 10**6, allow_nan=False, places=2).map(lambda d: f"{d:f}"),
    st.tuples(st.integers(-999, 999), st.integers(1, 999)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
)
STATED = st.sampled_from(
    [
        "A: {}",
        "#### {}",
        "The answer is {}.",
        "\\boxed{{{}}}",
        "So it is <<1+1=2>>{}",
        "**Answer:** {}",
        "x = 1 + 1 = {}",
    ]
)


@given(number=NUMBERS, stated=STATED)
def test_number_is_right_against_itself_however_stated(number: str, stated: str) -> None:
    assert grade(stated.format(number), read_reference(number)) is Grade.RIGHT


@given(number=NUMBERS, other=NUMBERS, stated=STATED)
def test_two_numbers_are_right_only_when_equal(number: str, other: str, stated: str) -> None:
    ours, theirs = read_reference(number).answer, read_reference(other).answer
    assert isinstance(ours, Number)
    assert isinstance(theirs, Number)
    assert (grade(stated.format(other), read_reference(number)) is Grade.RIGHT) is (ours.value == theirs.value)


@given(number=NUMBERS, other=NUMBERS, joint=st.sampled_from([" or ", ", ", " and ", " to ", ", maybe ", " (or "]))
def test_hedging_never_pays(number: str, other: str, joint: str) -> None:
    reference, second = read_reference(number), read_reference(other)
    if reference.answer != second.answer:
        assert grade(f"The answer is {number}{joint}{other}", reference) is not Grade.RIGHT
        assert grade(f"The answer is {other}{joint}{number}", reference) is not Grade.RIGHT


PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            (
                *(
                    "The answer is",
                    "A:",
                    "####",
                    "\\boxed{",
                    "}",
                    "{",
                    "$",
                    "\\frac",
                    "\\text{",
                    "=",
                    "1",
                    "2,3",
                    "1/0",
                    "-",
                ),
                *(
                    "%",
                    "(B)",
                    "yes",
                    "no",
                    "3:30",
                    "or",
                    "not",
                    "wait",
                    "\n",
                    ". ",
                    ", ",
                    "^",
                    "\\sqrt{",
                    "million",
                    "one",
                ),
                *("half", "**", "<<", ">>", "\\(", "\\)", "\\[", "\\]", "²", "½", "\0", "\ud800"),
            )
        ),
        st.text(max_size=6),
    ),
    max_size=30,
).map(" ".join)
KINDS = [read_reference(text) for text in ("18", "18 apples", "B", "yes", "3:30", "1, 2", "\\{1,2\\}", "Paris")]


@given(text=PIECES)
def test_any_response_gets_a_grade(text: str) -> None:
    for reference in KINDS:
        assert grade(text, reference) in Grade


@given(text=PIECES)
@settings(deadline=None)
def test_any_reference_is_read_or_refused(text: str) -> None:
    from gadfly.grading.kinds import needs_sympy  # noqa: PLC0415

    if not needs_sympy(text):  # those belong in the child
        try:
            read_reference(text)
        except UnreadableReference:
            return


PIECES_REPEATED = (
    *(
        "9",
        "1,",
        "1 ",
        "1e5",
        "1/",
        "1:",
        "$",
        "$1 ",
        "= ",
        " ",
        "\n",
        ". ",
        "(",
        "{",
        "**",
        "<<",
        "\0",
        "\ud800",
        "one ",
    ),
    *(
        "\\frac{1",
        "\\boxed{",
        "\\boxed{1} ",
        "\\(",
        "\\text{",
        "the answer is ",
        "\nA: ",
        "wait, no, ",
        "yes ",
        "A ",
        "1 or ",
        "so ",
        "so 1, ",
        "It's 1\n",
        "\\text{a}",
        "\\boxed{1}$",
        "—",
        "-{",
        "half ",
        "if the answer is 1. ",
        "**!",
        "1. . ",
        "\u2070",
        "x=1 ",
        "B or ",
    ),
)


@pytest.mark.parametrize("piece", PIECES_REPEATED)
def test_a_million_characters_are_read_quickly(piece: str) -> None:
    text = piece * (10**6 // len(piece))
    started = time.process_time()
    for reference in KINDS:
        assert grade(text, reference) in Grade
    assert time.process_time() - started < 5.0  # about 0.3 s on an idle machine; catastrophe is minutes


def test_only_the_end_of_a_long_response_is_read() -> None:
    filler = "She sells 9 eggs. " * (MAX_RESPONSE_CHARS // 10)
    assert grade(f"A: 18\n{filler}\nA: 26", read_reference("26")) is Grade.RIGHT
    assert grade("7" * MAX_RESPONSE_CHARS + "18", read_reference("18")) is not Grade.RIGHT


def test_what_was_read_is_visible() -> None:
    assert extract_answer("A: 18 eggs", read_reference("18")) == Number(value=18, unit=("egg",))
    assert extract_answer("A: 3 or 4", read_reference("18")) is Unread.HEDGED
    assert extract_answer("", read_reference("18")) is Unread.MISSING
    assert extract_answer("A: (C)", read_reference("B")) == Choice("C")
    assert extract_answer("No.", read_reference("yes")) == YesNo(truth=False)
    assert extract_answer("A: New  York.", read_reference("Paris")) == Text("new york")


# --- the child process


def _children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "gadfly.grading" in child.cmdline()]


async def test_grader_grades_in_its_child() -> None:
    async with Grader(timeout_s=LIMIT_S) as grader:
        assert await grader.grade("A: 18", "18") is Grade.RIGHT
        assert await grader.grade("A: 26", "18") is Grade.WRONG
        assert await grader.grade("", "18") is Grade.NO_ANSWER
        assert await grader.grade("The answer is $\\sqrt{12}$", "2\\sqrt{3}") is Grade.RIGHT
        assert await grader.grade("A: 18\0\ud800", "18") is Grade.RIGHT
        with pytest.raises(UnreadableReference, match="empty"):
            await grader.grade("A: 18", " ")
        await grader.check_reference("B")


async def test_answer_that_hangs_is_cut_off_and_the_next_one_graded() -> None:
    async with Grader(timeout_s=LIMIT_S) as grader:
        await grader.check_reference("2\\sqrt{3}")  # sympy is loaded now: from here on only the limit counts
        started, [child] = time.monotonic(), _children()
        assert await grader.grade(f"The answer is ${HANGS}$", "2\\sqrt{3}") is Grade.NO_ANSWER
        assert LIMIT_S <= time.monotonic() - started < 5 * LIMIT_S + 2.0  # 5: a machine that is busy with other things
        assert not child.is_running()
        assert await grader.grade("The answer is $2\\sqrt{3}$", "2\\sqrt{3}") is Grade.RIGHT


async def test_child_that_gets_no_processor_is_cut_off_too() -> None:
    async with Grader(timeout_s=0.2) as grader:
        await grader.check_reference("18")
        [child] = _children()
        child.suspend()
        assert await grader.grade("A: 18", "18") is Grade.NO_ANSWER
        assert not child.is_running()
        assert await grader.grade("A: 18", "18") is Grade.RIGHT


async def test_reference_that_hangs_is_its_senders_error() -> None:
    async with Grader(timeout_s=LIMIT_S) as grader:
        with pytest.raises(UnreadableReference, match="within 1 s"):
            await grader.grade("A: 18", HANGS)


async def test_child_killed_from_outside_costs_no_answer() -> None:
    async with Grader(timeout_s=LIMIT_S) as grader:
        await grader.grade("A: 18", "18")
        [child] = _children()
        child.kill()
        assert await grader.grade("A: 18", "18") is Grade.RIGHT


async def test_row_that_kills_the_child_has_no_answer_and_the_others_have() -> None:
    async with Grader(timeout_s=LIMIT_S, command=DIES_AT_A_RESPONSE) as grader:
        assert await grader.grade("poison", "18") is Grade.NO_ANSWER
        assert await grader.grade("A: 18", "18") is Grade.RIGHT
        rows = [("A: 18", "18"), ("poison", "18"), ("A: 18", "18"), ("poison", "18"), ("poison", "18"), ("A: 18", "18")]
        right, none = Grade.RIGHT, Grade.NO_ANSWER
        assert await grader.grade_all(rows) == [right, none, right, none, none, right]
        with pytest.raises(UnreadableReference, match="cannot be read"):
            await grader.check_reference("poison")


async def test_child_that_cannot_start_is_our_failure_and_not_a_grade() -> None:
    async with Grader(timeout_s=LIMIT_S, command=NEVER_STARTS) as grader:
        with pytest.raises(RuntimeError, match="does not start"):
            await grader.grade("A: 18", "18")


async def test_bug_in_the_child_costs_its_row_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with Grader(timeout_s=LIMIT_S, command=FAILS) as grader:
        assert await grader.grade("A: 18", "18") is Grade.NO_ANSWER
        with pytest.raises(UnreadableReference, match="cannot be read"):
            await grader.check_reference("poison")
    assert "KeyError: 'x'" in caplog.text


async def test_a_hundred_callers_are_all_answered_with_their_own_grade() -> None:
    async with Grader(timeout_s=LIMIT_S) as grader:
        grades = await asyncio.gather(*(grader.grade(f"A: {n}", str(n - n % 2)) for n in range(100)))
    assert grades == [Grade.WRONG if n % 2 else Grade.RIGHT for n in range(100)]


async def test_cancelled_caller_leaves_no_answer_for_the_next() -> None:
    async with Grader(timeout_s=30.0) as grader:
        await grader.check_reference("2\\sqrt{3}")
        hanging = asyncio.create_task(grader.grade(f"The answer is ${HANGS}$", "2\\sqrt{3}"))
        waiting = asyncio.create_task(grader.grade("A: 26", "18"))
        await asyncio.sleep(0.3)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        assert await waiting is Grade.WRONG
        assert await grader.grade("A: 18", "18") is Grade.RIGHT


async def test_closed_grader_refuses_and_its_child_is_gone() -> None:
    grader = Grader(timeout_s=LIMIT_S)
    await grader.grade("A: 18", "18")
    [child] = _children()
    await grader.close()
    assert not child.is_running()
    with pytest.raises(RuntimeError, match="closed"):
        await grader.grade("A: 18", "18")


PARENT = """
import asyncio, sys, psutil
from gadfly.grading.process import Grader
async def main():
    grader = Grader(timeout_s=2.0)
    await grader.check_reference(sys.argv[1])
    print(psutil.Process().children()[0].pid, flush=True)
    await grader.grade(sys.argv[2], sys.argv[1])
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("reference", "reply"),
    [("18", "A: 18"), ("2\\sqrt{3}", f"The answer is ${HANGS}$")],
    ids=["while it waits", "while it computes"],
)
def test_child_dies_with_a_parent_that_is_killed(reference: str, reply: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, reference, reply], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.3)  # the reply is on its way
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([child], timeout=60)  # at the latest after its limit, which is CPU time
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_child_keeps_to_its_protocol_and_its_memory() -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "gadfly.grading", "2.0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert json.loads(child.stdout.readline()) == {"ready": True}
        soft, hard = psutil.Process(child.pid).rlimit(psutil.RLIMIT_AS)
        assert soft == hard == 2 * 2**30
        child.stdin.write(json.dumps([["A: 18", "18", False, ""], [None, "", False, ""]]).encode() + b"\n")
        child.stdin.flush()
        assert json.loads(child.stdout.readline()) == {"outcome": "right"}
        assert "empty" in json.loads(child.stdout.readline())["outcome"]
        child.stdin.close()
        assert child.wait(timeout=10) == 0


def test_many_rows_from_a_command_line() -> None:
    rows = [(f"{n} + 0 = <<{n}+0={n}>>{n}\nA: {n}", str(n)) for n in range(2000)]
    rows[7] = ("A: 7", "")
    rows[8] = ("A: 9", "8")
    outcomes = grade_many(rows, timeout_s=LIMIT_S)
    assert isinstance(outcomes[7], UnreadableReference)
    assert outcomes[8] is Grade.WRONG
    assert [outcome for n, outcome in enumerate(outcomes) if n not in (7, 8)] == [Grade.RIGHT] * 1998


def test_row_that_hangs_among_many_costs_only_itself() -> None:
    rows = [("The answer is $2\\sqrt{3}$", "2\\sqrt{3}"), (f"The answer is ${HANGS}$", "2\\sqrt{3}"), ("A: 18", "18")]
    assert grade_many(rows, timeout_s=LIMIT_S) == [Grade.RIGHT, Grade.NO_ANSWER, Grade.RIGHT]
