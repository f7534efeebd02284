"""Critics that travel between deployments: a PEFT folder with its probe record, gate report and model card.

The place is a folder, or any address that fsspec opens (`s3://bucket/critics/3`, `hf://owner/name`). `SHA256SUMS` is
written last and names the hash of every other file, in the form that `sha256sum -c` checks. What is fetched is checked
by these hashes, by the adapter's own marker and by the base model's hash before anything else reads it.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from gadfly.adapters import CONFIG, MARKER, PROBE, WEIGHTS, AdapterFolder, Marker, file_sha256, read_marker, seal
from gadfly.errors import BadInput
from gadfly.records import CriticVersion

SUMS = "SHA256SUMS"
CARD = "README.md"
GATE = "gate.json"

_NEEDED = (MARKER, WEIGHTS, CONFIG, PROBE)
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([\w.-]+)")
_LARGEST_LIST = 2**16  # bytes of SHA256SUMS


@dataclass(frozen=True, slots=True)
class Fetched:
    """An adapter that was fetched, checked and sealed for this deployment."""

    folder: Path
    marker: Marker
    gate: dict[str, Any] | None  # the report of the gate that decided about it where it was made


def push(folder: AdapterFolder, target: str, *, critic: CriticVersion, gate: Mapping[str, Any] | None) -> None:
    """Write an adapter to `target`, which must not hold files yet.

    Raises:
        BadInput: the address cannot be opened or written, or there are files already.
    """
    with _opened(target) as (files, path):
        if files.exists(path) and files.ls(path):
            raise BadInput(f"{target} exists and is not empty: choose another place")
        texts = {CARD: model_card(folder, critic=critic, gate=gate)}
        if gate is not None:
            texts[GATE] = json.dumps(gate, indent=2)
        files.makedirs(path, exist_ok=True)
        sums = []
        published = {*folder.marker.files, MARKER}
        for name in sorted(published):
            files.put_file(str(folder.path / name), f"{path}/{name}")
            sums.append(f"{file_sha256(folder.path / name)}  {name}\n")
        for name, text in texts.items():
            if name in published:  # the marker holds its hash
                continue
            files.pipe_file(f"{path}/{name}", text.encode())
            sums.append(f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n")
        files.pipe_file(f"{path}/{SUMS}", "".join(sums).encode())


def pull(
    source: str, adapters: Path, *, base_model: str, base_sha256: str, task: str, prompt_set: str, max_rank: int
) -> Fetched:
    """Fetch an adapter into a folder of its own under `adapters`, under this deployment's name of the base model.

    A folder that was fetched before stays unchanged.

    Raises:
        BadInput: there is no adapter at the address, or it is for another base model, task or prompts.
        BadAdapter: its files are not those that were pushed, or cannot be served with these settings.
    """
    with _opened(source) as (files, path):
        sums = _read_sums(files, path, source)
        marker = Marker.model_validate_json(files.cat_file(f"{path}/{MARKER}"))
        if marker.base_sha256 != base_sha256:
            raise BadInput(
                f"{source} was trained on the base model {marker.base_model}, whose weights have the hash "
                f"{marker.base_sha256[:12]}; this deployment's {base_model} has {base_sha256[:12]}"
            )
        if marker.task != task:
            raise BadInput(
                f"{source} was trained on the task {marker.task}, and not on {task}: pull it with "
                f"--task {marker.task}, in a deployment of that task"
            )
        if marker.prompt_set != prompt_set:
            raise BadInput(
                f"{source} was trained under the prompts {marker.prompt_set}, but this deployment is set to "
                f"{prompt_set}"
            )
        gate = _read_gate(files, path, source, sums.get(GATE))
        folder = adapters / f"pulled-{marker.sha256[:16]}"
        if folder.exists():
            return Fetched(folder, read_marker(folder), gate)
        unfinished = adapters / f".{folder.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            for name in sorted({MARKER, *marker.files}):
                if name not in sums:
                    raise BadInput(f"{source}: {SUMS} does not name {name}, which the adapter's marker names")
                files.get_file(f"{path}/{name}", str(unfinished / name))
                if file_sha256(unfinished / name) != sums[name]:
                    raise BadInput(_differs(source, name))
            AdapterFolder.read(unfinished, base_model=marker.base_model, max_rank=max_rank)
            marker = seal(
                unfinished,
                run_id=marker.run_id,
                base_model=base_model,
                base_sha256=base_sha256,
                prompt_set=prompt_set,
                task=task,
                rank=marker.rank,
            )
            for each in unfinished.iterdir():
                each.chmod(0o644)  # engine and service may run as other users
            unfinished.replace(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return Fetched(folder, marker, gate)


def model_card(folder: AdapterFolder, *, critic: CriticVersion, gate: Mapping[str, Any] | None) -> str:
    """The adapter's description in the form that the hub of Hugging Face shows."""
    marker = folder.marker
    report = "The gate has not measured it." if gate is None else _report(gate)
    return f"""---
library_name: peft
base_model: {Path(marker.base_model).name if marker.base_model.startswith("/") else marker.base_model}
pipeline_tag: text-generation
tags: [critic, lora, gadfly]
---

# Critic {critic.version}

A LoRA adapter of rank {marker.rank} that judges answers step by step, trained by
[Critique-RL](https://arxiv.org/abs/2510.24320) with Gadfly.

- adapter: `{marker.sha256}` (SHA-256 of `{WEIGHTS}`)
- base model: `{marker.base_sha256}` (SHA-256 over its configuration and weights)
- prompts: `{marker.prompt_set}`
- trained by run {marker.run_id}, published {critic.created_at:%Y-%m-%d}

## Gate

{report}

## Use

`gadfly critics pull ADDRESS` checks every file, stores the critic as the candidate, and `gadfly promote` makes it live
after each engine has answered the probes in `{PROBE}` as recorded there. The folder is a PEFT adapter as well:

```python
model = PeftModel.from_pretrained(base_model, "ADDRESS")
```

`sha256sum -c {SUMS}` checks the files.
"""


def _report(gate: Mapping[str, Any]) -> str:
    lines = [f"Decision: **{str(gate['outcome']).replace('_', ' ')}**", ""]
    measured = {name: gate["numbers"].get(name) or {} for name in ("candidate", "live")}
    rates = {
        name: {rate: value["value"] for rate, value in values.items() if isinstance(value, dict) and "value" in value}
        for name, values in measured.items()
    }
    if rates["candidate"]:
        lines += ["| rate | this critic | the live critic |", "| --- | --- | --- |"]
        for rate, value in rates["candidate"].items():
            lines.append(f"| {rate.replace('_', ' ')} | {_shown(value)} | {_shown(rates['live'].get(rate))} |")
        lines.append("")
    lines += [f"- {reason}" for reason in gate.get("reasons", ())]
    return "\n".join(lines).rstrip()


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "-"


def _read_sums(files: Any, path: str, source: str) -> dict[str, str]:
    try:
        content = files.cat_file(f"{path}/{SUMS}", start=0, end=_LARGEST_LIST).decode(errors="replace")
    except FileNotFoundError:
        raise BadInput(f"{source} holds no critic that was pushed completely: it has no {SUMS}") from None
    sums = {match[2]: match[1] for line in content.splitlines() if (match := _LINE.fullmatch(line))}
    if missing := [name for name in _NEEDED if name not in sums]:
        raise BadInput(f"{source} holds no critic: {SUMS} does not name {', '.join(missing)}")
    return sums


def _read_gate(files: Any, path: str, source: str, sha256: str | None) -> dict[str, Any] | None:
    if sha256 is None:
        return None
    content = files.cat_file(f"{path}/{GATE}")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BadInput(_differs(source, GATE))
    gate: dict[str, Any] = json.loads(content)
    return gate


def _differs(source: str, name: str) -> str:
    return f"{source}: {name} is not the file that was pushed: its hash differs"


@contextmanager
def _opened(address: str) -> Iterator[tuple[Any, str]]:
    """The file system of an address, and the path in it; its errors become sentences."""
    try:
        files, path = fsspec.core.url_to_fs(address)
        yield files, path.rstrip("/")
    except ImportError as error:  # fsspec names the package that opens this kind of address
        raise BadInput(f"{address} cannot be opened: {error}") from error
    except (OSError, ValueError) as error:
        raise BadInput(f"{address}: {error}") from error
