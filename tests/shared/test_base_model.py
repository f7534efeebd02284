"""Where the base model is, and its pin: a hub model's commit, or a folder's hash."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from gadfly.base_model import base_sha256, check_commit, check_pin, hub_commit, model_location
from gadfly.errors import BadSettings
from gadfly.settings import Settings

HUB_ID = "Qwen/Qwen2.5-0.5B-Instruct"
OLD, NEW = "0a" * 20, "0b" * 20


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The hub's cache with two commits of a model, of which the newer one is the branch main; no network."""
    cached = tmp_path / "hub" / "models--Qwen--Qwen2.5-0.5B-Instruct"  # the layout of huggingface_hub
    for commit in (OLD, NEW):
        write(cached / "snapshots" / commit, weights=commit.encode())
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(NEW)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return SimpleNamespace(of=lambda commit: str(cached / "snapshots" / commit))


def write(folder: Path, *, weights: bytes) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.mark.parametrize(
    ("revision", "commit", "why"),
    [("", NEW, "not pinned: what the cache has as the newest"), (OLD, OLD, "pinned: also when main has moved")],
)
def test_a_hub_model_is_the_folder_of_a_commit(cache: SimpleNamespace, revision: str, commit: str, why: str) -> None:
    settings = Settings(model=HUB_ID, model_revision=revision)
    location = model_location(settings)
    assert location == cache.of(commit), why
    assert hub_commit(settings, location) == commit
    assert base_sha256(cache.of(OLD)) != base_sha256(cache.of(NEW))


@pytest.mark.parametrize(
    ("model", "revision", "sentence"),
    [
        (HUB_ID, "0c" * 20, "at 0c0c.* is not in the hub's cache and cannot be fetched"),
        (HUB_ID, f"sha256:{'ab' * 32}", "is a hub id: give a commit"),
        ("/no/such/folder", "", "neither a folder here nor the id of a hub model"),
    ],
)
def test_a_model_that_is_not_there_is_refused(cache: SimpleNamespace, model: str, revision: str, sentence: str) -> None:
    with pytest.raises(BadSettings, match=sentence):
        model_location(Settings(model=model, model_revision=revision))


def test_a_folder_is_pinned_by_its_hash(tmp_path: Path) -> None:
    folder = str(write(tmp_path / "m", weights=b"1"))
    settings = Settings(model=folder)
    assert model_location(settings) == folder
    assert hub_commit(settings, folder) is None
    pin = f"sha256:{base_sha256(folder)}"
    check_pin(folder, base_sha256(folder), pin)
    (tmp_path / "m" / "model.safetensors").write_bytes(b"2")
    with pytest.raises(BadSettings, match=f"has the hash .*, and GADFLY_MODEL_REVISION is {pin}"):
        check_pin(folder, base_sha256(folder), pin)
    with pytest.raises(BadSettings, match="is a commit, and"):
        check_pin(folder, base_sha256(folder), OLD)


def test_a_hub_model_is_pinned_by_a_commit() -> None:
    check_commit(HUB_ID, OLD)
    check_commit(HUB_ID, "")
    with pytest.raises(BadSettings, match="40 hex digits"):
        check_commit(HUB_ID, f"sha256:{'ab' * 32}")
