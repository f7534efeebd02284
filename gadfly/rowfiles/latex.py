r"""LaTeX commands that a JSON reader turned into control characters, and their repair.

A program that writes `"\frac"` into JSON without doubling the backslash writes an escape: a form feed and `rac`. The
file is valid JSON and the text is damaged. The damage can be undone where control character and letters together are a
command, and could be nothing else.
"""

import re

_LETTERS = {"\b": "b", "\f": "f", "\t": "t", "\n": "n", "\r": "r"}

# Nothing but LaTeX explains these letters after the character. No text needs a backspace; a form feed may end a page,
# and tabs and line ends may stand before any word.
_CERTAIN = {
    "\b": "oxed oxplus eta ar egin inom f ig igg igl igr iggl iggr mod ot ullet ecause igcup igcap igoplus igotimes "
    "igvee igwedge oldsymbol m reve ackslash eth owtie igtriangleup igcirc igstar lacksquare lacktriangle",
    "\f": "rac orall lat rown",
    "\t": "imes heta frac riangle riangleq riangleleft riangleright ilde extbf extit extrm extstyle herefore anh",
    "\n": "abla otin leq geq subseteq supseteq earrow warrow olimits onumber ewline vdash",
    "\r": "ight ightarrow ightharpoonup",
}
_WITH_BRACE = {"\f": "box ramebox ootnote", "\t": "ext", "\n": "eq", "\r": "aisebox"}
# Words, or parts of words, as well: they count only inside a formula, after an odd number of dollar signs.
_DOUBTFUL = {
    "\t": "au an o op ext ag",
    "\n": "u e eq eg i ot exists mid parallel",
    "\r": "ho m oot angle ceil floor brace brack times vert",
}


def _alternatives(words: dict[str, str], ending: str = "") -> str:
    patterns = []
    for control, tails in words.items():
        longest_first = sorted(set(tails.split()), key=len, reverse=True)
        patterns.append(f"{re.escape(control)}(?:{'|'.join(longest_first)})(?![A-Za-z]){ending}")
    return "|".join(patterns)


_DAMAGED = re.compile(f"{_alternatives(_CERTAIN)}|{_alternatives(_WITH_BRACE, '(?={)')}")
_MAYBE = re.compile(_alternatives(_DOUBTFUL, r"(?=\s*(?:[\d^_{}\\=+<>()]|$))"))  # mathematics goes on behind it
_CONTROL = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]")


def repaired(text: str) -> str:
    """The text with damaged commands written as LaTeX again."""
    text = _DAMAGED.sub(_as_command, text)
    if "$" not in text:
        return text
    formula = text.split("$")
    return "$".join(_MAYBE.sub(_as_command, part) if place % 2 else part for place, part in enumerate(formula))


def is_suspect(text: str) -> bool:
    """Whether a line or a column begins as the rest of a command would, and with mathematics behind it."""
    return _MAYBE.search(text) is not None


def _as_command(found: re.Match[str]) -> str:
    return f"\\{_LETTERS[found[0][0]]}{found[0][1:]}"


def control_character(text: str) -> str | None:
    """The first control character that no text needs, as `U+0008`; None: there is none."""
    found = _CONTROL.search(text)
    return None if found is None else f"U+{ord(found[0]):04X}"
