"""An alarm for photos that are no longer like those of the calibration.

Of new photos like the calibration photos a share of about alpha is called unknown. How far from it
chance alone goes is known exactly: the threshold is an order statistic of n calibration scores, so
that the true share follows Beta(l, n + 1 - l), with l the number of calibration photos above which
p < alpha, and the number among N photos the beta-binomial law of it.

Reference: Vovk, "Conditional validity of inductive conformal predictors", 2012.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

# The window moves on by every photo and is judged every time: a narrow interval would be left by
# chance in a day. To end, the rate must come well inside, or the alarm would flicker at the border.
_BEGIN, _END = 0.9999, 0.95


class DriftAlarm:
    """Watches the unknown rate of the last photos.

    Args:
        window: Number N of photos.
        alpha: Share of known photos that the model may call unknown.
        sizes: Numbers of calibration photos, of each class if p-values are taken by class; empty
            if they are not known.

    Attributes:
        interval: Lowest and highest number of unknown ones among N that is no alarm.
        active: Whether the alarm is on.
    """

    def __init__(self, window: int, alpha: float, sizes: Sequence[int]) -> None:
        self.window = window
        self.interval = promised(window, alpha, sizes, _BEGIN)
        self._calm = promised(window, alpha, sizes, _END)
        self._last: deque[bool] = deque(maxlen=window)
        self._unknown = 0
        self.active = False

    @property
    def rate(self) -> float:
        """Share of unknown ones among the last photos, NaN before the first."""
        return self._unknown / len(self._last) if self._last else math.nan

    def observe(self, is_unknown: bool) -> bool:
        """Take in an answer; returns whether the alarm began or ended with it.

        Nothing is judged before N photos have come.
        """
        if len(self._last) == self.window:
            self._unknown -= self._last[0]
        self._last.append(is_unknown)
        self._unknown += is_unknown
        if len(self._last) < self.window:
            return False
        low, high = self._calm if self.active else self.interval
        before, self.active = self.active, not low <= self._unknown <= high
        return before != self.active


def promised(window: int, alpha: float, sizes: Sequence[int], confidence: float) -> tuple[int, int]:
    """Lowest and highest number of unknown ones among `window` known photos.

    Where calibration is by class, of whatever classes the photos are.
    """
    from scipy.stats import betabinom, binom

    tail = (1 - confidence) / 2
    laws = [binom(window, alpha)]
    if sizes:
        laws = []
        for n in sizes:
            # As in `knownot.core.calibration`: 1 / 20 is not below 0.05 for its last bit.
            above = math.ceil(alpha * (n + 1) - 1e-9) - 1
            laws.append(betabinom(window, above, n + 1 - above) if above else binom(window, 0.0))
    return (
        int(min(law.ppf(tail) for law in laws)),
        int(max(law.ppf(1 - tail) for law in laws)),
    )
