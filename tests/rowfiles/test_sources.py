import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gadfly.errors import BadInput
from gadfly.rowfiles.rows import BadRow
from gadfly.rowfiles.sources import AS_IT_IS, How, open_rows

ROWS = [
    {
        "question": "Was kosten 3 Äpfel zu 2 €?",
        "response": 'Sie kosten "6", also 6 €.\nAntwort: 6; fertig',
        "reference": "6",
    },
    {"question": "Half of [3, {4}], in \\words?", "response": "\\frac{7}{2}", "reference": "7/2"},
    {"question": "2 + 2?", "response": "4", "reference": "4"},
]


def lines(rows: list[dict[str, Any]], end: str = "\n") -> str:
    return end.join(json.dumps(row, ensure_ascii=False) for row in rows)


def table(separator: str, end: str = "\r\n") -> str:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    cells = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
    return end.join(separator.join(map(cell, row)) for row in cells)


def as_bytes(rows: list[dict[str, Any]], write: Callable[[pa.Table, Any], None]) -> bytes:
    sink = pa.BufferOutputStream()
    write(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue().to_pybytes())


def arrow(content: pa.Table, sink: Any) -> None:
    with pa.ipc.new_file(sink, content.schema) as writer:
        writer.write_table(content)


FILES: list[tuple[str, bytes]] = [
    ("lines.jsonl", lines(ROWS).encode()),
    ("windows.jsonl", b"\xef\xbb\xbf" + lines(ROWS, "\r\n").encode() + b"\r\n"),
    ("mac.jsonl", lines(ROWS, "\r").encode()),
    ("blank.jsonl", lines(ROWS, "\n\n").encode() + b"\n\n"),
    ("utf16.jsonl", lines(ROWS).encode("utf-16")),
    ("compact.json", json.dumps(ROWS).encode()),
    ("pretty.json", json.dumps(ROWS, indent=2, ensure_ascii=False).encode()),
    ("misnamed.jsonl", json.dumps(ROWS, indent=1).replace("\n", "\r\n").encode()),
    ("utf16.json", json.dumps(ROWS, ensure_ascii=False).encode("utf-16")),
    ("api.json", json.dumps({"meta": {"page": 1}, "data": ROWS, "next": None}, indent=2).encode()),
    ("lines.json", lines(ROWS).encode()),
    ("jq.json", "\n".join(json.dumps(row, indent=2) for row in ROWS).encode()),
    ("jq.jsonl", "\r\n".join(json.dumps(row, indent=2).replace("\n", "\r\n") for row in ROWS).encode()),
    ("comma.json", (json.dumps(ROWS)[:-1] + ",\n]\n").encode()),
    ("comma.csv", table(",").encode()),
    ("excel.csv", b"\xef\xbb\xbf" + table(";").encode()),
    ("told.csv", b"sep=;\r\n" + table(";").encode()),
    ("unix.csv", table(",", "\n").encode()),
    ("tab.tsv", table("\t").encode()),
    ("unicode.csv", table("\t").encode("utf-16")),
    ("unnamed", table(",").encode()),
    ("rows.parquet", as_bytes(ROWS, pq.write_table)),
    ("rows.arrow", as_bytes(ROWS, arrow)),
]
FILES += [(f"{name}.gz", gzip.compress(content)) for name, content in FILES]


def read(path: Path | str, how: How = AS_IT_IS, *, max_row_chars: int = 10_000) -> list[Any]:
    with open_rows(str(path), how, max_row_chars=max_row_chars) as source:
        return [raw.value for raw in source.rows]


@pytest.mark.parametrize(("name", "content"), FILES, ids=[name for name, _ in FILES])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert read(path) == ROWS


@pytest.mark.parametrize("name", ["dataset", "plain"])
def test_a_folder_is_read_as_a_data_set(tmp_path: Path, name: str) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / name
    if name == "dataset":
        parts = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
        datasets.DatasetDict(parts).save_to_disk(str(folder))
    else:
        folder.mkdir()
        pq.write_table(pa.Table.from_pylist(ROWS), folder / "train-00000-of-00001.parquet")
        pq.write_table(pa.Table.from_pylist(ROWS[:1]), folder / "test-00000-of-00001.parquet")
    assert read(folder, How(dataset_split="train")) == ROWS
    assert read(folder, How(dataset_split="test")) == ROWS[:1]
    with pytest.raises(BadInput, match="has several parts: give one with --dataset-split: t"):
        read(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="cannot be read as a data set"):
        read(tmp_path / "empty")
    with pytest.raises(BadInput, match="has no part 'dev'"):
        read(folder, How(dataset_split="dev"))


REFUSED: list[tuple[str, bytes, str]] = [
    ("p.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS"),
    ("h.jsonl", b"version https://hawser.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS"),
    ("p.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "run `git lfs pull`"),
    ("p.csv", b"../.git/annex/objects/aa/bb/SHA256E-s9--00.csv/SHA256E-s9--00.csv", "a pointer of git-annex"),
    ("x.xlsx", b"PK\x03\x04rest", "an Excel workbook"),
    ("z.jsonl.zst", b"\x28\xb5\x2f\xfdrest", "compressed with zstd"),
    ("page.jsonl", b"<!DOCTYPE html><html>", "a web page"),
    ("cut.jsonl.gz", gzip.compress(lines(ROWS * 50).encode())[:-20], "damaged or incomplete"),
    ("cut.parquet", as_bytes(ROWS, pq.write_table)[:-30], "cannot be read as a table"),
    ("open.csv", b'question,response\n"a,b\nc,d\n', "is a quotation mark not closed"),
    ("twice.csv", b"question,a,a\n1,2,3\n", "a column twice: 'a'"),
    ("head.csv", b"question;pr\xfcfung\n1;2\n", "the text is not UTF-8 (byte 0xfc)"),
    ("half.jsonl", lines(ROWS).encode("utf-16-le"), "--encoding utf-16-le"),
    ("words", b"just words", "the format of"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_files_that_cannot_be_read_say_why(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput) as raised:
        read(path)
    assert sentence in str(raised.value)


def test_names_that_lead_nowhere() -> None:
    with pytest.raises(BadInput, match="cannot read"):
        read("nowhere/rows.jsonl")
    with pytest.raises(BadInput, match="no such encoding"):
        read(Path(__file__), How(encoding="latin-99"))


BAD_ROWS: list[tuple[str, bytes, str]] = [  # each between two good rows
    ("a.jsonl", b'{"question": "caf\xe9"}', "the text is not UTF-8 (byte 0xe9)"),
    ("b.jsonl", b'{"question": "\\sqrt"}', "a backslash must be written twice"),
    ("c.jsonl", b"{", "not JSON"),
    ("d.jsonl", b'["a"]', "not a JSON object"),
    ("e.jsonl", b'{"question": "' + b"x" * 20_000 + b'"}', "the line is too long"),
    ("f.jsonl", b"[" * 5000, "nested too deeply"),
]


@pytest.mark.parametrize(("name", "line", "reason"), BAD_ROWS, ids=[name for name, *_ in BAD_ROWS])
def test_a_bad_line_does_not_take_the_others_with_it(tmp_path: Path, name: str, line: bytes, reason: str) -> None:
    good = json.dumps(ROWS[2]).encode()
    path = tmp_path / name
    path.write_bytes(b"\n".join([good, line, good]))
    first, bad, last = read(path)
    assert (first, last) == (ROWS[2], ROWS[2])
    assert isinstance(bad, BadRow)
    assert reason in str(bad)


def test_bad_elements_of_an_array_and_an_array_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    good = json.dumps(ROWS[1])
    path.write_text(f'[{good}, 5, {{"question": "\\sqrt"}}, ["a"], {{"q": "{"x" * 20_000}"}}, {good}]')
    rows = read(path)
    assert [isinstance(row, BadRow) for row in rows] == [False, True, True, True, True, False]
    assert "too long" in str(rows[4])
    path.write_text(f"[{good}, {good[:40]}")
    assert "it is incomplete" in str(read(path)[-1])
    path.write_text('{\n  "question": "q"\n}\n{\n "question": "\\sqrt"\n}\n{\n')
    fine, damaged, cut = read(path)
    assert fine == {"question": "q"}
    assert "must be written twice" in str(damaged)
    assert "it is incomplete" in str(cut)
    path.write_text("[]")
    assert read(path) == []
    path.write_text("")
    assert read(path) == []


def test_arrays_are_split_wherever_a_chunk_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.json"
    for size in range(1, 20):
        monkeypatch.setattr("gadfly.rowfiles.sources._HEAD", size)
        path.write_text(json.dumps(ROWS, indent=1))
        assert read(path) == ROWS


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows.jsonl.gz"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    row = {"question": "q" * 500, "response": "r" * 500}
    peaks = []
    for count in (1_000, 20_000):
        rows = [row] * count
        path = tmp_path / name
        if name == "rows.parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=500)
        elif name == "rows.json":
            path.write_text(json.dumps(rows))
        elif name == "rows.csv":
            path.write_text("question,response\n" + "\n".join(",".join(row.values()) for _ in range(count)))
        else:
            content = lines(rows).encode()
            path.write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
        tracemalloc.start()
        with open_rows(str(path), AS_IT_IS, max_row_chars=10_000) as source:
            assert sum(1 for _ in source.rows) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 2**20
