"""The photos that a command line names."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from knownot.errors import DataError


def expand(patterns: Iterable[str]) -> list[Path]:
    """Photo files of files, folders and globs, in order.

    Raises:
        DataError: If one of them names nothing.
    """
    from knownot.data.photo import is_photo_name

    paths: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            from knownot.data.image_folder import list_photos

            paths += list_photos(path)
        elif path.exists():
            paths.append(path)
        else:
            found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
            matches = [p for p in found if p.is_file() and is_photo_name(p)]
            if not matches:
                raise DataError(f"{pattern}: no such file or folder, and no photo matches it")
            paths += matches
    return paths
