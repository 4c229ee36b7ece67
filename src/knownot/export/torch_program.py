"""A traced program as a file of `torch.export`."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from knownot.runtime.classifier import ExportedClassifier
from knownot.runtime.metadata import ClassifierMetadata, ExportMetadata

# The description's name among the file's extra files.
DESCRIPTION = "knownot.json"


def program_writer(
    program: ExportedProgram, metadata: ExportMetadata
) -> Callable[[ExportMetadata], bytes]:
    """A function from the final metadata to the bytes of the file."""

    def write(final: ExportMetadata) -> bytes:
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={DESCRIPTION: final.to_json()})
        return buffer.getvalue()

    return write


def load_program(path: Path) -> ExportedClassifier:
    """Load a file of your own; `torch.export` may unpickle what a stranger's file holds.

    Raises:
        ModelFileError: If its description is not one of ours.
    """
    extra = {DESCRIPTION: ""}
    module = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra).module()
    metadata = ExportMetadata.from_json(extra[DESCRIPTION])
    assert isinstance(metadata, ClassifierMetadata)

    def run(feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        with torch.no_grad():
            inputs = (torch.from_numpy(feeds[name]) for name in metadata.inputs)
            return [out.numpy() for out in module(*inputs)]

    return ExportedClassifier(metadata, run)
