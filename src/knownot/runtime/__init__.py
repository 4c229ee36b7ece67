"""Exported models, run with numpy, Pillow and ONNX Runtime; torch is not imported."""

from __future__ import annotations

from pathlib import Path

from knownot.runtime.classifier import OnnxClassifier as OnnxClassifier
from knownot.runtime.detector import OnnxDetector as OnnxDetector
from knownot.runtime.exported import open_file
from knownot.runtime.metadata import DetectorMetadata

__all__ = ["OnnxClassifier", "OnnxDetector", "open_onnx"]


def open_onnx(path: str | Path, *, threads: int | None = None) -> OnnxClassifier | OnnxDetector:
    """Open a file of `knownot export`, whatever it holds.

    Args:
        path: File to load; nothing in it is executed but ONNX operators.
        threads: Threads of ONNX Runtime; all cores if not given.

    Raises:
        ModelFileError: If the file is missing, damaged, or not such a model.
        MissingExtraError: If ONNX Runtime is not installed.
    """
    file = open_file(path)
    kind = OnnxDetector if isinstance(file.metadata, DetectorMetadata) else OnnxClassifier
    return kind(file, threads=threads)
