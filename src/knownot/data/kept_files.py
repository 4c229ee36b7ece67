"""Files that are there whole or not at all, and tensors in them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knownot.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


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
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as scratch:
            temporary = Path(scratch, "file")
            write(temporary)
            os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors as a safetensors file, as `write_whole` does."""
    from safetensors.torch import save_file

    write_whole(path, lambda file: save_file({k: t.contiguous() for k, t in tensors.items()}, file))


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
