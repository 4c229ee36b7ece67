"""knownot: image classifiers and object detectors that know when they don't know.

Public names are loaded on first use, so that `import knownot` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from knownot.core.calibration import ConformalCalibration as ConformalCalibration
    from knownot.core.virtual_outlier_loss import VirtualOutlierLoss as VirtualOutlierLoss
    from knownot.models.classifier import UnknownAwareClassifier as UnknownAwareClassifier
    from knownot.models.detector import UnknownAwareDetector as UnknownAwareDetector
    from knownot.models.model_folder import load as load

_HOMES = {
    "ConformalCalibration": "knownot.core.calibration",
    "UnknownAwareClassifier": "knownot.models.classifier",
    "UnknownAwareDetector": "knownot.models.detector",
    "VirtualOutlierLoss": "knownot.core.virtual_outlier_loss",
    "load": "knownot.models.model_folder",
}

__all__ = [
    "ConformalCalibration",
    "UnknownAwareClassifier",
    "UnknownAwareDetector",
    "VirtualOutlierLoss",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'knownot' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
