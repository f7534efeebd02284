"""SQL answers are run on the task's databases, which they cannot change, fill or block."""

import time
from pathlib import Path

import pytest

from gadfly.grading import Grade, Submission
from gadfly.settings import Settings
from gadfly.tasks import load_task, open_grader
from gadfly.tasks.sql import open_database
from gadfly.tasks.task import load_rules

RIGHT, WRONG, NO_ANSWER = Grade.RIGHT, Grade.WRONG, Grade.NO_ANSWER
NAMES = "SELECT name FROM products WHERE category = 'books'"
BY_PRICE = "SELECT name, price FROM products ORDER BY price DESC"
CASES = [  # query, reference, grade, why this row exists
    ("SELECT p.name FROM products AS p WHERE p.category LIKE 'books';", NAMES, RIGHT, "another query, the same rows"),
    ("SELECT name FROM products WHERE category = 'books' ORDER BY name DESC", NAMES, RIGHT, "no order was asked for"),
    ("SELECT name FROM products WHERE category = 'toys'", NAMES, WRONG, "other rows"),
    ("SELECT name FROM products WHERE id IN (3, 4)", NAMES, WRONG, "the same rows on the first database alone"),
    ("SELECT name, price FROM products WHERE category = 'books'", NAMES, WRONG, "one column more"),
    ("SELECT nme FROM products", NAMES, WRONG, "does not run"),
    ("not SQL", NAMES, WRONG, "no SQL"),
    ("SELECT price, name FROM products ORDER BY price DESC", BY_PRICE, NO_ANSWER, "the columns in another order"),
    ("SELECT name, price FROM products ORDER BY price", BY_PRICE, NO_ANSWER, "the rows in another order"),
    ("SELECT name, price FROM products ORDER BY price DESC, id", BY_PRICE, RIGHT, "the order that was asked for"),
    ("SELECT 2 * AVG(price) / 2 FROM products", "SELECT AVG(price) FROM products", RIGHT, "rounding is no difference"),
    ("SELECT COUNT(*) + 0.0 FROM orders", "SELECT COUNT(*) FROM orders", RIGHT, "2.0 is 2"),
    ("SELECT CAST(COUNT(*) AS TEXT) FROM orders", "SELECT COUNT(*) FROM orders", WRONG, "a text is no number"),
    ("SELECT name FROM products; SELECT 1", NAMES, WRONG, "two statements"),
    ("DELETE FROM products", NAMES, WRONG, "a statement that would change the database"),
    ("SELECT name FROM products ORDER BY RANDOM() LIMIT 2", NAMES, WRONG, "a query that is right by chance"),
]
REFUSED = [  # reference, words of the message
    ("SELECT nme FROM products", "does not run on shop.sql: no such column: nme"),
    ("DROP TABLE products", "does not run on shop.sql: not authorized"),
    ("SELECT name FROM products WHERE price > 1e6", "selects nothing"),
    ("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT MAX(n) FROM c", "takes longer than"),
    ("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 20000) SELECT n FROM c", "more than 10,000"),
]  # fmt: skip
ATTACKS = [
    "ATTACH DATABASE '/etc/passwd' AS stolen",
    "SELECT load_extension('x')",
    "PRAGMA query_only = OFF",
    "INSERT INTO products VALUES (9, 'x', 'y', 1)",
    "CREATE TABLE t (a)",
    "VACUUM INTO '/tmp/copy'",
    "SELECT zeroblob(500000000)",
    "SELECT replace(hex(zeroblob(500000)), '0', 'aaaaaaaaaa')",
]


def fenced(query: str) -> str:
    return f"The query is:\n```sql\n{query}\n```"


@pytest.fixture(scope="module")
def rules():  # type: ignore[no-untyped-def]
    task = load_task("sql")
    return load_rules(task.manifest, task.folder, limit_s=3.0)


@pytest.mark.parametrize(("query", "reference", "expected", "reason"), CASES, ids=[row[3] for row in CASES])
def test_case(rules, query: str, reference: str, expected: Grade, reason: str) -> None:  # type: ignore[no-untyped-def]
    assert rules.problem(reference) == ""
    assert rules.grade(Submission(fenced(query), reference)) is expected, reason


@pytest.mark.parametrize(("reference", "message"), REFUSED)
def test_a_reference_that_tells_nothing_is_its_senders_error(rules, reference: str, message: str) -> None:  # type: ignore[no-untyped-def]
    assert message in rules.problem(reference)


@pytest.mark.parametrize("query", ATTACKS)
def test_a_query_reads_these_tables_and_does_nothing_else(rules, query: str) -> None:  # type: ignore[no-untyped-def]
    assert rules.grade(Submission(fenced(query), NAMES)) is WRONG
    assert rules.grade(Submission(fenced(NAMES), NAMES)) is RIGHT


def test_every_variant_of_a_database_has_the_same_tables() -> None:
    folder = load_task("sql").folder
    tables = []
    for script in sorted(folder.glob("*.sql")):
        database = open_database(script)
        tables.append(database.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall())
        for name, _ in tables[-1]:
            assert database.execute(f"SELECT * FROM {name}").fetchone() is not None
    assert tables[0] == tables[1]


async def test_a_query_without_end_has_no_answer_and_blocks_no_other() -> None:
    endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT MAX(n) FROM c"
    cross = "SELECT COUNT(*) FROM items a, items b, items c, items d, items e, items f, items g, items h, items i"
    started = time.monotonic()
    async with open_grader(load_task("sql"), Settings(grade_timeout_s=2.0)) as grader:
        rows = [Submission(fenced(query), NAMES) for query in (endless, cross, NAMES)]
        assert await grader.grade_all(rows) == [NO_ANSWER, NO_ANSWER, RIGHT]
    assert time.monotonic() - started < 120


def test_examples_in_the_prompts_run(tmp_path: Path) -> None:
    database = open_database(load_task("sql").folder / "shop.sql")
    assert database.execute("SELECT COUNT(*) FROM customers WHERE city = 'Bremen'").fetchone() == (2,)
