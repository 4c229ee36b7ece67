"""Photos that a job names, local or in a store of objects: listed in a fixed order, read one by one.

Listing goes folder by folder, so that memory is bounded by the largest folder. Stores that Arrow
knows (`s3://`, `gs://`, `hdfs://`, `abfs://`) are read by it, all others by fsspec's packages.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from knownot.data.photo import decode_photo, is_photo_name
from knownot.errors import DataError, ScoringError

_REMOTE = "://"
_WILD = frozenset("*?[")
# Seconds before another try, of a store that does not answer; files on disk are not tried again.
_WAITS = (0.5, 2.0, 8.0)


def list_photos(sources: Iterable[str]) -> Iterator[str]:
    """Paths and URIs of the photos of files, folders and globs, in the order of `knownot predict`.

    Args:
        sources: Files, folders, which stand for the photos below them, or globs with `*`, `?`,
            `[a-z]` and `**`. Hidden files are left out, and of folders and globs what is no photo
            by its name.

    Raises:
        DataError: If one of them names no photo.
        ScoringError: If a store cannot be listed.
    """
    for source in sources:
        found = False
        for photo in _photos_of(source):
            found = True
            yield photo
        if not found:
            raise DataError(f"{source}: no such file or folder, and no photo matches it")


def listed_in(file: Path) -> Iterator[str]:
    """Paths and URIs that a text file lists, one a line; empty lines are left out.

    Raises:
        DataError: If the file cannot be read or lists nothing.
    """
    found = False
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                if photo := line.rstrip("\r\n"):
                    found = True
                    yield photo
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DataError(f"{file}: cannot be read ({reason})") from None
    if not found:
        raise DataError(f"{file}: lists no photo")


def is_remote(photo: str) -> bool:
    """Whether it is a URI."""
    return _REMOTE in photo


def open_listed(photo: str, folder: str, at_least: int) -> Image.Image:
    """Decode a photo as `open_photo` does.

    Args:
        photo: Path or URI.
        folder: What a relative path is relative to: a worker has a folder of its own.
        at_least: Shortest side in pixels that is needed.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        if is_remote(photo):
            return decode_photo(io.BytesIO(_fetch(photo)), photo, at_least)
        return decode_photo(Path(folder, photo), photo, at_least)
    except FileNotFoundError:
        raise DataError(f"{photo}: no such file") from None


def _fetch(uri: str) -> bytes:
    for wait in (*_WAITS, None):
        try:
            files, path, _ = _located(uri)
            with files.open_input_stream(path) as stream:
                content: bytes = stream.read()
                return content
        except FileNotFoundError:
            raise
        except (OSError, ScoringError) as error:
            if wait is None:
                raise DataError(f"{uri}: cannot be read ({_first_line(error)})") from None
            time.sleep(wait)
    raise AssertionError("unreachable")


def _photos_of(source: str) -> Iterator[str]:
    import pyarrow.fs

    files, path, shown = _located(source)
    try:
        kind = files.get_file_info(path).type
        if kind == pyarrow.fs.FileType.File:
            yield source if is_remote(source) else shown(path)
        elif kind == pyarrow.fs.FileType.Directory:
            yield from map(shown, _walk(files, path, ("**", "*")))
        elif _WILD & set(path):
            parts = PurePosixPath(path).parts
            fixed = next(i for i, part in enumerate(parts) if _WILD & set(part))
            base = str(PurePosixPath(*parts[:fixed]))
            yield from map(shown, _walk(files, base, parts[fixed:]))
    except (OSError, UnicodeError) as error:
        raise ScoringError(f"{source}: cannot be listed ({_first_line(error)})") from None


def _walk(
    files: Any, folder: str, patterns: tuple[str, ...], below: tuple[str, ...] = ()
) -> Iterator[str]:
    """Photos below a folder whose path from there matches, in the order of their paths."""
    from pyarrow.fs import FileSelector, FileType

    inside = files.get_file_info(FileSelector(folder, allow_not_found=True))
    for info in sorted(inside, key=lambda info: info.base_name):
        names = (*below, info.base_name)
        if info.base_name.startswith("."):
            continue
        if info.type == FileType.Directory:
            if _matches(names, patterns, whole=False):
                yield from _walk(files, info.path, patterns, names)
        elif is_photo_name(Path(info.base_name)) and _matches(names, patterns):
            yield info.path


def _matches(names: tuple[str, ...], patterns: tuple[str, ...], whole: bool = True) -> bool:
    """Whether a path matches a glob, or if not `whole`, may be the beginning of one that does."""
    if not names:
        return not whole or all(pattern == "**" for pattern in patterns)
    if not patterns:
        return False
    first, rest = patterns[0], patterns[1:]
    if first == "**":
        return _matches(names, rest, whole) or _matches(names[1:], patterns, whole)
    return fnmatchcase(names[0], first) and _matches(names[1:], rest, whole)


def _located(source: str) -> tuple[Any, str, Any]:
    """File system, path in it, and what makes such a path one that a user knows."""
    if not is_remote(source):
        import pyarrow.fs

        return pyarrow.fs.LocalFileSystem(), str(Path(source)), lambda path: str(Path(path))
    scheme, _, rest = source.partition(_REMOTE)
    authority, _, inside = rest.partition("/")
    files, root = _file_system(scheme, authority)
    start = f"{scheme}{_REMOTE}{authority}/"

    def shown(path: str) -> str:
        return start + path.removeprefix(root).lstrip("/")

    return files, f"{root.rstrip('/')}/{inside}".rstrip("/"), shown


@lru_cache(maxsize=32)
def _file_system(scheme: str, authority: str) -> tuple[Any, str]:
    """File system of a URI's beginning, and the path in it that this beginning stands for."""
    import pyarrow
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    uri = f"{scheme}{_REMOTE}{authority}/"
    try:
        found: tuple[Any, str] = FileSystem.from_uri(uri)
        return found
    except pyarrow.ArrowInvalid:
        pass  # a scheme that Arrow does not know
    except OSError as error:
        raise ScoringError(f"{uri}: cannot be reached ({_first_line(error)})") from None
    try:
        import fsspec

        files, root = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError, OSError) as error:
        raise DataError(f"{uri}: cannot be opened ({_first_line(error)})") from None
    return PyFileSystem(FSSpecHandler(files)), root


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
