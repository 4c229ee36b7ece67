"""The rule that chooses a setting of VOS by ID photos alone, validation photos and altered ones.

Admissible is a setting whose mean validation accuracy is within one standard error of the best one's.
Of these the lowest FPR95 of energy wins, validation photos against the same photos altered until they
show no class; but the paper's setting stays unless the gain is more than one standard error. Standard
errors are those of the seeds; of a single seed those of a share of the photos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import mean
from typing import TypeVar

from scipy.stats import sem

Setting = TypeVar("Setting")
ACCURACY, ALTERED = "val_accuracy", "altered"


def choose(
    measured: Mapping[Setting, Mapping[str, Sequence[float]]],
    paper: Setting,
    photos: int,
    altered_photos: int,
) -> Setting:
    """The setting that the rule takes.

    Args:
        measured: By setting, the paper's among them, `ACCURACY` and `ALTERED` (FPR95) of the same
            seeds, shares in [0, 1].
        paper: The paper's setting.
        photos: Validation photos.
        altered_photos: Those of them that were altered; all alterations of a photo count once.
    """
    best = max((columns[ACCURACY] for columns in measured.values()), key=mean)
    least = mean(best) - _error(best, mean(best), photos)
    admissible = [s for s, columns in measured.items() if mean(columns[ACCURACY]) >= least]
    chosen = min(admissible, key=lambda setting: mean(measured[setting][ALTERED]))
    before, after = measured[paper][ALTERED], measured[chosen][ALTERED]
    gains = [b - a for b, a in zip(before, after, strict=True)]
    return chosen if mean(gains) > _error(gains, mean(before), altered_photos) else paper


def _error(values: Sequence[float], share: float, photos: int) -> float:
    """Standard error of the mean of some seeds' values, or of a share of so many photos."""
    return float(sem(values)) if len(values) > 1 else sqrt(share * (1 - share) / photos)
