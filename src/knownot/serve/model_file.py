"""The model to serve: an exported file, or a model folder that is exported first."""

from __future__ import annotations

from pathlib import Path

from knownot.runtime import OnnxClassifier, OnnxDetector, open_onnx
from knownot.runtime.exported_file import exported_file
from knownot.serve.logs import log


def load_model(model: str | Path) -> OnnxClassifier | OnnxDetector:
    """An exported file, or a model folder by way of the export and its comparison.

    Args:
        model: File of `knownot export`, or whatever `knownot.load` takes.

    Raises:
        KnownotError: If it is missing, damaged, or not exported with the same answers.
    """
    with exported_file(model, "serving", lambda: log("exporting", model=str(model))) as file:
        # One core for each batch, and as many batches at the same time: threads that share a batch
        # wait for each other, and longest where a core is busy with decoding.
        return open_onnx(file, threads=1)
