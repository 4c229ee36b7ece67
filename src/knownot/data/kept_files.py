"""Files that are there whole or not at all, tensors in them, and what tells their content apart."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knownot.errors import DataError, KnownotError

if TYPE_CHECKING:
    from torch import Tensor

_SCRATCH = ".writing-"
_TORN = 3600.0  # seconds after which nobody is writing any more


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside its place, then move it there; folders above it are made.

    Args:
        path: The file; an old one is replaced.
        write: Called with the path to write to.

    Raises:
        DataError: If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder for it: two processes may write the same file, and `write` chooses the mode.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=_SCRATCH) as scratch:
            temporary = Path(scratch, "file")
            write(temporary)
            os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None


@contextmanager
def alone_in(folder: Path, busy: KnownotError) -> Iterator[None]:
    """Make a folder, and keep other processes out of this block with the same one.

    Raises:
        KnownotError: `busy`, if another process is inside.
        DataError: If the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / "lock", blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise busy from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        yield
    finally:
        lock.release()


def remove_torn(folder: Path) -> None:
    """Remove what a process that was killed an hour ago or earlier had half written there."""
    for scratch in folder.glob(f"{_SCRATCH}*"):
        try:
            if time.time() - scratch.stat().st_mtime > _TORN:
                shutil.rmtree(scratch)
        except OSError:  # another process removed it, or may alone
            continue


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, as `write_whole` does; names of files in it may be no text."""
    content = text.encode("utf-8", "surrogateescape")
    write_whole(path, lambda file: file.write_bytes(content))


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors as a safetensors file, as `write_whole` does."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        write_whole(path, lambda file: save_file(contiguous, file))
    except SafetensorError as error:  # of a full disk too
        raise DataError(f"{path}: cannot be written ({error})") from None


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """Named tensors of a file, or None if it is missing or damaged: then they are computed anew."""
    from safetensors.torch import load_file

    if not path.is_file():
        return None
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except Exception:  # safetensors raises its own type, and OSError
        return None
    return tensors


def content_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal; read again only when size or time have changed."""
    about = path.stat()
    return _content_digest(path, about.st_size, about.st_mtime_ns)


@lru_cache
def _content_digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
