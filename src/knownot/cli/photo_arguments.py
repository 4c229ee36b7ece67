"""The photos and videos that a command line names."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from knownot.errors import DataError


def is_video(path: Path) -> bool:
    """Whether the name is that of a video."""
    from knownot.data.video import is_video_name

    return is_video_name(path)


def expand(patterns: Iterable[str]) -> list[Path]:
    """Photo and video files of files, folders and globs, in order; folders stand for their photos.

    Raises:
        DataError: If one of them names nothing.
    """
    from knownot.data.file_globs import files_of
    from knownot.data.photo import is_photo_name

    paths: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if os.path.isdir(path):  # Path's own methods raise for names that are too long
            paths += _photos_in(path)
        elif os.path.exists(path):
            paths.append(path)
        else:
            # '*' is for photos; videos, which take long, are meant by '*.mp4' alone.
            wanted = is_video if is_video(path) else is_photo_name
            matches = sorted(filter(wanted, map(Path, files_of(pattern))))
            if not matches:
                raise DataError(
                    f"{pattern}: no such file or folder, and no photo or video matches it"
                )
            paths += matches
    return paths


def _photos_in(folder: Path) -> list[Path]:
    from knownot.data.image_folder import list_photos

    try:
        return list_photos(folder)
    except DataError as error:
        video = next(filter(is_video, sorted(folder.iterdir())), None)
        if video is None:
            raise
        pattern = folder / f"*{video.suffix}"
        raise DataError(f"{error}; for its videos write '{pattern}'") from None
