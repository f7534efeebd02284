"""The answer that a response states, by the form of a task's answers.

When in doubt there is no answer: a block or tag that is not closed, or a last line where a token limit ended the text,
may not be all of it. All functions take time linear in the text, which comes from outside.
"""

import json
import re

from gadfly.grading.replies import ReplyText, own_turn
from gadfly.grading.text import MAX_RESPONSE_CHARS
from gadfly.tasks.manifest import AnswerForm, Form

_FENCE = re.compile(r"^[ \t]{0,12}```[ \t]*([\w+#.-]{0,30})[^\n]{0,200}$")
_JSON_STARTS = re.compile(r"[{\[]")
_IS_MEANT = re.compile(r'\{\s*"|\[\s*[{\["]')
_MAX_JSON_STARTS = 200
_DECODER = json.JSONDecoder(strict=False)


def stated_answer(form: AnswerForm, response: str, *, is_cut: bool = False) -> str | None:
    """The answer without outer white space; None where `response` states none, or its token limit ended it first.

    Of a response with thoughts and further turns, only what the model answered in its own turn is read; of a very long
    one, its last `MAX_RESPONSE_CHARS` characters.
    """
    reply = own_turn(response[-MAX_RESPONSE_CHARS:], is_cut=is_cut)
    found: str | None
    match form.form:
        case Form.WHOLE:
            found = None if reply.is_cut else reply.text
        case Form.LAST_LINE:
            found = None if reply.is_cut else next(filter(str.strip, reversed(reply.text.splitlines())), None)
        case Form.AFTER:
            found = _after(reply, form.marker)
        case Form.TAG:
            found = _tagged(reply.text, form.marker.strip("<>/ "))
        case Form.FENCED:
            found = _fenced(reply.text, form.language)
        case Form.JSON:
            found = _last_json(reply.text)
    return (found or "").strip() or None


def example_of(form: AnswerForm) -> str:
    """A response that states an answer in this form."""
    match form.form:
        case Form.AFTER:
            return f"{form.marker} 42\n"
        case Form.TAG:
            tag = form.marker.strip("<>/ ")
            return f"<{tag}>42</{tag}>"
        case Form.FENCED:
            return f"```{form.language}\n42\n```"
        case Form.JSON:
            return '{"answer": 42}'
    return "42"


def _after(reply: ReplyText, marker: str) -> str | None:
    wanted = re.compile(re.escape(marker), re.IGNORECASE)
    for line in reversed(reply.text.splitlines(keepends=True)):
        if found := list(wanted.finditer(line)):
            return None if reply.is_cut and not line.endswith("\n") else line[found[-1].end() :]
    return None


def _tagged(text: str, tag: str) -> str | None:
    tags = list(re.finditer(rf"<(/?){re.escape(tag)}>", text, re.IGNORECASE))
    if len(tags) < 2 or tags[-2][1] or not tags[-1][1]:  # an open tag at the end may begin a correction
        return None
    return text[tags[-2].end() : tags[-1].start()]


def _fenced(text: str, language: str) -> str | None:
    found: str | None = None
    block: list[str] | None = None
    is_wanted = False
    for line in text.splitlines():
        fence = _FENCE.match(line)
        if block is None:
            if fence:
                block = []
                is_wanted = not language or fence[1].casefold() in ("", language.casefold())
        elif line.strip() == "```":
            found = "\n".join(block) if is_wanted else found
            block = None
        else:
            block.append(line)
    return None if block is not None and is_wanted else found  # one that is open may be a correction


def _last_json(text: str) -> str | None:
    found: str | None = None
    place = 0
    for _ in range(_MAX_JSON_STARTS):
        start = _JSON_STARTS.search(text, place)
        if start is None:
            break
        try:
            value, place = _DECODER.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            if _IS_MEANT.match(text, start.start()):
                return None  # it is broken off or faulty, and what it contains is not the answer
            place = start.end()
            continue
        if value or start[0] == "{":  # not the `[]` of a sentence
            found = text[start.start() : place]
    return found
