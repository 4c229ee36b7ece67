"""The model to serve: an exported file, or a model folder that is exported first."""

from __future__ import annotations

import importlib.util
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from knownot.errors import ExportError, MissingExtraError
from knownot.runtime import OnnxClassifier


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
    with tempfile.TemporaryDirectory(prefix="knownot-") as scratch:
        file = Path(scratch, "model.onnx")
        # In a process of its own: this one never loads torch, which takes more memory than the rest.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                pool.submit(_export, str(model), file).result()
            except BrokenProcessPool:
                raise ExportError(f"{model}: the export was stopped; is memory short?") from None
        return _one_thread(file)


def _one_thread(file: Path) -> OnnxClassifier:
    # One core for each batch, and as many batches at the same time: threads that share a batch wait
    # for each other, and longest where a core is busy with decoding.
    return OnnxClassifier(file, threads=1)


def _export(model: str, file: Path) -> None:
    from knownot.export.export import export_model
    from knownot.models.model_folder import load

    export_model(load(model), file)
