"""The adapter folder, which the trainer publishes and the service proves before serving it.

A folder holds one immutable adapter in PEFT's format, the probe record and the marker `adapter.json`. The marker is
written last: a folder without it counts as absent. It names the hash of every other file, so a truncated, changed or
replaced file is refused before an engine reads it.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from gadfly.errors import GadflyError

MARKER = "adapter.json"
PROBE = "probe.json"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The projections that an adapter changes: those that `gadfly/engine/command.py` lets vLLM wrap."""

FORMAT = 1
_LARGEST_HEADER = 100_000_000  # bytes of a safetensors header, the format's own limit
_CHUNK = 2**20


class BadAdapter(GadflyError):
    """An adapter folder that must not be served; the message gives the reason."""


class Probe(BaseModel):
    """One prompt of the probe set, with the greedy answer of the trainer's own weights.

    `tokens` ends before the first token whose lead over the second is small: there two correct programs may differ.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    response: str
    prompt_tokens: tuple[int, ...]  # empty where `prompt_sha256` is set
    prompt_sha256: str | None = None  # of the prompt's tokens instead, where the prompt holds texts of callers
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]  # of `tokens`, by the adapter's weights, in nats, at temperature 1
    base_logprobs: tuple[float, ...]  # of the same tokens, by the base model


def sha256_of_tokens(tokens: Sequence[int]) -> str:
    """The hash (hex) of a prompt's token ids."""
    return hashlib.sha256(",".join(map(str, tokens)).encode()).hexdigest()


class ProbeRecord(BaseModel):
    """The expected answers of the critic through the serving path."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_set: str
    tolerance: float  # largest |difference| of a log-probability between trainer and engine, in nats
    probes: tuple[Probe, ...]


class Marker(BaseModel):
    """The identity of an adapter. Written last, read first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    run_id: str
    base_model: str
    base_sha256: str  # of the base model's weights and configuration
    prompt_set: str
    task: str = "math"  # earlier releases had no other, and wrote none
    rank: int
    files: dict[str, str]  # name -> sha256 (hex)

    @property
    def sha256(self) -> str:
        """The adapter's identity: the hash of its weights."""
        return self.files[WEIGHTS]


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """A folder that passed every check."""

    path: Path
    marker: Marker
    probe: ProbeRecord

    @classmethod
    def read(cls, path: Path, *, base_model: str, max_rank: int) -> Self:
        """Check a folder file by file. Every byte is read once.

        Raises:
            BadAdapter: it is incomplete, changed, not in PEFT's format, for another base model, or of a higher rank.
        """
        marker = read_marker(path)
        for name, expected in sorted(marker.files.items()):
            if Path(name).name != name:
                raise BadAdapter(f"the adapter's marker names a file outside its folder: {name!r}")
            try:
                actual = file_sha256(path / name)
            except OSError as error:
                raise BadAdapter(f"{path / name} cannot be read: {error.strerror}") from error
            if actual != expected:
                raise BadAdapter(f"{path / name} is not the file that was published: its hash differs")
        for name in (WEIGHTS, CONFIG, PROBE):
            if name not in marker.files:
                raise BadAdapter(f"{path} has no {name}")
        if marker.base_model != base_model:
            raise BadAdapter(f"the adapter was trained on the model {marker.base_model}, but {base_model} is served")
        rank = _check_config(path / CONFIG)
        if rank != marker.rank or rank > max_rank:
            raise BadAdapter(
                f"the adapter has rank {rank}, its marker {marker.rank}, and the largest rank served is {max_rank}"
            )
        _check_weights(path / WEIGHTS, rank)
        try:
            probe = ProbeRecord.model_validate_json((path / PROBE).read_bytes())
        except ValidationError as error:
            raise BadAdapter(f"{path / PROBE} is not a probe record: {error.errors()[0]['msg']}") from error
        if not probe.probes or not all(item.tokens for item in probe.probes):
            raise BadAdapter(f"{path / PROBE} proves nothing: it has no tokens to compare")
        return cls(path, marker, probe)


def read_marker(path: Path) -> Marker:
    """The marker of a folder.

    Raises:
        BadAdapter: the folder or its marker is missing or invalid.
    """
    try:
        marker = Marker.model_validate_json((path / MARKER).read_bytes())
    except OSError:
        raise BadAdapter(f"{path} is not a published adapter: it has no {MARKER}") from None
    except ValidationError as error:
        raise BadAdapter(f"{path / MARKER} cannot be read: {error.errors()[0]['msg']}") from error
    if marker.format != FORMAT:
        raise BadAdapter(f"{path} has format {marker.format}; this release reads format {FORMAT}")
    if WEIGHTS not in marker.files:
        raise BadAdapter(f"{path} has no {WEIGHTS}")
    return marker


def seal(
    path: Path, *, run_id: str, base_model: str, base_sha256: str, prompt_set: str, rank: int, task: str = "math"
) -> Marker:
    """Write the marker of a complete folder: last, atomically and durably."""
    names = sorted(item.name for item in path.iterdir() if item.is_file() and item.name != MARKER)
    marker = Marker(
        run_id=run_id,
        base_model=base_model,
        base_sha256=base_sha256,
        prompt_set=prompt_set,
        task=task,
        rank=rank,
        files={name: file_sha256(path / name) for name in names},
    )
    for name in names:
        sync(path / name)
    # Without the default, so that earlier releases, which know no tasks, read the marker.
    content = marker.model_dump_json(indent=2, exclude={"task"} if task == "math" else None)
    write_durably(path / MARKER, content.encode())
    sync(path.parent)
    return marker


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file atomically; it is on disk when this returns."""
    unfinished = path.with_name(path.name + ".new")
    unfinished.write_bytes(content)
    sync(unfinished)
    unfinished.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _check_config(path: Path) -> int:
    try:
        config: dict[str, Any] = orjson.loads(path.read_bytes())
        rank, modules = int(config["r"]), set(config["target_modules"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadAdapter(f"{path} is not a PEFT configuration: {error}") from error
    if config.get("peft_type") != "LORA":
        raise BadAdapter(f"{path} is not a LoRA adapter")
    if not modules <= set(TARGET_MODULES):
        raise BadAdapter(
            f"the adapter changes {sorted(modules - set(TARGET_MODULES))}, which the engine does not serve"
        )
    return rank


def read_safetensors_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Each tensor's `dtype`, `shape` and `data_offsets`, and the number of data bytes after the header.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a safetensors file.
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > _LARGEST_HEADER:
            raise ValueError("it has no header")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return tensors, path.stat().st_size - 8 - length


def _check_weights(path: Path, rank: int) -> None:
    """Check the shapes that PEFT writes: lora_A is (rank, in), lora_B is (out, rank). Only the header is parsed."""
    try:
        tensors, size = read_safetensors_header(path)
    except (OSError, ValueError) as error:
        raise BadAdapter(f"{path} is not a safetensors file: {error}") from error
    if not tensors or max(entry["data_offsets"][1] for entry in tensors.values()) != size:
        raise BadAdapter(f"{path} is incomplete")
    for name, entry in tensors.items():
        axis = 0 if ".lora_A." in name else 1 if ".lora_B." in name else None
        if axis is None or len(entry["shape"]) != 2 or entry["shape"][axis] != rank:
            raise BadAdapter(f"{path}: {name} has the shape {entry['shape']}, not that of a LoRA matrix of rank {rank}")
