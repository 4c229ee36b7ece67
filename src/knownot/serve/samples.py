"""Photos of the owner that visitors of the page may try, held in memory."""

from __future__ import annotations

import logging
from pathlib import Path

from knownot.data.photo import is_photo_name, open_photo, small_jpeg
from knownot.errors import ConfigError, DataError
from knownot.serve.logs import log

MOST = 12
_SIDE, _QUALITY = 960, 88


def load_samples(folder: Path) -> list[bytes]:
    """The first photos of a folder by name, at most 12, scaled down and encoded anew as JPEG.

    Nothing of the file but its picture is kept: no name, no place, no camera.

    Args:
        folder: Folder of photos; those in folders below it do not count.

    Raises:
        ConfigError: If it is no folder, or none of its photos can be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder of samples; give one with --samples")
    samples: list[bytes] = []
    left_out = 0
    for path in sorted(path for path in folder.iterdir() if is_photo_name(path)):
        if len(samples) == MOST:
            left_out += 1
            continue
        try:
            samples.append(small_jpeg(open_photo(path, at_least=_SIDE), _SIDE, _QUALITY))
        except DataError as error:
            log("sample left out", level=logging.WARNING, reason=str(error))
    if not samples:
        raise ConfigError(f"{folder}: holds no photo that can be read; --samples needs one")
    if left_out:
        log("samples left out", photos=left_out, most=MOST)
    return samples
