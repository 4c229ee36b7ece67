"""A summary of a model's calibration scores, to travel with the exported file."""

from __future__ import annotations

import numpy as np
import torch

from knownot.core.calibration import CalibrationTable
from knownot.models.unknown_aware import UnknownAwareModel
from knownot.runtime.calibration_summary import CalibrationSummary, Histogram

_BINS = 40


def summarise(model: UnknownAwareModel, groups: int) -> CalibrationSummary:
    """Numbers of rows and histograms of their scores.

    Args:
        model: A calibrated model.
        groups: Number of calibration groups that a row may be in.
    """
    calibrations = model.calibrations
    table = CalibrationTable(list(calibrations.values()), groups)
    alpha = torch.tensor(model.alpha, dtype=torch.float64)
    sizes = table.sizes(alpha).tolist() if table.by_group else [table.scores.shape[1]]
    histograms = {}
    for name, calibration in calibrations.items():
        scores = calibration.scores.numpy()
        counts, edges = np.histogram(scores[np.isfinite(scores)], bins=_BINS)
        histograms[name] = Histogram(edges.tolist(), counts.tolist())
    return CalibrationSummary(sizes, histograms)
