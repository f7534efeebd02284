"""The demo's result as one picture: the same wrong answer before two critics, and the rates of both."""

import html
import textwrap
from collections.abc import Iterator

from gadfly.lab.story import Comparison, Story

_WIDTH = 980
_LINE = 18  # pixels between two lines of text
_COLUMNS = 56  # characters in a line of a critique
_SHOWN = ("verdict right (Acc@Dis)", "right after refinement (Acc@Refine)")
_STYLE = (
    "text { font: 14px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1c262b } "
    ".head { font-size: 19px; font-weight: 600 } .name { font-weight: 600 } .small { font-size: 13px; fill: #455a64 } "
    ".code { font: 13px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; white-space: pre } "
    ".good { fill: #0a7a3d } .bad { fill: #b3261e } .box { fill: #f4f6f8; stroke: #90a4ae } "
    ".bar { fill: #dfe5e8 } .before { fill: #90a4ae } .after { fill: #0a7a3d }"
)


def picture(story: Story) -> str:
    """An SVG of 980 pixels' width: a fresh wrong answer with both critiques and rewrites, and the rates below.

    Raises:
        ValueError: the run published no critic, so there is nothing to compare.
    """
    if story.version is None:
        raise ValueError("the run published no critic")
    shown = story.side_by_side[0]
    body: list[str] = []
    y = _question(body, shown)
    y = _critics(body, shown, story.version, top=y + 14)
    y = _rates(body, story, story.version, top=y + 30)
    description = (
        f"Critic 0 calls a wrong answer {shown.results[0]['verdict']}; "
        f"after one training run critic {story.version} calls it {shown.results[story.version]['verdict']}."
    )
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" role="img">',
            f"<title>A critic before and after one training run</title><desc>{html.escape(description)}</desc>",
            f'<style>{_STYLE}</style><rect width="{_WIDTH}" height="{y}" fill="#ffffff"/>',
            *body,
            "</svg>",
            "",
        )
    )


def _text(x: int, y: int, text: str, style: str = "") -> str:
    return f'<text x="{x}" y="{y}" class="{style}">{html.escape(text)}</text>'


def _wrapped(text: str, columns: int) -> Iterator[str]:
    for line in text.splitlines():
        yield from textwrap.wrap(line, columns) or [""]


def _question(body: list[str], shown: Comparison) -> int:
    y = 34
    body.append(_text(20, y, "One wrong answer, judged before and after one training run", "head"))
    for label, text in (("Question", shown.case.problem.text), ("Answer", " ".join(shown.case.response.split()))):
        y += 8
        for number, line in enumerate(_wrapped(text, 118)):
            y += _LINE
            body.append(_text(20, y, label if number == 0 else "", "name"))
            body.append(_text(100, y, line))
    y += _LINE + 8
    body.append(_text(100, y, f"The right answer is {shown.case.problem.answer}.", "small"))
    return y


def _critics(body: list[str], shown: Comparison, version: int, *, top: int) -> int:
    columns = []
    for number in (0, version):
        result = shown.results[number]
        lines = [("code", line) for line in _wrapped(result["critique"], _COLUMNS)]
        kind = "good" if result["grade"] == "right" else "bad"
        refined = " ".join(result["refined"].split())
        lines += [("", ""), ("name", f"The rewrite is {result['grade'].replace('_', ' ')}:")]
        lines += [(f"code {kind}", line) for line in _wrapped(refined, _COLUMNS)]
        columns.append((number, lines))
    height = 50 + _LINE * max(len(lines) for _, lines in columns)
    for place, (number, lines) in enumerate(columns):
        x = 20 + place * 480
        kind = "good" if shown.is_verdict_right(number) else "bad"
        body.append(f'<rect class="box" x="{x}" y="{top}" width="460" height="{height}" rx="6"/>')
        title = f"critic@{number}{' (untrained)' if number == 0 else ''}: {shown.results[number]['verdict']}"
        body.append(_text(x + 14, top + 26, title, f"name {kind}"))
        body.extend(
            _text(x + 14, top + 50 + _LINE * row, line, style) for row, (style, line) in enumerate(lines) if line
        )
    return top + height


def _rates(body: list[str], story: Story, version: int, *, top: int) -> int:
    before, after = ({name: share for name, share, _ in story.rates(number)} for number in (0, version))
    y = top
    for name in _SHOWN:
        body.append(_text(20, y + 19, name))
        for row, (number, share, style) in enumerate(((0, before[name], "before"), (version, after[name], "after"))):
            at = y + 13 * row
            body.append(f'<rect class="bar" x="300" y="{at}" width="560" height="11"/>')
            body.append(f'<rect class="{style}" x="300" y="{at}" width="{round(560 * share)}" height="11"/>')
            body.append(_text(870, at + 10, f"{share:.0%}  critic@{number}", "small"))
        y += 40
    body.append(
        _text(20, y + 8, f"{len(story.comparisons)} fresh answers, half of them wrong; `gadfly demo`.", "small")
    )
    return y + 26
