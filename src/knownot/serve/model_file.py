"""The model to serve: an exported file, or a model folder that is exported first."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from knownot.errors import ExportError, MissingExtraError
from knownot.runtime import OnnxClassifier
from knownot.serve.logs import log


def load_model(model: str | Path) -> OnnxClassifier:
    """An exported file, or a model folder by way of the export and its comparison.

    Args:
        model: File of `knownot export`, or whatever `knownot.load` takes.

    Raises:
        KnownotError: If it is missing, damaged, or not exported with the same answers.
    """
    path = Path(model)
    if path.is_file() or path.suffix == ".onnx":
        return _one_thread(path)
    for package in ("torch", "onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "export", "serving a model folder")
    log("exporting", model=str(model))
    with tempfile.TemporaryDirectory(prefix="knownot-") as scratch:
        file = Path(scratch, "model.onnx")
        # In a process of its own: this one never loads torch, which takes more memory than the rest.
        command = [sys.executable, "-m", "knownot", "export", str(model), "-o", str(file), "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip().removeprefix("error: ")
            raise ExportError(reason or f"{model}: the export was killed; is memory short?")
        return _one_thread(file)


def _one_thread(file: Path) -> OnnxClassifier:
    # One core for each batch, and as many batches at the same time: threads that share a batch wait
    # for each other, and longest where a core is busy with decoding.
    return OnnxClassifier(file, threads=1)
