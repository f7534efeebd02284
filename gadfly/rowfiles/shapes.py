"""The fields of a row, in whichever of the known shapes it has.

- flat: columns of these names, or those given with a mapping;
- chat log (`messages`) and conversation as ShareGPT has it (`conversations`): the last user turn, and its answer;
- request log of LiteLLM and other proxies (`messages` or `request`, with `response`): the same;
- trace of Langfuse, or row of an evaluation (`input`, `output`): the same, with `expectedOutput` or `ideal` as the
  reference, and a score with a name like `correct` as the label.

A label that is in doubt is no label: a score counts only if it is exactly 0 or 1, and all such scores must agree.
"""

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gadfly.errors import BadInput
from gadfly.rowfiles.rows import FIELDS, BadRow

_CHATS = ("messages", "conversations", "conversation", "dialogue", "turns")
_ROLE = ("role", "from", "speaker", "author")
_CONTENT = ("content", "value", "text")
_USER = {"user", "human", "prompter"}
_ASSISTANT = {"assistant", "gpt", "chatgpt", "bing", "bard", "bot", "model", "ai"}
_SYSTEM = {"system", "developer"}
_TOOL = {"tool", "function", "observation", "function_call", "tool_call"}
_TEXT_PARTS = {"text", "input_text", "output_text"}

_REPLIES = ("response", "completion", "output")
_EXPECTED = ("reference", "expectedOutput", "expected_output", "ideal")
_IDS = ("id", "request_id", "litellm_call_id", "custom_id", "traceId", "trace_id")
_TIMES = ("created_at", "startTime", "start_time", "timestamp", "createdAt")
_LABELS = {"correct", "is_correct", "correctness", "accuracy", "exact_match", "label", "right"}
_AS_NAME = str.maketrans(" -", "__")
_FAILED = {"failure", "failed", "error"}

_INDEX = "__index_level_"  # the row numbers of a data frame
_NEAR = 0.8  # similarity from which an unknown column is taken for a misspelt field
_EARLIER_CHARS = 12_000  # of earlier turns kept in metadata, which holds 16 KiB

FOLLOW_UP = "conversations with earlier turns: the last question alone is the critic's, the turns are in metadata"
LONG_CONVERSATION = "conversations whose earlier turns are too long to keep in metadata"
MORE_CHOICES = "answers with several choices: the first one was taken"


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """Which column a field is read from, and which columns are left out."""

    columns: Mapping[str, str]  # field -> column
    left_out: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, pairs: Iterable[str]) -> "ColumnMap":
        """From `COLUMN=FIELD`; `FIELD=COLUMN` means the same where only the left side is a field. `COLUMN=` drops it.

        Raises:
            BadInput: a pair names no field, or two pairs name the same.
        """
        columns: dict[str, str] = {}
        left_out = set()
        for pair in pairs:
            left, sign, right = (part.strip() for part in pair.partition("="))
            if not sign or not left:
                raise BadInput(f"--map {pair}: use COLUMN=FIELD, as in --map answer=response")
            if not right:
                left_out.add(left)
                continue
            column, field = (left, right) if right in FIELDS else (right, left)
            if field not in FIELDS:
                near = difflib.get_close_matches(right, FIELDS, n=1)
                hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(FIELDS)}"
                raise BadInput(f"--map {pair}: neither side is a field: {hint}")
            if field in columns:
                raise BadInput(f"--map {pair}: {field} is already mapped, to {columns[field]}")
            columns[field] = column
        return cls(columns, frozenset(left_out))

    def check(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Check that the mapped columns are in at least one of a file's first rows.

        Raises:
            BadInput: a column is in none; the message names those that are there.
        """
        rows = list(rows)
        if not rows:
            return
        there = list(dict.fromkeys(name for row in rows for name in row))
        for column in (*self.columns.values(), *sorted(self.left_out)):
            if not any(_has(row, column) for row in rows):
                near = difflib.get_close_matches(column, there, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise BadInput(f"there is no column {column!r}{hint} The columns are {', '.join(there)}")


NO_MAPPING = ColumnMap({})


def fields_of(raw: Mapping[str, Any], mapping: ColumnMap, notes: Counter[str]) -> dict[str, Any]:
    """The fields of a row; columns that are no fields go to `metadata` where the row is flat.

    Raises:
        BadRow: no question can be found, or a part of the row is of an unknown kind.
    """
    mapped = {field: _read(raw, column) for field, column in mapping.columns.items()}
    if "question" in mapping.columns:
        return _flat(raw, mapping, mapped)
    for name in ("request", "body"):  # the latter in OpenAI's batches
        if isinstance(raw.get(name), Mapping) and "messages" in raw[name]:
            log = {**raw[name], **{other: value for other, value in raw.items() if other != name}}
            return _from_chat(log, "messages", notes) | mapped
    chat = next((name for name in _CHATS if _is_chat(raw.get(name))), None)
    if chat is not None:
        return _from_chat(raw, chat, notes) | mapped
    if "question" not in raw and "instruction" not in raw and "input" in raw and _is_trace(raw):
        return _from_trace(raw, notes) | mapped
    return _flat(raw, mapping, mapped)


# -------------------------------------------------------------------------------------------------------------- flat


def _flat(raw: Mapping[str, Any], mapping: ColumnMap, mapped: dict[str, Any]) -> dict[str, Any]:
    used = {column.partition(".")[0] for column in mapping.columns.values()} | mapping.left_out
    fields = {name: raw[name] for name in FIELDS if name in raw and name not in used} | mapped
    if fields.get("question") is None:
        raise BadRow(f"there is no question. {_columns(raw, 'question')}{_near(raw, 'question')}")
    others = {
        name: value
        for name, value in raw.items()
        if name not in FIELDS and name not in used and not name.startswith(_INDEX)
    }
    for name in others:
        near = difflib.get_close_matches(name, [field for field in FIELDS if field not in fields], n=1, cutoff=_NEAR)
        if near:
            raise BadRow(
                f"the column {name!r} is not known: did you mean {near[0]!r}? Use --map {name}={near[0]}, or "
                f"--map {name}= to leave it out"
            )
    if fields.get("response") is None and fields.get("reference") is None:
        raise BadRow(
            f"there is neither a response nor a reference. {_columns(raw, 'response')} or --map COLUMN=reference"
        )
    if others:
        metadata = fields.get("metadata") or {}
        if not isinstance(metadata, Mapping):
            raise BadRow("metadata: must be an object where other columns are kept in it")
        kept = {name: value for name, value in others.items() if value is not None}
        fields["metadata"] = {**kept, **metadata}
    return fields


def _columns(raw: Mapping[str, Any], field: str) -> str:
    return f"The columns are {', '.join(raw) or 'none'}: use --map COLUMN={field}"


def _near(raw: Mapping[str, Any], field: str) -> str:
    near = difflib.get_close_matches(field, raw, n=1)
    return f"; perhaps it is {near[0]!r}" if near else ""


# -------------------------------------------------------------------------------------------------------- chat logs


def _from_chat(raw: Mapping[str, Any], name: str, notes: Counter[str]) -> dict[str, Any]:
    _refuse_failed(raw)
    turns = _turns(_parsed(raw[name]))
    reply = next((raw[each] for each in (*_REPLIES, "choices") if raw.get(each) is not None), None)
    if reply is not None:
        answer = {"choices": reply} if "choices" in raw and reply is raw["choices"] else reply
        turns = [*turns, ("assistant", _reply(answer, notes))]
    fields = _exchange(turns, notes)
    # The metadata of a request log names keys, people and addresses; only a row made for training brings its own.
    is_log = reply is not None or "call_type" in raw
    return _with_common(raw, fields, keep_metadata=not is_log)


def _from_trace(raw: Mapping[str, Any], notes: Counter[str]) -> dict[str, Any]:
    _refuse_failed(raw)
    turns = _prompt(raw["input"])
    output = raw.get("output")
    if output is not None and output != "":
        turns = [*turns, ("assistant", _reply(output, notes))]
    fields = _exchange(turns, notes)
    if (label := _score(_parsed(raw.get("scores")))) is not None:
        fields["correct"] = label
    return _with_common(raw, fields, keep_metadata=False)


def _is_trace(raw: Mapping[str, Any]) -> bool:
    return "output" in raw or any(name in raw for name in _EXPECTED)


def _refuse_failed(raw: Mapping[str, Any]) -> None:
    if str(raw.get("status")).casefold() in _FAILED or str(raw.get("level")).casefold() == "error":
        raise BadRow("the logged call failed")


def _with_common(raw: Mapping[str, Any], fields: dict[str, Any], *, keep_metadata: bool) -> dict[str, Any]:
    for name in ("correct", "split", "model"):
        if raw.get(name) is not None:
            fields[name] = raw[name]
    for name, sources in (("id", _IDS), ("created_at", _TIMES)):
        found = next((raw[each] for each in sources if raw.get(each) is not None), None)
        if found is not None:
            fields[name] = found
    expected = next((raw[each] for each in _EXPECTED if raw.get(each) is not None), None)
    if expected is not None:
        fields["reference"] = _reply(expected, Counter()) if isinstance(expected, Mapping) else expected
    if keep_metadata and isinstance(raw.get("metadata"), Mapping):
        fields["metadata"] = {**fields.get("metadata", {}), **raw["metadata"]}
    return fields


Turn = tuple[str, str]  # role and text


def _exchange(turns: list[Turn], notes: Counter[str]) -> dict[str, Any]:
    """The last user turn and the answer to it; earlier turns are kept in metadata."""
    last = next((place for place in reversed(range(len(turns))) if turns[place][0] == "user"), None)
    if last is None:
        raise BadRow("the conversation has no turn of a user")
    answers = [text for role, text in turns[last + 1 :] if role == "assistant" and text.strip()]
    fields: dict[str, Any] = {"question": turns[last][1]}
    if answers:
        fields["response"] = answers[-1]
    earlier = [{"role": role, "content": text} for role, text in turns[:last]]
    if any(role == "user" for role, _ in turns[:last]):
        notes[FOLLOW_UP] += 1
    if earlier:
        if len(json.dumps(earlier)) <= _EARLIER_CHARS:
            fields["metadata"] = {"conversation": earlier}
        else:
            notes[LONG_CONVERSATION] += 1
    return fields


def _is_chat(value: Any) -> bool:
    parsed = _parsed(value)
    return isinstance(parsed, list) and bool(parsed) and all(isinstance(turn, Mapping) for turn in parsed)


def _turns(value: Any) -> list[Turn]:
    turns: list[Turn] = []
    for turn in value:
        if not isinstance(turn, Mapping):
            raise BadRow("a turn of the conversation is not an object")
        role_key = next((name for name in _ROLE if turn.get(name) is not None), None)
        if role_key is None:
            turns += _pair(turn)
            continue
        role = turn[role_key]
        role = role.get("role") if isinstance(role, Mapping) else role
        content = next((turn[name] for name in _CONTENT if turn.get(name) is not None), None)
        turns.append((_role(role), _content(content)))
    return turns


def _pair(turn: Mapping[str, Any]) -> list[Turn]:
    """The turns of `{"human": ..., "assistant": ...}`."""
    roles = _USER | _ASSISTANT | _SYSTEM
    turn = {name: text for name, text in turn.items() if text is not None}
    if not turn or not all(name.casefold() in roles for name in turn):
        raise BadRow("a turn of the conversation has no role")
    return [(_role(name), _content(text)) for name, text in turn.items()]


def _role(value: Any) -> str:
    name = str(value).casefold()
    known = {"user": _USER, "assistant": _ASSISTANT, "system": _SYSTEM, "tool": _TOOL}
    for role, names in known.items():
        if name in names:
            return role
    raise BadRow("the conversation has a turn of an unknown role", repr(value)[:40])


def _content(value: Any) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case list():
            return "".join(_part(part) for part in value)
        case Mapping():
            return _part(value)
    raise BadRow("the text of a turn is neither text nor a list of parts")


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") in _TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    raise BadRow("a turn holds a part that is no text, such as an image")


# ------------------------------------------------------------------------------------------------- prompts and replies


def _prompt(value: Any) -> list[Turn]:
    value = _parsed(value)
    match value:
        case str():
            return [("user", value)]
        case list() if all(isinstance(item, str) for item in value) and len(value) == 1:
            return [("user", value[0])]
        case list():
            return _turns(value)
        case {"messages": list() as messages}:
            return _turns(messages)
        case {"role": _}:
            return _turns([value])
        case Mapping():
            texts = [each for each in _texts_in(value) if each.strip()]
            if len(texts) == 1:
                return [("user", texts[0])]
    raise BadRow("input: no question can be found in it; use --map PATH=question, as in --map input.text=question")


def _texts_in(value: Any) -> list[str]:
    """The texts of an object with one argument, as decorators log a function call: `{"args": [...], "kwargs": {}}`."""
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for item in items for text in _texts_in(item)]


def _reply(value: Any, notes: Counter[str]) -> str:
    parsed = _parsed(value)
    if isinstance(value, str) and not _is_reply(parsed):
        return value  # also text that happens to be JSON
    match parsed:
        case {"choices": [first, *others]}:
            if others:
                notes[MORE_CHOICES] += 1
            return _reply(first, notes)
        case {"body": inner} | {"message": inner}:
            return _reply(inner, notes)
        case {"role": _, "content": content} | {"type": "message", "content": content}:
            return _content(content)
        case {"text": str() as text}:
            return text
        case {"output": output}:
            return _reply(output, notes)
        case {"content": str() as text} if len(parsed) == 1:
            return text
        case [*_, _] if all(isinstance(item, Mapping) and ("role" in item or "type" in item) for item in parsed):
            texts = [_reply(item, notes) for item in parsed if item.get("role", "assistant") in _ASSISTANT]
            return texts[-1] if texts else ""
        case {"type": _}:
            return ""  # a reasoning or tool item of the Responses API
    raise BadRow("no text of an answer can be found; use --map PATH=response, as in --map output.answer=response")


def _is_reply(value: Any) -> bool:
    items = value if isinstance(value, list) and value else [value]
    return all(isinstance(item, Mapping) and ("choices" in item or "role" in item) for item in items)


def _score(scores: Any) -> bool | None:
    """The label that scores give: of a list of `{name, value}`, or of an object by name; None where they do not say."""
    if isinstance(scores, Mapping):
        scores = [{"name": name, "value": value} for name, value in scores.items()]
    if not isinstance(scores, list):
        return None
    found = {
        label
        for score in scores
        if isinstance(score, Mapping) and str(score.get("name")).strip().casefold().translate(_AS_NAME) in _LABELS
        for value in (score.get("value"), score.get("stringValue"))
        if (label := _label_of(value)) is not None
    }
    return found.pop() if len(found) == 1 else None


def _label_of(value: Any) -> bool | None:
    match value:
        case bool():
            return value
        case int() | float():
            return bool(value) if value in (0, 1) else None
        case str() if value.casefold() in ("true", "correct", "right"):
            return True
        case str() if value.casefold() in ("false", "incorrect", "wrong"):
            return False
    return None


# --------------------------------------------------------------------------------------------------------------- paths


def _parsed(value: Any) -> Any:
    """A JSON object or list that a table holds as text; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _has(raw: Mapping[str, Any], path: str) -> bool:
    return path in raw or _walk(raw, path) is not _ABSENT


def _read(raw: Mapping[str, Any], path: str) -> Any:
    found = raw[path] if path in raw else _walk(raw, path)
    return None if found is _ABSENT else found


_ABSENT = object()


def _walk(value: Any, path: str) -> Any:
    """The value at `a.b.0`: keys of objects, places of lists, and in a list of `{name, value}` also names."""
    for key in path.split("."):
        value = _parsed(value)
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, list):
            named = [item for item in value if isinstance(item, Mapping) and item.get("name") == key]
            if len(named) != 1:
                return _ABSENT
            value = named[0].get("value")
        else:
            return _ABSENT
    return value
