"""What an exported file tells about the scores of its calibration photos, for pages and alarms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Histogram:
    """Counts between edges.

    Attributes:
        edges: B + 1 finite numbers, ascending; the last bin holds its upper edge.
        counts: B numbers of photos, or of a detector boxes, at least 0.
    """

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class CalibrationSummary:
    """Scores of the held-out known photos, or of a detector boxes, that p-values are taken among.

    Attributes:
        sizes: How many of them a p-value is taken among: one number, or where calibration is by
            class one for each class (of a detector: small, medium and large boxes of each class).
        histograms: Their scores, by name of the score.
    """

    sizes: list[int]
    histograms: dict[str, Histogram]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CalibrationSummary:
        """From plain data, as `dataclasses.asdict` gives it.

        Raises:
            TypeError, KeyError, ValueError, AttributeError: If it is anything else.
        """
        found = {name: Histogram(**item) for name, item in data["histograms"].items()}
        summary = cls(list(data["sizes"]), found)
        for size in summary.sizes:
            if not isinstance(size, int) or size < 1:
                raise ValueError("sizes")
        for histogram in found.values():
            edges, counts = histogram.edges, histogram.counts
            if (
                len(edges) != len(counts) + 1
                or not all(math.isfinite(edge) for edge in edges)
                or not all(low < high for low, high in pairwise(edges))
                or not all(isinstance(count, int) and count >= 0 for count in counts)
            ):
                raise ValueError("histograms")
        return summary
