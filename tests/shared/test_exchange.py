"""Pushing and pulling adapters, over folders and over a file system of fsspec."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest

from gadfly import exchange
from gadfly.adapters import PROBE, WEIGHTS, AdapterFolder, BadAdapter
from gadfly.errors import BadInput
from gadfly.exchange import CARD, GATE, SUMS
from gadfly.records import CriticVersion, now
from tests.support.published import make_adapter

BASE = "b" * 64
CRITIC = CriticVersion(
    version=7, parent=0, base_model="/models/small", adapter_path="x", adapter_sha256="a", created_at=now()
)
GATE_REPORT: dict[str, Any] = {
    "outcome": "promote",
    "numbers": {"candidate": {"coverage": {"value": 0.875}, "items": 40}, "live": {"coverage": {"value": 0.5}}},
    "reasons": ["it is better on both axes"],
}


@pytest.fixture
def folder(tmp_path: Path) -> AdapterFolder:
    path = make_adapter(tmp_path / "published", base_model="/models/small", base_sha256=BASE)
    return AdapterFolder.read(path, base_model="/models/small", max_rank=16)


@pytest.fixture(params=["folder", "memory"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "pushed") if request.param == "folder" else f"memory://{uuid4().hex}/critics/7"


def pulled(source: str, adapters: Path, **changes: Any) -> exchange.Fetched:
    wanted: dict[str, Any] = {
        "base_model": "their-name",
        "base_sha256": BASE,
        "task": "math",
        "prompt_set": "stepwise@1",
        "max_rank": 16,
    }
    return exchange.pull(source, adapters, **(wanted | changes))


def test_a_critic_arrives_as_it_was_pushed_under_the_name_of_the_base_model_here(
    folder: AdapterFolder, target: str, tmp_path: Path
) -> None:
    exchange.push(folder, target, critic=CRITIC, gate=GATE_REPORT)
    fetched = pulled(target, tmp_path / "adapters")
    assert fetched.gate == GATE_REPORT
    here = AdapterFolder.read(fetched.folder, base_model="their-name", max_rank=16)
    assert (here.marker.sha256, here.marker.run_id) == (folder.marker.sha256, folder.marker.run_id)
    assert here.probe == folder.probe
    assert (here.path / WEIGHTS).stat().st_mode & 0o777 == 0o644
    assert pulled(target, tmp_path / "adapters").folder == fetched.folder
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == [fetched.folder.name]
    # And from there to a third deployment.
    exchange.push(here, str(tmp_path / "again"), critic=CRITIC, gate=fetched.gate)
    assert pulled(str(tmp_path / "again"), tmp_path / "third").marker.sha256 == folder.marker.sha256


def test_what_is_pushed_is_a_peft_folder_with_card_report_and_checksums(folder: AdapterFolder, tmp_path: Path) -> None:
    target = tmp_path / "pushed"
    exchange.push(folder, str(target), critic=CRITIC, gate=GATE_REPORT)
    sums = dict(reversed(line.split("  ")) for line in (target / SUMS).read_text().splitlines())
    assert set(sums) == {path.name for path in target.iterdir()} - {SUMS}
    assert all(hashlib.sha256((target / name).read_bytes()).hexdigest() == sum_ for name, sum_ in sums.items())
    card = (target / CARD).read_text()
    assert card.startswith("---\nlibrary_name: peft\nbase_model: small\n")  # a folder's path stays private
    assert "| coverage | 0.875 | 0.500 |" in card
    assert "Decision: **promote**" in card
    exchange.push(folder, str(tmp_path / "bare"), critic=replace(CRITIC, version=8), gate=None)
    assert not (tmp_path / "bare" / GATE).exists()
    assert "The gate has not measured it." in (tmp_path / "bare" / CARD).read_text()


def test_nothing_is_overwritten(folder: AdapterFolder, target: str) -> None:
    exchange.push(folder, target, critic=CRITIC, gate=None)
    with pytest.raises(BadInput, match="is not empty"):
        exchange.push(folder, target, critic=CRITIC, gate=None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"base_sha256": "c" * 64},
            "trained on the base model /models/small, whose weights have the hash bbbbbbbbbbbb",
        ),
        ({"task": "sql"}, "trained on the task math, and not on sql: pull it with --task math"),
        ({"prompt_set": "bare@1"}, "under the prompts stepwise@1, but this deployment is set to bare@1"),
    ],
)
def test_another_base_model_and_other_prompts_are_refused(
    folder: AdapterFolder, target: str, tmp_path: Path, changes: dict[str, str], sentence: str
) -> None:
    exchange.push(folder, target, critic=CRITIC, gate=None)
    with pytest.raises(BadInput, match=sentence):
        pulled(target, tmp_path / "adapters", **changes)
    assert not (tmp_path / "adapters").exists()


def test_a_higher_rank_than_is_served_is_refused(folder: AdapterFolder, target: str, tmp_path: Path) -> None:
    exchange.push(folder, target, critic=CRITIC, gate=None)
    with pytest.raises(BadAdapter, match="the largest rank served is 1"):
        pulled(target, tmp_path / "adapters", max_rank=1)
    assert list((tmp_path / "adapters").iterdir()) == []


def _without_sums(files: Any, path: str) -> None:
    files.rm(f"{path}/{SUMS}")


def _cut(files: Any, path: str) -> None:
    files.pipe_file(f"{path}/{WEIGHTS}", files.cat_file(f"{path}/{WEIGHTS}")[:-1])


def _with_other_probes(files: Any, path: str) -> None:
    """Someone also mends the checksum; the marker still has the old one."""
    other = files.cat_file(f"{path}/{PROBE}").replace(b"-0.1", b"-0.3")
    sums = files.cat_file(f"{path}/{SUMS}").decode().splitlines()
    kept = [line for line in sums if not line.endswith(f"  {PROBE}")]
    files.pipe_file(f"{path}/{PROBE}", other)
    files.pipe_file(f"{path}/{SUMS}", "\n".join([*kept, f"{hashlib.sha256(other).hexdigest()}  {PROBE}"]).encode())


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (_without_sums, BadInput, "it has no SHA256SUMS"),
        (_cut, BadInput, "adapter_model.safetensors is not the file that was pushed"),
        (_with_other_probes, BadAdapter, "probe.json is not the file that was published"),
    ],
)
def test_changed_files_are_refused(
    folder: AdapterFolder,
    target: str,
    tmp_path: Path,
    change: Callable[[Any, str], None],
    error: type[Exception],
    sentence: str,
) -> None:
    exchange.push(folder, target, critic=CRITIC, gate=None)
    change(*fsspec.core.url_to_fs(target))
    with pytest.raises(error, match=sentence):
        pulled(target, tmp_path / "adapters")
    assert not list((tmp_path / "adapters").glob("*"))


@pytest.mark.parametrize("address", ["s4://bucket/x", "/nowhere/at/all", "memory://nothing"])
def test_addresses_that_lead_nowhere_are_one_sentence(address: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=address):
        pulled(address, tmp_path)
