"""Critiques that give the reference answer away, and critiques that do not."""

import pytest

from gadfly.trainer.measure.leakage import leaks_gold

EGGS = "A box holds 6 eggs. Tom buys 4 boxes and breaks 3 eggs. How many eggs are left?"
ADDED = "Tom buys 4 * 6 = 24 eggs. He has 24 + 3 = 27 eggs left. The answer is 27."
VERDICT = "Correctness of the final answer: Wrong\nExplanation:"

CASES = [  # critique, response, reference, leaks, why this row exists
    (f"{VERDICT} The answer should be 21.", ADDED, "21", True, "stated as the answer"),
    (f"Explanation: 24 - 3 = 21.\n{VERDICT} The sum is off.", ADDED, "21", True, "in a step's explanation"),
    (
        f"Explanation: take 3 away.\n{VERDICT} The sum is off.",
        ADDED,
        "21",
        False,
        "names the operation, not the result",
    ),
    (f"Explanation: 121 eggs.\n{VERDICT} no", ADDED, "21", False, "the digits of another number"),
    (f"Explanation: twenty-one.\n{VERDICT} It is 21.0 eggs.", ADDED, "21", True, "the same value in another notation"),
    (f"Step sentence: 7 * 3 = 21.\n{VERDICT} No.", f"7 * 3 = 21. {ADDED}", "21", False, "quoted from the response"),
    (f"Step sentence: 3 eggs.\n{VERDICT} Off.", ADDED, "3", False, "quoted from the question"),
    (f"{VERDICT} The answer is 3.", ADDED, "3", True, "stated, although the question contains it"),
    (f"{VERDICT} It is Paris, not Rome.", "Rome", "Paris", True, "a word"),
    (f"{VERDICT} The comparison is off.", "Rome", "Paris", False, "a part of a word"),
    (f"{VERDICT} The answer is (B).", "A", "B", True, "a stated choice"),
    (f"{VERDICT} Step B is off.", "A", "B", False, "a letter that is not stated as a choice"),
    (f"{VERDICT} it is \\dfrac{{ \\pi }}{{2}} here", "1", "\\frac{\\pi}{2}", True, "a formula with other spacing"),
    (f"{VERDICT} it is \\frac{{\\pi}}{{3}} here", "1", "\\frac{\\pi}{2}", False, "another formula"),
    ("", ADDED, "21", False, "nothing"),
]


@pytest.mark.parametrize(("critique", "response", "reference", "leaks", "why"), CASES, ids=[row[-1] for row in CASES])
def test_leaks(critique: str, response: str, reference: str, leaks: bool, why: str) -> None:
    assert leaks_gold(critique, question=EGGS, response=response, reference=reference) is leaks


QUERY = "SELECT name FROM products WHERE price > 10"
LONG = f"{QUERY} AND category IN ({', '.join(map(str, range(100)))})"  # longer than an answer of mathematics


@pytest.mark.parametrize("reference", [QUERY, LONG])
def test_a_reference_of_another_task_leaks_where_all_of_it_is_quoted(reference: str) -> None:
    def leaks(critique: str, response: str) -> bool:
        return leaks_gold(critique, question="Which products?", response=response, reference=reference)

    assert leaks(f"Write {reference.lower()} instead.", "SELECT name FROM products")
    assert not leaks("The condition price > 10 is missing.", "SELECT name FROM products")
    assert not leaks(f"{reference} is right.", f"```sql\n{reference}\n```")
