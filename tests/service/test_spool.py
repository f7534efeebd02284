"""The spool's files, with real crashes and real full disks."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from gadfly.errors import SpoolFull, StoreUnavailable
from gadfly.grading import Grade
from gadfly.records import Feedback, Interaction, Kind, Record, StopReason, Usage, new_id
from gadfly.service.recording.spool import Spool
from tests.support.records import make_critique, make_feedback, make_interaction, make_refinement

PLENTY = 2**30


@contextmanager
def opened(folder: Path, max_bytes: int = PLENTY) -> Iterator[Spool]:
    spool = Spool(folder, max_bytes=max_bytes)
    spool.open()
    try:
        yield spool
    finally:
        spool.close()


def drain(spool: Spool) -> list[Record]:
    records: list[Record] = []
    while not spool.is_empty:
        batch = spool.oldest()
        records += batch.records
        spool.remove(batch)
    return records


def fill(spool: Spool, records: list[Record]) -> list[Record]:
    """Append one by one until the spool refuses; return the records it accepted."""
    for number, record in enumerate(records):
        try:
            spool.append([record])
        except SpoolFull:
            return records[:number]
    raise AssertionError("the spool was never full")


def some_records() -> list[Record]:
    interaction = make_interaction(samples=2, refined=True, request_id="r", question="What is\n2 + 2?\u2028ß")
    return [
        interaction,
        make_feedback(interaction.id, correct=False, refinement_grades={interaction.refinements[0].id: Grade.RIGHT}),
        make_interaction(metadata={"big": 2**100}, critiques=()),
    ]


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.log"))


def test_records_come_back_as_they_went_in_and_in_order(tmp_path: Path) -> None:
    records = some_records()
    with opened(tmp_path) as spool:
        spool.append(records[:2])
        spool.append(records[2:])
        assert spool.records == 3
        assert spool.bytes == sum(path.stat().st_size for path in segments(tmp_path))
        assert drain(spool) == records
        assert (spool.records, spool.bytes, segments(tmp_path)) == (0, 0, [])
    assert list(tmp_path.iterdir()) == []


# Two records as releases before this one wrote them, with escapes for all text beyond ASCII.
EARLIER_LINES = (
    rb'484269a5 1166 {"interaction":{"id":"01a222a2-0000-7000-8000-000000000001","kind":"refine",'
    rb'"created_at":"2026-11-28T14:50:16.343019Z","episode_id":"01a222a2-0000-7000-8000-000000000002","key_id":null,'
    rb'"request_id":"r","fingerprint":"f","question":"What is\n2 + 2?","response":"5","reference":"4","grade":"wrong",'
    rb'"metadata":{"big":1267650600228229401496703205376,"deep":[null,1.5,{"\u00df":true}]},'
    rb'"parameters":{"rounds":1},"model":"tiny","prompt_set":"stepwise@1","critic_version":0,"adapter_sha256":null,'
    rb'"verdict":"incorrect","refined_response":"4","stop_reason":"rounds",'
    rb'"usage":{"prompt_tokens":40,"completion_tokens":25},"latency_ms":12.5,'
    rb'"critiques":[{"id":"01a222a2-0000-7000-8000-000000000003","round":0,"sample":0,"text":"Wrong\u2028\u00df",'
    rb'"stated":"incorrect","verdict":"incorrect","verdict_source":"stated","p_correct":0.25,"p_incorrect":0.5,'
    rb'"finish_reason":"stop","usage":{"prompt_tokens":10,"completion_tokens":20},"supplied":false}],'
    rb'"refinements":[{"id":"01a222a2-0000-7000-8000-000000000004","round":0,"sample":0,'
    rb'"critique_id":"01a222a2-0000-7000-8000-000000000003","text":"4","finish_reason":null,"grade":"right",'
    rb'"usage":{"prompt_tokens":0,"completion_tokens":0}}]}}',
    rb'e897017f 397 {"feedback":{"id":"01a222a2-0000-7000-8000-000000000005",'
    rb'"interaction_id":"01a222a2-0000-7000-8000-000000000001","key_id":"01a222a2-0000-7000-8000-000000000006",'
    rb'"created_at":"2026-11-28T14:50:17Z","source":"caller","correct":false,"reference":null,"edited_response":null,'
    rb'"rating":null,"comment":"no","metadata":{},"grade":null,'
    rb'"refinement_grades":{"01a222a2-0000-7000-8000-000000000004":"right"}}}',
)


def earlier_id(number: int) -> UUID:
    return UUID(f"01a222a2-0000-7000-8000-{number:012d}")


def earlier_records() -> list[Record]:
    """The records of `EARLIER_LINES`."""
    critique = make_critique(id=earlier_id(3), text="Wrong\u2028ß", p_correct=0.25, p_incorrect=0.5)
    refinement = make_refinement(
        critique.id, id=earlier_id(4), text="4", finish_reason=None, grade=Grade.RIGHT, usage=Usage()
    )
    interaction = make_interaction(
        id=earlier_id(1),
        kind=Kind.REFINE,
        created_at=datetime(2026, 11, 28, 14, 50, 16, 343019, tzinfo=UTC),
        episode_id=earlier_id(2),
        request_id="r",
        fingerprint="f",
        question="What is\n2 + 2?",
        response="5",
        reference="4",
        grade=Grade.WRONG,
        metadata={"big": 2**100, "deep": [None, 1.5, {"ß": True}]},
        parameters={"rounds": 1},
        refined_response="4",
        stop_reason=StopReason.ROUNDS,
        critiques=(critique,),
        refinements=(refinement,),
    )
    feedback = make_feedback(
        interaction.id,
        id=earlier_id(5),
        key_id=earlier_id(6),
        created_at=datetime(2026, 11, 28, 14, 50, 17, tzinfo=UTC),
        correct=False,
        comment="no",
        refinement_grades={refinement.id: Grade.RIGHT},
    )
    return [interaction, feedback]


def test_lines_of_earlier_releases_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "replica"
    folder.mkdir()
    (folder / "1.log").write_bytes(b"".join(line + b"\n" for line in EARLIER_LINES))
    interaction, feedback = earlier_records()
    with opened(tmp_path) as spool:
        assert spool.find_request("r", key_id=None) == interaction
        assert spool.find_feedback(interaction.id) == [feedback]
        assert drain(spool) == [interaction, feedback]
    assert not (tmp_path / "rejected.jsonl").exists()


def test_lines_hold_the_same_json_as_those_of_earlier_releases(tmp_path: Path) -> None:
    """So that an earlier release, started again, reads them too."""
    with opened(tmp_path) as spool:
        spool.append(earlier_records())
        lines = segments(tmp_path)[0].read_bytes().splitlines()
    for line, earlier in zip(lines, EARLIER_LINES, strict=True):
        assert json.loads(line.split(b" ", 2)[2]) == json.loads(earlier.split(b" ", 2)[2])


def test_records_appended_after_a_batch_was_read_are_in_a_later_batch(tmp_path: Path) -> None:
    first, second = make_interaction(), make_interaction()
    with opened(tmp_path) as spool:
        spool.append([first])
        batch = spool.oldest()
        spool.append([second])
        assert batch.records == [first]
        spool.remove(batch)
        assert drain(spool) == [second]


def test_many_records_make_many_batches(tmp_path: Path) -> None:
    records: list[Record] = [make_interaction(question=f"question {number}") for number in range(450)]
    with opened(tmp_path) as spool:
        for start in range(0, 450, 50):
            spool.append(records[start : start + 50])
        assert spool.segments == 3
        assert drain(spool) == records


def test_spooled_interactions_are_found(tmp_path: Path) -> None:
    records = some_records()
    interaction = records[0]
    assert isinstance(interaction, Interaction)
    with opened(tmp_path) as spool:
        spool.append(records)
        assert spool.find(interaction.id) == interaction
        assert spool.find_request("r", key_id=None) == interaction
        assert spool.find_request("r", key_id=new_id()) is None
        assert spool.find(new_id()) is None
        about = [record for record in records if isinstance(record, Feedback)]
        assert about
        for feedback in about:
            spooled = spool.find_feedback(feedback.interaction_id)
            assert spooled == [item for item in about if item.interaction_id == feedback.interaction_id]
        drain(spool)
        assert [spool.find_feedback(feedback.interaction_id) for feedback in about] == [[]] * len(about)
        assert spool.find(interaction.id) is None
        assert spool.find_request("r", key_id=None) is None


def test_values_that_json_cannot_represent_are_replaced(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.append([make_interaction(response="\ud800", metadata={"x": float("inf")}, latency_ms=float("nan"))])
        (record,) = drain(spool)
    assert isinstance(record, Interaction)
    assert (record.response, record.metadata, record.latency_ms) == ("\ufffd", {"x": None}, None)


def test_records_in_a_closed_spool_wait_for_the_next_start(tmp_path: Path) -> None:
    records = some_records()
    with opened(tmp_path) as spool:
        spool.append(records)
    with opened(tmp_path) as spool:
        assert spool.records == 3
        assert isinstance(records[0], Interaction)
        assert spool.find(records[0].id) == records[0]
        assert drain(spool) == records


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_a_line_cut_short_by_a_crash_is_dropped(tmp_path: Path, cut: int) -> None:
    records = some_records()
    with opened(tmp_path) as spool:
        spool.append(records)
    (path,) = segments(tmp_path)
    os.truncate(path, path.stat().st_size - cut)
    with opened(tmp_path) as spool:
        spool.append([records[2]])
        assert drain(spool) == [*records[:2], records[2]]
    assert not (tmp_path / "rejected.jsonl").exists()  # it was never acknowledged


def test_a_tail_of_zeros_is_dropped(tmp_path: Path) -> None:
    records = some_records()
    with opened(tmp_path) as spool:
        spool.append(records)
    with segments(tmp_path)[0].open("ab") as file:
        file.write(bytes(5000))
    with opened(tmp_path) as spool:
        assert drain(spool) == records


def test_a_damaged_line_is_rejected_and_the_others_are_read(tmp_path: Path) -> None:
    records = some_records()
    with opened(tmp_path) as spool:
        spool.append(records)
    (path,) = segments(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(b"\n") + 40] ^= 1  # in the second line
    path.write_bytes(content)
    with opened(tmp_path) as spool:
        assert drain(spool) == [records[0], records[2]]
    (line,) = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert "damaged" in json.loads(line)["reason"]


def test_a_rejected_record_is_stored_with_its_reason(tmp_path: Path) -> None:
    interaction = make_interaction()
    with opened(tmp_path) as spool:
        spool.reject(interaction, "why")
        spool.reject(make_feedback(interaction.id), "why not")
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["why", "why not"]
    assert lines[0]["interaction"]["id"] == str(interaction.id)
    assert (tmp_path / "rejected.jsonl").stat().st_mode & 0o077 == 0


def test_live_processes_do_not_share(tmp_path: Path) -> None:
    mine, theirs = make_interaction(), make_interaction()
    with opened(tmp_path) as one:
        one.append([mine])
        with opened(tmp_path) as other:
            assert other.is_empty
            other.append([theirs])
            assert drain(one) == [mine]
            assert drain(other) == [theirs]


CHILD = """
import sys, time
from pathlib import Path
from gadfly.service.recording.spool import Spool
from tests.support.records import make_interaction
spool = Spool(Path(sys.argv[1]), max_bytes=2**30)
spool.open()
while True:
    records = [make_interaction() for _ in range(5)]
    spool.append(records)
    for record in records:
        print("kept", record.id, flush=True)
"""


def test_after_a_kill_the_next_start_takes_over_every_acknowledged_record(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(300)]
            child.send_signal(signal.SIGKILL)
            lines += [line for line in child.stdout if line.endswith("\n")]
            acknowledged += [line.split()[1] for line in lines if line.startswith("kept")]
    with opened(tmp_path) as spool:
        kept = [str(record.id) for record in drain(spool)]
    assert set(acknowledged) <= set(kept)
    assert len(kept) == len(set(kept)) <= len(acknowledged) + 10  # the last groups may lack their acknowledgement


def test_a_full_spool_refuses_and_recovers(tmp_path: Path) -> None:
    records: list[Record] = [make_interaction(question="x" * 1000) for _ in range(20)]
    with opened(tmp_path, max_bytes=10_000) as spool:
        kept = fill(spool, records)
        assert kept
        with pytest.raises(SpoolFull, match="10,000 bytes"):
            spool.append([records[-1]])
        assert drain(spool) == kept
        spool.append([records[-1]])


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_refuses_and_leaves_the_file_readable(tmp_path: Path) -> None:
    with small_disk(tmp_path, 128 * 1024), opened(tmp_path) as spool:
        records: list[Record] = [make_interaction(question="x" * 5000) for _ in range(100)]
        kept = fill(spool, records)
        for _ in range(3):
            with pytest.raises(SpoolFull, match="disk is full"):
                spool.append([records[-1]])
        small = make_feedback(new_id(), comment="a")  # a record that still fits is accepted

        spool.append([small])
        batch = spool.oldest()
        assert batch.records[: len(kept)] == kept
        spool.remove(batch)
        assert [*batch.records, *drain(spool)] == [*kept, small]
        spool.append([records[-1]])
        assert drain(spool) == [records[-1]]


LIMITED = """
import resource, sys
from pathlib import Path
from gadfly.errors import SpoolFull
from gadfly.service.recording.spool import Spool
from tests.support.records import make_interaction
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
spool = Spool(Path(sys.argv[1]), max_bytes=2**30)
spool.open()
kept = []
try:
    while True:
        record = make_interaction(question="x" * 3000)
        spool.append([record])
        kept.append(record)
except SpoolFull as error:
    print(error)
after = make_interaction()
spool.append([after])  # in a new file
records = []
while not spool.is_empty:
    batch = spool.oldest()
    records += batch.records
    spool.remove(batch)
assert records == [*kept, after], (len(records), len(kept))
print(len(kept))
"""


def test_a_limit_on_file_size_refuses_and_leaves_the_file_readable(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "disk is full" in done.stdout
    assert int(done.stdout.splitlines()[-1]) > 5


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable, match="spool"), opened(tmp_path / "file"):
        pass
