"""Photos on disk or in a store of objects: listed in a fixed order, read one by one."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

from PIL import Image

from knownot.data.file_globs import files_of
from knownot.data.image_folder import walk_photos
from knownot.data.photo import decode_photo, is_photo_name
from knownot.errors import DataError, ScoringError


def is_remote(photo: str) -> bool:
    """Whether it is a URI, which fsspec opens, and no path."""
    return "://" in photo


def as_text(name: str) -> str:
    """A name, or a sentence with one, as parquet can hold it: what is not UTF-8 as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def list_photos(source: str) -> list[str]:
    """Paths, or URIs, of the photos of a file, folder or glob (`*`, `?`, `[a-z]`, `**`), sorted.

    Folders and globs stand for what is a photo by its name; hidden files are left out.

    Raises:
        DataError: If there is none.
        ScoringError: If a store cannot be listed.
    """
    found = _list_store(source) if is_remote(source) else _list_disk(source)
    if not found and not is_remote(source) and os.path.isdir(source):
        raise DataError(f"{source}: holds no photo")
    if not found:
        raise DataError(f"{source}: no such file or folder, and no photo matches it")
    return found


def open_listed(photo: str, folder: str, at_least: int) -> Image.Image:
    """Decode a photo as `open_photo` does.

    Args:
        photo: Path or URI.
        folder: What a relative path is relative to: a worker has a folder of its own.
        at_least: Shortest side in pixels that is needed.

    Raises:
        DataError: If it is missing, may not be read, or is damaged.
        Exception: Of the store's own kind, if that does not answer.
    """
    try:
        if not is_remote(photo):
            return decode_photo(Path(folder, photo), photo, at_least)
        import fsspec

        with fsspec.open(photo) as file:
            content = io.BytesIO(file.read())
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"{photo}: no such file") from None
    except PermissionError as error:
        raise DataError(f"{photo}: may not be read ({error})") from None
    return decode_photo(content, photo, at_least)


def _list_disk(source: str) -> list[str]:
    if os.path.isfile(source):
        return [source]
    # Names, no Path objects: there may be millions.
    if os.path.isdir(source):
        return sorted(walk_photos(Path(source)))
    return sorted(filter(_is_photo, files_of(source)))


def _list_store(source: str) -> list[str]:
    from fsspec.core import url_to_fs

    try:
        files, path = url_to_fs(source)
        if files.isdir(path):
            base, found = path, files.find(path)
        elif files.isfile(path):
            return [files.unstrip_protocol(path)]
        else:
            base, found = re.split(r"[*?[]", path)[0], files.glob(path)
        # Hidden is what is hidden below the place that was asked for.
        shown = (name for name in found if "/." not in "/" + name.removeprefix(base))
        return sorted(map(files.unstrip_protocol, filter(_is_photo, shown)))
    except Exception as error:  # each store's own; fsspec names the package that is missing
        raise ScoringError(f"{source}: cannot be listed ({error})") from None


def _is_photo(name: str) -> bool:
    return is_photo_name(Path(name))
