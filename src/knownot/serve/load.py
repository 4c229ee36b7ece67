"""How much is in progress: photos accepted, and bytes of uploads in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from knownot.serve.limits import Limits
from knownot.serve.refused import RefusedError

_SOON = {"Retry-After": "1"}


class Load:
    """Counts what is in progress, and refuses what would be too much. For one event loop.

    Attributes:
        photos: Photos accepted and not answered yet.
        upload_bytes: Bytes of uploads in memory.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.photos = 0
        self.upload_bytes = 0

    @property
    def full(self) -> bool:
        """Whether not one more photo is accepted."""
        return self.photos >= self._limits.queue

    def refuse_if_full(self) -> None:
        """Raise `RefusedError` before an upload that would be in vain is read."""
        if self.full:
            raise self._too_many()

    @contextmanager
    def accepted(self, photos: int) -> Iterator[None]:
        """Count photos until they are answered, or raise `RefusedError`."""
        if self.photos + photos > self._limits.queue:
            raise self._too_many()
        self.photos += photos
        try:
            yield
        finally:
            self.photos -= photos

    @contextmanager
    def uploading(self) -> Iterator[Callable[[int], None]]:
        """A function that counts the bytes of one upload; forgotten at the end.

        It raises `RefusedError` if this upload is too large, or all of them are.
        """
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            if taken + count > self._limits.upload_bytes:
                raise RefusedError(
                    413,
                    "upload_too_large",
                    f"the request is larger than {self._limits.upload_bytes / 2**20:g} MiB; send "
                    "fewer or smaller photos",
                )
            if self.upload_bytes + count > self._limits.uploads_bytes:
                raise RefusedError(503, "busy", "too many uploads at once; try again", _SOON)
            taken += count
            self.upload_bytes += count

        try:
            yield take
        finally:
            self.upload_bytes -= taken

    def _too_many(self) -> RefusedError:
        return RefusedError(
            429, "queue_full", f"{self.photos} photos are waiting; try again in a second", _SOON
        )
