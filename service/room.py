"""Room on the disk: checked before an engine works for an answer that could not be stored."""

import shutil
import time
from pathlib import Path

from gadfly.errors import NoRoom

_VALID_S = 1.0


class Room:
    """The free space under a folder. It is read from the file system once a second at most; nothing is written."""

    def __init__(self, folder: Path, *, min_free_bytes: int) -> None:
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._last: tuple[float, int] | None = None

    @property
    def free_bytes(self) -> int:
        if self._last is None or time.monotonic() - self._last[0] > _VALID_S:
            self._last = (time.monotonic(), shutil.disk_usage(self._folder).free)
        return self._last[1]

    def require(self) -> None:
        """Raises:
        NoRoom: less space is free than the settings require.
        """
        free = self.free_bytes
        if free < self._min_free_bytes:
            raise NoRoom(
                f"the disk under {self._folder} has {free // 2**20} MiB free, and GADFLY_MIN_FREE_BYTES asks for "
                f"{self._min_free_bytes // 2**20}: free some space",
                retry_after_s=30.0,
            )

    async def check(self) -> str:
        """One sentence for the readiness. Raises as `require`, without the folder's name, because it needs no key."""
        try:
            self.require()
        except NoRoom as error:
            raise error.again(f"{self.free_bytes // 2**20} MiB are free, which is too little") from None
        return f"{self.free_bytes // 2**20} MiB are free"
