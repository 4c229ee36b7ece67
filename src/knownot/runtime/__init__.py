"""Exported models, run with numpy, Pillow and ONNX Runtime; torch is not imported."""

from __future__ import annotations

from knownot.runtime.classifier import OnnxClassifier as OnnxClassifier

__all__ = ["OnnxClassifier"]
