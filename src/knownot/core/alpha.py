"""How many held-out scores an alpha takes."""

from __future__ import annotations

import math


def least_calibration(alpha: float) -> int:
    """The least number n of calibration scores among which a p-value can be below `alpha`.

    The smallest p-value is 1 / (n + 1).

    Example:
        >>> least_calibration(0.05), least_calibration(0.03)
        (20, 33)
    """
    return math.floor(1 / alpha + 1e-9)  # 1 / 0.01 may be 99.99...
