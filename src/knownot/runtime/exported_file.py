"""The exported file of a model: itself, or that of a model folder, which is exported first."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from knownot.errors import ExportError, MissingExtraError


@contextmanager
def exported_file(
    model: str | Path, purpose: str, exporting: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """A file of `knownot export`, there until the block ends if it was made for it.

    Args:
        model: File of `knownot export`, or whatever `knownot.load` takes.
        purpose: What needs it, for the error of a missing package, such as "serving".
        exporting: Called before an export, which takes some seconds.

    Raises:
        KnownotError: If the model is missing or damaged, or not exported with the same answers.
    """
    path = Path(model)
    if path.is_file() or path.suffix == ".onnx":
        yield path
        return
    for package in ("torch", "onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "export", f"{purpose} a model folder")
    exporting()
    with tempfile.TemporaryDirectory(prefix="knownot-") as scratch:
        file = Path(scratch, "model.onnx")
        # In a process of its own: this one never loads torch, which takes more memory than the rest.
        # -P: with -m Python would take modules of the current folder, photos' or anyone's, first.
        command = [sys.executable, "-P", "-m", "knownot", "export", str(model)]
        command += ["-o", str(file), "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip().removeprefix("error: ")
            raise ExportError(reason or f"{model}: the export was killed; is memory short?")
        yield file
