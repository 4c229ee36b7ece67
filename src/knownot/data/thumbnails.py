"""Small copies of training photos in a model folder, for people to see what a photo is like."""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from knownot.data.cores import usable_cores
from knownot.data.photo import open_photo, small_jpeg
from knownot.errors import DataError, ModelFileError

FOLDER = "thumbnails"
_LABELS = "labels.json"
_SIDE, _QUALITY = 96, 85
# Bounds of what a stranger's folder makes us read: a thumbnail has about 3 KB, a label some digits.
_MOST_BYTES, _MOST_LABEL_BYTES = 2**16, 2**24


def write_thumbnails(
    folder: Path,
    photos: Sequence[Path],
    labels: Sequence[int],
    advance: Callable[[int], None] = lambda done: None,
) -> None:
    """Write `000000.jpg`, ... at most 96 pixels wide and high, and their labels, to a new folder.

    They are encoded anew: neither places nor anything else that a file may carry is kept.

    Args:
        folder: Where to; its parent is there.
        photos: Photo files. One that cannot be read any more leaves its number out.
        labels: Index of the class of each.
        advance: Called with the number of photos done since the last call.

    Raises:
        OSError: If a file cannot be written.
    """
    folder.mkdir()

    def write(number: int) -> int | None:
        try:
            image = open_photo(photos[number], at_least=_SIDE)
        except DataError:
            return None
        (folder / _name(number)).write_bytes(small_jpeg(image, _SIDE, _QUALITY))
        return labels[number]

    kept = []
    with ThreadPoolExecutor(usable_cores()) as pool:
        for label in pool.map(write, range(len(photos))):
            kept.append(label)
            advance(1)
    (folder / _LABELS).write_text(json.dumps(kept))


class Thumbnails:
    """The folder that `write_thumbnails` wrote, which may be a stranger's.

    Only regular files of this very folder are read: no link is followed, and a folder that takes its
    place later is not looked at.

    Args:
        folder: Folder of thumbnails.
        classes: Number of classes.

    Raises:
        ModelFileError: If it is none, or its labels are damaged.

    Attributes:
        labels: Index of the class of each training photo; None where it has no thumbnail.
    """

    def __init__(self, folder: Path, classes: int) -> None:
        try:
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise ModelFileError(
                f"{folder}: is no folder of thumbnails ({error.strerror}); expected the folder {FOLDER} of a "
                "model trained with --keep-thumbnails"
            ) from None
        try:
            self.labels = _checked(json.loads(self._bytes(_LABELS, _MOST_LABEL_BYTES)), classes)
        except (OSError, ValueError, RecursionError):
            os.close(self._folder)
            raise ModelFileError(
                f"{folder / _LABELS}: is missing or damaged; expected the folder {FOLDER} of a model trained "
                "with --keep-thumbnails"
            ) from None

    def jpeg(self, number: int) -> bytes | None:
        """The thumbnail of a training photo as a JPEG file; None if there is none."""
        if not 0 <= number < len(self.labels):
            return None
        try:
            data = self._bytes(_name(number), _MOST_BYTES)
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:  # reads the header alone
                return data if max(image.size) <= _SIDE else None
        except (OSError, ValueError, Image.DecompressionBombError):
            return None

    def close(self) -> None:
        """Give the folder up."""
        os.close(self._folder)

    def _bytes(self, name: str, most: int) -> bytes:
        # A pipe would keep whoever opens it waiting for someone to write.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(name, flags, dir_fd=self._folder), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("no regular file")
            data = file.read(most + 1)
        if len(data) > most:
            raise ValueError("too large")
        return data


def _name(number: int) -> str:
    return f"{number:06d}.jpg"


def _checked(labels: object, classes: int) -> list[int | None]:
    if not isinstance(labels, list):
        raise ValueError("no list")
    for label in labels:
        if label is not None and not (type(label) is int and 0 <= label < classes):
            raise ValueError("no index of a class")
    return labels
