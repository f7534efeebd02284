"""The base model outside the engine: its location, the hash that identifies it, and the pin in the settings."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gadfly.adapters import file_sha256
from gadfly.errors import BadSettings
from gadfly.settings import DEFAULT_MODEL, Settings

HASH = "sha256:"
"""Begins the pin of a folder; the pin of a hub model is a commit."""

# What transformers reads of a hub model; never pickled weights.
_SMALL_FILES = ("*.json", "*.jinja", "tokenizer.model")
_WEIGHTS = ("*.safetensors", "*.bin")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def model_location(settings: Settings) -> str:
    """The folder for transformers to load. For a hub id it is a commit's folder in the hub's cache.

    Without a pin that is the commit which the cache has as the newest: the one that vLLM has put there.

    Raises:
        BadSettings: the default model does not exist yet (the engine makes it when it starts), or a hub model is
            neither in the cache nor can be fetched.
    """
    if settings.model != DEFAULT_MODEL:
        folder = Path(settings.model).expanduser()
        return str(folder.resolve() if folder.is_dir() else _hub_folder(settings.model, settings.model_revision))
    folder = settings.default_model
    if not (folder / "config.json").is_file():
        raise BadSettings(f"{folder} does not exist yet: the engine makes it when it starts, and the trainer shares it")
    return str(folder)


def hub_commit(settings: Settings, location: str) -> str | None:
    """The commit of a hub model whose `model_location` is given; None for a folder."""
    is_folder = settings.model == DEFAULT_MODEL or Path(settings.model).expanduser().is_dir()
    return None if is_folder else Path(location).name


def base_sha256(location: str) -> str:
    """The hash that identifies the base weights: over configuration and weight files, in the order of their names."""
    folder = Path(location)
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def is_hash(revision: str) -> bool:
    """Whether a pin is the hash of a folder and not a commit of the hub."""
    return revision.startswith(HASH)


def check_commit(model: str, revision: str) -> None:
    """Checks that the pin of a hub model is a commit, or empty.

    Raises:
        BadSettings: it is the hash of a folder.
    """
    if is_hash(revision):
        raise BadSettings(f"GADFLY_MODEL_REVISION is a hash, and {model} is a hub id: give a commit, 40 hex digits.")


def check_pin(folder: str, sha256: str, revision: str) -> None:
    """Checks a folder, whose `base_sha256` is given, against its pin.

    Raises:
        BadSettings: it has other files, or is pinned by a commit.
    """
    if not is_hash(revision):
        raise BadSettings(
            f"GADFLY_MODEL_REVISION is a commit, and {folder} is a folder: give its hash, as `gadfly model --hash` "
            "prints it."
        )
    if revision != f"{HASH}{sha256}":
        raise BadSettings(
            f"{folder} has the hash {HASH}{sha256}, and GADFLY_MODEL_REVISION is {revision}: restore the files of the "
            "folder, or set the new hash."
        )


def _hub_folder(model: str, revision: str) -> Path:
    """The commit's folder in the hub's cache; files that are missing there are fetched.

    Raises:
        BadSettings: the hub does not have it, or cannot be reached.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415  # most deployments have a folder
    from huggingface_hub.errors import (  # noqa: PLC0415
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    check_commit(model, revision)
    commit, files = revision or None, [*_SMALL_FILES, "*.safetensors"]
    try:
        with suppress(LocalEntryNotFoundError):
            folder = Path(snapshot_download(model, revision=commit, local_files_only=True))
            commit = folder.name  # also without a pin: another commit may be the newest there by now
            if _has_any(folder, _WEIGHTS):
                if _has_any(folder, _TOKENIZERS):
                    return folder  # the hub may be unreachable, or may have removed the commit
                files = list(_SMALL_FILES)  # what vLLM does not need
        return Path(snapshot_download(model, revision=commit, allow_patterns=files))
    except HFValidationError as error:
        raise BadSettings(f"{model} is neither a folder here nor the id of a hub model.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        wanted = f"{model} at {revision}" if revision else model
        raise BadSettings(f"{wanted} is not in the hub's cache and cannot be fetched: {error}") from error


def _has_any(folder: Path, patterns: Sequence[str]) -> bool:
    return any(any(folder.glob(pattern)) for pattern in patterns)
