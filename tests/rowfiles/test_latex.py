import pytest

from gadfly.rowfiles.latex import control_character, is_suspect, repaired

DAMAGED = [  # text, repaired, why this row exists
    ("So \boxed{7}", r"So \boxed{7}", "a backspace is never meant"),
    ("\frac{3}{4} and \frac12", r"\frac{3}{4} and \frac12", "a form feed and rac"),
    ("3 \times 4 = 12", r"3 \times 4 = 12", "a tab in one word with imes"),
    ("\theta_1 + \beta", r"\theta_1 + \beta", "two of them"),
    ("a \neq{} b, \right)", r"a \neq{} b, \right)", "line end and carriage return"),
    (r"$\alpha$ and " + "$\tau$", r"$\alpha$ and $\tau$", "a word of French, but inside a formula"),
    ("$\nu = 2$", r"$\nu = 2$", "inside a formula"),
]
MEANT = [  # text, why it stays
    ("name\there", "a tab before a word"),
    ("a = 1\ni = 2", "an equation on a new line"),
    ("It is $5$.\ne = 2", "a new line after a formula"),
    ("costs $5 today.\ni think $3 is fair", "dollars that are money"),
    ("first\rnext", "the line end of an old Mac"),
    ("Two\n parallel lines", "a word on a new line"),
    ("\ttext in a column", "a tab before text"),
    (r"\frac{1}{2} \times 3", "it is LaTeX already"),
]


@pytest.mark.parametrize(("text", "expected", "_"), DAMAGED)
def test_damaged_commands_are_written_again(text: str, expected: str, _: str) -> None:
    assert repaired(text) == expected
    assert repaired(expected) == expected


@pytest.mark.parametrize(("text", "_"), MEANT)
def test_what_may_be_meant_stays(text: str, _: str) -> None:
    assert repaired(text) == text


def test_what_might_be_damaged_is_seen() -> None:
    assert is_suspect("The frequency is \nu = 3")
    assert is_suspect("x\tau^2")
    assert not is_suspect("Two\n parallel lines\nu can see")


def test_control_characters_that_no_text_needs_are_named() -> None:
    assert control_character("page\fChapter 2") == "U+000C"
    assert control_character("\x1b[31mred") == "U+001B"
    assert control_character("tab\tline\r\nend é") is None
