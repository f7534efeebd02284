"""Opens a file of rows of any format, and yields its rows one after the other.

JSON Lines (also with the line ends of an old Mac), JSON arrays, also inside an object, CSV with any usual separator,
Parquet, Arrow, each also compressed with gzip, and data sets as Hugging Face's `datasets` reads them. The content
decides, and the name only where it does not tell. Memory holds one row of a text file, or one batch of a table.
"""

import codecs
import csv
import gzip
import io
import json
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from gadfly.errors import BadInput
from gadfly.rowfiles.rows import BadRow

_HEAD = 2**16  # bytes that decide about the format
_TABLE_ROWS = 300
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")
_JSON_NAMES = (".jsonl", ".ndjson", ".json", ".jsonlines")
_CSV_NAMES = (".csv", ".tsv", ".tab", ".txt")
_SEPARATORS = ",;\t|"
_WRAPPED = re.compile(r'"(?:data|rows|items|records|examples|traces|observations|generations|results|logs)"\s*:\s*\[')
_ROW_KEYS = re.compile(r'"(?:question|messages|conversations?|prompt|input|response)"\s*:')
_MARKS = re.compile(r'["{}\[\],]')
_STRING_MARKS = re.compile(r'["\\]')
_CSV_FIELD_CHARS = 2**27  # a quotation mark that is never closed must not take all memory

_POINTERS = (
    (re.compile(rb"version https://(?:git-lfs|hawser)\.github\.com/spec/"), "a pointer of Git LFS", "git lfs pull"),
    (re.compile(rb"(?:\.git|/annex)/(?:annex/)?objects/"), "a pointer of git-annex", "git annex get"),
)
_REFUSED = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook: unpack it, or save the sheet as CSV"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first (unzstd)"),
    (b"BZh", "compressed with bzip2: unpack it first (bunzip2)"),
    (b"\xfd7zXZ", "compressed with xz: unpack it first (unxz)"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"SQLite format 3", "an SQLite database: write the rows to CSV or JSON Lines"),
    (b"\x80\x04\x95", "a Python pickle: write the rows to JSON Lines"),
)
_MARKS_OF_ORDER = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class Raw:
    """A row as the file has it, or why there is none. `number` counts lines or rows from 1."""

    number: int
    value: Mapping[str, Any] | BadRow


@dataclass(frozen=True, slots=True)
class Source:
    """An open file of rows."""

    rows: Iterator[Raw]
    position: Callable[[], int]  # bytes of the file read so far
    unit: str  # what `Raw.number` counts: line, row


@dataclass(frozen=True, kw_only=True, slots=True)
class How:
    """What a file cannot say about itself."""

    encoding: str | None = None
    dataset_config: str | None = None
    dataset_split: str | None = None


AS_IT_IS = How()


@contextmanager
def open_rows(name: str, how: How, *, max_row_chars: int) -> Iterator[Source]:
    """Open a file, a folder with a data set, or a data set of the hub by its name.

    Raises:
        BadInput: there is no such thing, or its format is unknown. Also while rows are read, where the file cannot be
            read further.
    """
    path = Path(name).expanduser()
    if path.is_dir() or (not path.exists() and _HUB_NAME.fullmatch(name) and not path.suffix):
        yield _dataset(name, path if path.is_dir() else None, how)
        return
    try:
        with ExitStack() as stack:
            file = stack.enter_context(path.open("rb"))
            yield _guarded(_opened(file, path, how, max_row_chars, stack), path)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from error


def _guarded(source: Source, path: Path) -> Source:
    def rows() -> Iterator[Raw]:
        try:
            yield from source.rows
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadInput(f"{path} cannot be unpacked: it is damaged or incomplete ({error})") from error
        except UnicodeDecodeError as error:
            raise BadInput(f"{path}: {_not_in(error.encoding, error.object[error.start : error.end])}") from error
        except csv.Error as error:
            raise BadInput(f"{path} is not CSV: {error}; is a quotation mark not closed?") from error
        except pa.ArrowException as error:
            raise BadInput(f"{path} cannot be read as a table: {error}") from error

    return Source(rows(), source.position, source.unit)


def _opened(file: IO[bytes], path: Path, how: How, max_row_chars: int, stack: ExitStack) -> Source:
    content, position = file, file.tell
    head = _head(content)
    name = path.name.casefold()
    if is_packed := head.startswith(b"\x1f\x8b"):
        content = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=file, mode="rb")))
        try:
            head = _head(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadInput(f"{path} cannot be unpacked: it is damaged or incomplete ({error})") from error
        name = name.removesuffix(".gz").removesuffix(".gzip")
    _refuse_foreign(head, path)
    if head.startswith((b"PAR1", b"ARROW1")):
        if is_packed:  # a table is read from its end
            unpacked = cast(IO[bytes], stack.enter_context(tempfile.TemporaryFile()))  # noqa: SIM115  # so it is closed
            shutil.copyfileobj(content, unpacked, 2**20)
            content = unpacked
        rows = _parquet(content) if head.startswith(b"PAR1") else _arrow(content)
        return Source(rows, position, "row")
    encoding = how.encoding or next((name for mark, name in _MARKS_OF_ORDER if head.startswith(mark)), "utf-8")
    _refuse_unmarked_utf16(head, encoding, path)
    try:
        decoded = head.decode(encoding, errors="replace").lstrip()
    except LookupError:
        raise BadInput(f"--encoding {encoding}: there is no such encoding") from None
    text = io.TextIOWrapper(content, encoding=encoding, errors="surrogateescape", newline=None)
    stack.callback(text.detach)  # it would close the file, whose position is still asked for
    if decoded.startswith("["):
        return Source(_array(text, encoding, max_row_chars), position, "row")
    if decoded.startswith("{"):
        if not name.endswith((".jsonl", ".ndjson")) and _array_start(decoded):
            return Source(_array(text, encoding, max_row_chars), position, "row")
        if decoded[1:].lstrip(" \t").startswith(("\n", "\r")):
            return Source(_objects(text, encoding, max_row_chars), position, "line")
        return Source(_lines(text, encoding, max_row_chars), position, "line")
    if name.endswith(_JSON_NAMES) or not decoded:
        return Source(_lines(text, encoding, max_row_chars), position, "line")
    if name.endswith(_CSV_NAMES) or any(mark in decoded.partition("\n")[0] for mark in _SEPARATORS):
        text.reconfigure(newline="")  # csv reads line ends inside quotation marks itself
        return Source(_csv(text, encoding, path), position, "line")
    raise BadInput(f"the format of {path} is not known: use JSON Lines, a JSON array, CSV or Parquet")


def _head(file: IO[bytes]) -> bytes:
    head = file.read(_HEAD)
    file.seek(0)
    return head


def _refuse_foreign(head: bytes, path: Path) -> None:
    for pattern, kind, command in _POINTERS:
        if len(head) < 1024 and pattern.search(head):
            raise BadInput(f"{path} is {kind} and not the file itself: run `{command}` where it was cloned")
    for start, kind in _REFUSED:
        if head.startswith(start):
            raise BadInput(f"{path} is {kind}")
    if re.match(rb"\s*<(?:!doctype|html|\?xml)", head, re.IGNORECASE):
        raise BadInput(f"{path} is a web page or XML, perhaps the answer of a failed download")


def _refuse_unmarked_utf16(head: bytes, encoding: str, path: Path) -> None:
    zeros = head[:512].count(0)
    if encoding == "utf-8" and zeros > len(head[:512]) // 4:
        order = "le" if head[1:2] == b"\0" else "be"
        raise BadInput(f"{path} is not UTF-8 but looks like UTF-16: import it with --encoding utf-16-{order}")


def _not_in(encoding: str, raw: bytes) -> str:
    if encoding.startswith("utf-8"):
        return (
            f"the text is not UTF-8 (byte 0x{raw[:1].hex()}): give its encoding, for instance --encoding cp1252 for "
            "files of Windows programs"
        )
    return f"the text is not {encoding} (byte 0x{raw[:1].hex()})"


def _decodes(text: str) -> bytes | None:
    """The first byte that was not text in the file's encoding; None: all were."""
    if text.isascii():
        return None
    found = re.search("[\udc80-\udcff]", text)
    return None if found is None else bytes([ord(found[0]) - 0xDC00])


# --------------------------------------------------------------------------------------------------------------- JSON


def _lines(text: io.TextIOWrapper, encoding: str, max_chars: int) -> Iterator[Raw]:
    number = 0
    while line := text.readline(max_chars):
        number += 1
        is_whole = True
        while not line.endswith("\n") and (more := text.readline(max_chars)):
            line, is_whole = more, False
        if not is_whole:
            yield Raw(number, BadRow("the line is too long"))
        elif line.strip(" \t\r\n\ufeff"):
            yield Raw(number, _object(line, encoding))


def _objects(text: io.TextIOWrapper, encoding: str, max_chars: int) -> Iterator[Raw]:
    """Objects over several lines, one after the other, as `jq` writes them: each ends with a line of one brace."""
    parts: list[str] = []
    start, chars = 1, 0
    for number, line in enumerate(iter(lambda: text.readline(max_chars), ""), start=1):
        if not parts and not line.strip(" \t\r\n\ufeff"):
            continue
        if not parts:
            start = number
        chars += len(line)
        if chars <= max_chars:
            parts.append(line)
        else:
            parts = ["{"]
        if line.rstrip(" \t\r\n") == "}":
            yield Raw(start, _object("".join(parts), encoding) if chars <= max_chars else BadRow("the row is too long"))
            parts, chars = [], 0
    if parts:
        yield Raw(start, BadRow("the file ends before its last row is closed: it is incomplete"))


def _object(text: str, encoding: str) -> Mapping[str, Any] | BadRow:
    if (byte := _decodes(text)) is not None:
        return BadRow(_not_in(encoding, byte))
    try:
        value = json.loads(text.lstrip("\ufeff"), parse_constant=lambda _: None)
    except RecursionError:
        return BadRow("the row is nested too deeply")
    except ValueError as error:
        if "escape" in str(error):
            return BadRow("not JSON: a backslash must be written twice, as in \\\\sqrt", str(error))
        return BadRow("not JSON", str(error))
    return value if isinstance(value, dict) else BadRow("the row is not a JSON object")


def _array_start(head: str) -> int:
    """Where the array of rows begins: at 0, or inside an object such as an API's `{"data": [...]}`; 0 also for none."""
    found = _WRAPPED.search(head)
    if head.startswith("[") or found is None or _ROW_KEYS.search(head, 0, found.start()):
        return 0
    return found.end() - 1


def _array(text: io.TextIOWrapper, encoding: str, max_chars: int) -> Iterator[Raw]:
    chunks = iter(lambda: text.read(_HEAD), "")
    first = next(chunks, "").lstrip("\ufeff \t\r\n")
    elements = _elements(chain([first[_array_start(first) + 1 :]], chunks), max_chars)
    for number, element in enumerate(elements, start=1):
        yield Raw(number, element if isinstance(element, BadRow) else _object(element, encoding))


def _elements(chunks: Iterator[str], max_chars: int) -> Iterator[str | BadRow]:
    """The texts of an array's elements; the text begins behind its bracket. Only the text between commas is kept."""
    depth, in_string, chars = 1, False, 0
    parts: list[str] = []
    skip = 0  # characters of the next chunk that belong to an escape

    def taken() -> str | BadRow:
        return BadRow("the row is too long") if chars > max_chars else "".join(parts)

    for chunk in chunks:
        begin, place = 0, skip
        skip = 0
        while found := (_STRING_MARKS if in_string else _MARKS).search(chunk, place):
            place = found.end()
            match found[0]:
                case "\\":
                    place += 1
                    skip = max(0, place - len(chunk))
                    continue
                case '"':
                    in_string = not in_string
                    continue
                case "{" | "[":
                    depth += 1
                    continue
                case "}" | "]":
                    depth -= 1
                    if depth:
                        continue
                case ",":
                    if depth > 1:
                        continue
            parts.append(chunk[begin : found.start()])
            chars += found.start() - begin
            if depth or chars > max_chars or "".join(parts).strip():  # the last comma may have nothing behind it
                yield taken()
            chars, begin = 0, place
            parts = []
            if not depth:
                return
        rest = len(chunk) - begin
        chars += rest
        if chars <= max_chars:
            parts.append(chunk[begin:])
        else:
            parts.clear()
    yield BadRow("the file ends before its array is closed: it is incomplete")


# ---------------------------------------------------------------------------------------------------------------- CSV


def _csv(text: io.TextIOWrapper, encoding: str, path: Path) -> Iterator[Raw]:
    csv.field_size_limit(min(_CSV_FIELD_CHARS, sys.maxsize))
    first = text.readline()
    told = re.fullmatch(r'"?sep=(.)"?\s*', first)  # a line that Excel writes for itself
    if told:
        first = text.readline()
    if (byte := _decodes(first)) is not None:
        raise BadInput(f"{path}: {_not_in(encoding, byte)}")
    first = first.lstrip("\ufeff")
    separator = told[1] if told else max(_SEPARATORS, key=lambda mark: len(next(csv.reader([first], delimiter=mark))))
    reader = csv.reader(chain([first], text), delimiter=separator, strict=True)
    names = [name.strip() for name in next(reader, [])]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"{path}: the header has a column twice: {', '.join(map(repr, twice))}")
    offset = 1 if told else 0
    for cells in reader:
        number = reader.line_num + offset
        if not any(cell.strip() for cell in cells):
            continue
        if (byte := _decodes("".join(cells))) is not None:
            yield Raw(number, BadRow(_not_in(encoding, byte)))
        elif len(cells) != len(names):
            yield Raw(number, BadRow("the row has another number of cells than the header", f"{len(cells)}"))
        else:
            yield Raw(number, {name: cell for name, cell in zip(names, cells, strict=True) if name and cell.strip()})


# -------------------------------------------------------------------------------------------------------------- tables


def _parquet(file: IO[bytes]) -> Iterator[Raw]:
    yield from _batches(pq.ParquetFile(file).iter_batches(batch_size=_TABLE_ROWS))


def _arrow(file: IO[bytes]) -> Iterator[Raw]:
    reader = pa.ipc.open_file(file)
    yield from _batches(reader.get_batch(number) for number in range(reader.num_record_batches))


def _batches(batches: Iterator[Any]) -> Iterator[Raw]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _TABLE_ROWS):
            for row in batch.slice(start, _TABLE_ROWS).to_pylist():
                number += 1
                yield Raw(number, row)


def _dataset(name: str, folder: Path | None, how: How) -> Source:
    try:
        import datasets  # noqa: PLC0415  # an extra
    except ImportError:
        kind = "a folder" if folder else "neither a file here nor, it seems, one with a known extension"
        raise BadInput(f"{name} is {kind}: to read it as a data set of Hugging Face, install `gadfly[data]`") from None
    datasets.disable_progress_bars()

    def rows() -> Iterator[Raw]:
        with _explained(name):
            for number, row in enumerate(loaded, start=1):
                yield Raw(number, row)

    with _explained(name):
        if folder is not None and any((folder / each).is_file() for each in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(str(folder or name), how.dataset_config, streaming=True)
    if isinstance(loaded, Mapping):
        loaded = _one_of(loaded, name, how.dataset_split)
    return Source(rows(), lambda: 0, "row")


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # the library's own errors derive from these
        first_line = str(error).strip().partition("\n")[0]
        raise BadInput(f"{name} cannot be read as a data set: {first_line}") from error


def _one_of(splits: Mapping[str, Any], name: str, wanted: str | None) -> Any:
    names = list(splits)
    if wanted is None and len(names) == 1:
        return splits[names[0]]
    if wanted is None or wanted not in splits:
        problem = "has several parts" if wanted is None else f"has no part {wanted!r}"
        raise BadInput(f"{name} {problem}: give one with --dataset-split: {', '.join(names)}")
    return splits[wanted]
