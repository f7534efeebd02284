"""The base model on the trainer's side: its location, and the hash that identifies it."""

import hashlib
from pathlib import Path

from gadfly.adapters import file_sha256
from gadfly.errors import BadSettings
from gadfly.settings import DEFAULT_MODEL, Settings


def model_location(settings: Settings) -> str:
    """The folder for transformers to load, or a hub id whose files vLLM has put into the hub's cache.

    Raises:
        BadSettings: the default model does not exist yet; the engine makes it when it starts.
    """
    if settings.model != DEFAULT_MODEL:
        folder = Path(settings.model).expanduser()
        return str(folder.resolve()) if folder.is_dir() else settings.model
    folder = settings.default_model
    if not (folder / "config.json").is_file():
        raise BadSettings(f"{folder} does not exist yet: the engine makes it when it starts, and the trainer shares it")
    return str(folder)


def base_sha256(location: str) -> str:
    """The hash that identifies the base weights: over configuration and weight files, in the order of their names."""
    folder = Path(location)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download  # noqa: PLC0415  # most deployments have a folder

        folder = Path(snapshot_download(location, local_files_only=True, allow_patterns=["*.json", "*.safetensors"]))
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
