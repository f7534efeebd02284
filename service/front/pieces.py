"""Streamed text in the form of the stored one."""


class Trimmed:
    """Pieces of a text without the white space at its beginning and end, as `str.strip` removes it."""

    def __init__(self) -> None:
        self._held = ""  # white space that may be the end
        self._has_begun = False

    def next(self, piece: str) -> str:
        """What can be sent after this piece arrived."""
        text = self._held + piece if self._has_begun else piece.lstrip()
        kept = text.rstrip()
        self._held = text[len(kept) :]
        self._has_begun = self._has_begun or bool(kept)
        return kept
