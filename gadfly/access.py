"""What a client needs besides the address of an engine or an actor."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """An empty key sends none; an empty model is read from the engine. `ca_file` holds certificates in PEM."""

    key: str = field(default="", repr=False)
    model: str = ""
    ca_file: Path | None = None
