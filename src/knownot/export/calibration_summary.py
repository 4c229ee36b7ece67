"""A summary of a model's calibration scores, to travel with the exported file."""

from __future__ import annotations

import numpy as np

from knownot.core.calibration import CalibrationTable
from knownot.models.classifier import UnknownAwareClassifier
from knownot.runtime.calibration_summary import CalibrationSummary, Histogram

_BINS = 40


def summarise(model: UnknownAwareClassifier) -> CalibrationSummary:
    """Numbers of photos and histograms of their scores."""
    calibrations = model.calibrations
    table = CalibrationTable(list(calibrations.values()), len(model.classes))
    sizes = table.sizes.tolist() if table.by_group else [table.scores.shape[1]]
    histograms = {}
    for name, calibration in calibrations.items():
        scores = calibration.scores.numpy()
        counts, edges = np.histogram(scores[np.isfinite(scores)], bins=_BINS)
        histograms[name] = Histogram(edges.tolist(), counts.tolist())
    return CalibrationSummary(sizes, histograms)
