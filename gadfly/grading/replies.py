"""The part of a reply that answers the question: without another turn, without thoughts, without markup.

Base models go on with a question of their own, logs keep the control tokens of a chat template, programs ask for JSON.
All functions take time linear in the text.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

# Tokens that end a turn in chat templates, and tokens that only mark one.
_TURN_END = re.compile(
    r"<\|(?:im_end|endoftext|eot_id|end_of_text|end|eom_id)\|>|</s>|<eos>|<end_of_turn>|\[INST\]|<\|?user\|?>"
    r"|<\|(?:im_start|start_header_id)\|>\s*user"
)
_TURN_MARK = re.compile(
    r"<\|(?:im_start|start_header_id)\|>\s*assistant(?:<\|end_header_id\|>)?|<\|?assistant\|?>|<s>|\[/INST\]"
    r"|<\|(?:begin_of_text|end_header_id)\|>|<start_of_turn>model|<bos>",
)
# A line that begins another task. Numbered steps (`Question 2:` of a decomposition) count only after a statement.
_NEXT_TASK = re.compile(
    r"^[ \t>*_#]{0,9}(?:\[)?(?P<word>(?:(?:Next|New|Another|Second)[ \t])?(?:Problem|Question|Q|Human|User"
    r"|Exercise|Instruction|Input|Task|Prompt|Example))"
    r"(?P<number>[ \t]*\#?[0-9]{1,4})?(?:\])?[*_]{0,3}[ \t]*(?:[:.]|$)",
    re.MULTILINE | re.IGNORECASE,
)
_THOUGHT = re.compile(r"</(?:think|thinking|reasoning|scratchpad)>", re.IGNORECASE)
_THINKS = re.compile(r"<(?:think|thinking|reasoning|scratchpad)>", re.IGNORECASE)
_FENCED = re.compile(r"```(?:json)?[ \t]*\n([^`]{1,20000})\n?[ \t]*```", re.IGNORECASE)
_ANSWER_KEYS = ("final_answer", "finalanswer", "final answer", "answer", "ans", "result", "solution")


@dataclass(frozen=True, slots=True)
class ReplyText:
    """The text to read an answer from. `is_cut`: it ends where the model had not finished."""

    text: str
    is_cut: bool


def answering_part(text: str, *, is_cut: bool = False) -> ReplyText:
    """The part of a reply that answers: one turn, up to the first question that the model made up."""
    first = _first_turn(text)
    thoughts = list(_THOUGHT.finditer(first))
    if thoughts:
        first, text = first[thoughts[-1].end() :], text[thoughts[-1].end() :] if first is text else text
    elif _THINKS.search(first):
        return ReplyText("", is_cut=True)
    answered = _up_to_next_task(first)
    is_cut = is_cut and len(answered) == len(text)
    return ReplyText(_from_json(answered), is_cut)


def own_turn(text: str, *, is_cut: bool = False) -> ReplyText:
    """One turn of a reply without its thoughts; no text where the thoughts are not closed."""
    first = _first_turn(text)
    is_cut = is_cut and len(first) == len(_TURN_MARK.sub("\n", text))
    if thoughts := list(_THOUGHT.finditer(first)):
        return ReplyText(first[thoughts[-1].end() :], is_cut)
    return ReplyText("", is_cut=True) if _THINKS.search(first) else ReplyText(first, is_cut)


def _first_turn(text: str) -> str:
    """The text up to the first token that ends a turn, if anything stands before it."""
    text = _TURN_MARK.sub("\n", text) if _TURN_MARK.search(text) else text
    for end in _TURN_END.finditer(text):
        if text[: end.start()].strip():
            return text[: end.start()]
    return text


def _up_to_next_task(text: str) -> str:
    """The text before the first line that begins another task; a reply may begin with its own question."""
    begins = len(text) - len(text.lstrip())
    stated, number = _STATED.search(text), _NUMBER.search(text)
    stated_at, number_at = (len(text) if each is None else each.start() for each in (stated, number))
    has_own = False
    for match in _NEXT_TASK.finditer(text):
        start = match.start()
        if start <= begins or (not has_own and not (stated_at < start or _may_answer(text, start, number_at))):
            has_own = True
        elif not match["number"] or stated_at < start:
            return text[:start]
    return _up_to_next_question(text)


_NUMBER = re.compile(
    r"\d|\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]+teen|twenty|thirty|forty|fifty|hundred)\b",
    re.IGNORECASE,
)


def _may_answer(text: str, end: int, number_at: int) -> bool:
    """Whether the text before a question, which states nothing, may be an answer and not an introduction."""
    before = text[max(0, end - 200) : end].strip()
    return before[-1:] not in ("", ":", ",") and (number_at < end or bool(re.fullmatch(r"\W*\w+\W*", before)))


_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*|(?<=\n)(?=####)")
_OWN_QUESTION = re.compile(
    r"\W*(?:but|wait|hmm|hold|is (?:that|this|it)|does (?:that|this|it)|did|am i|are we|however|ok|okay"
    r"|actually|let|so|what if|why|right)\b",
    re.IGNORECASE,
)
_ASKS = re.compile(r"[0-9]|\b(?:how|what|which|find|who|when|where)\b", re.IGNORECASE)


def _up_to_next_question(text: str) -> str:
    """The text before a paragraph that asks something else after an answer was stated, and is answered itself."""
    if text.count("?") == 0 or not _STATED.search(text):
        return text
    is_stated, start = False, 0
    ends = [match.start() for match in _PARAGRAPH.finditer(text)] + [len(text)]
    for end in ends:
        paragraph = text[start:end].strip()
        first = paragraph.split("\n", 1)[0].rstrip(" *_")
        asks = first.endswith("?") and _ASKS.search(first) and not _OWN_QUESTION.match(first)
        if is_stated and asks and end > start and _STATED.search(text, end if "\n" not in paragraph else start):
            return text[:start]
        is_stated = is_stated or bool(_STATED.search(paragraph))
        start = end
    return text


_STATED = re.compile(
    r"\banswers?\b|####|\\boxed|^[ \t]*A[ \t]*:|\*\*[^*\n]{1,40}\*\*[ \t]*$", re.IGNORECASE | re.MULTILINE
)


def _from_json(text: str) -> str:
    """The statement of the answer that a JSON object holds; no text where it holds none. Other text as it is."""
    stripped = text.strip()
    fenced = list(_FENCED.finditer(stripped)) if "```" in stripped else []
    candidate = fenced[-1][1].strip() if fenced else stripped
    if not fenced and stripped.endswith("}") and "\n{" in stripped:
        candidate = stripped[stripped.rfind("\n{") + 1 :]
    if not candidate.startswith("{"):
        return text
    try:
        found: Any = json.loads(candidate)
    except (ValueError, RecursionError):
        return "" if re.match(r'\{\s*"[^"\n]{1,60}"\s*:', candidate) else text
    if not isinstance(found, dict):
        return text
    values = {str(key).strip().casefold(): value for key, value in found.items()}
    for key in _ANSWER_KEYS:
        value = values.get(key)
        if isinstance(value, bool):
            return f"The answer is {'true' if value else 'false'}."
        if isinstance(value, int | float):
            return f"Answer: {json.dumps(value)}\n"
        if isinstance(value, str) and value.strip():
            return f"Answer: {value.strip()}\n"
    return ""
