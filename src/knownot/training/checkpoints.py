"""Checkpoints that are there whole or not at all, whatever happens while one is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from knownot.data.kept_files import write_whole
from knownot.errors import DataError


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoint files, each written beside its place and moved there at the end.

    Lightning writes them to the system's temporary folder; from there to another file system a move is
    a copy over the old file, which a full disk or a kill leaves torn.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            DataError: If it cannot be written; the one of before is still there.
        """

        def write(file: Path) -> None:
            try:
                with file.open("wb") as out:
                    torch.save(checkpoint, out)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # torch hides what the file said
                    raise error.__context__ from None
                raise

        try:
            write_whole(Path(path), write)
        except DataError as error:
            raise DataError(
                f"{error}; the epoch before is kept: make room, then go on with --resume"
            ) from None
