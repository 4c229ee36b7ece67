"""The rule that chooses a setting of VOS by ID photos alone, validation photos and altered ones.

Admissible is a setting whose mean validation accuracy is within one standard error of the best one's
(of the seeds; of the images where there is one seed). Of these the lowest FPR95 of energy wins,
validation photos against the same photos altered until they show no class; but the paper's setting
stays unless the gain is more than one standard error of the seeds' differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from statistics import mean
from typing import TypeVar

from scipy.stats import sem

Setting = TypeVar("Setting")
ACCURACY, ALTERED = "val_accuracy", "altered"


def choose(
    measured: Mapping[Setting, Mapping[str, list[float]]], paper: Setting, images: int
) -> Setting:
    """The setting that the rule takes.

    Args:
        measured: By setting, the paper's among them, `ACCURACY` and `ALTERED` of the same seeds, %.
        paper: The paper's setting.
        images: Validation images.
    """
    best = max((columns[ACCURACY] for columns in measured.values()), key=mean)
    chance = sqrt(mean(best) * (100 - mean(best)) / images)
    least = mean(best) - (sem(best) if len(best) > 1 else chance)
    admissible = [s for s, columns in measured.items() if mean(columns[ACCURACY]) >= least]
    chosen = min(admissible, key=lambda setting: mean(measured[setting][ALTERED]))
    pairs = zip(measured[paper][ALTERED], measured[chosen][ALTERED], strict=True)
    gains = [before - after for before, after in pairs]
    return chosen if mean(gains) > (sem(gains) if len(gains) > 1 else 0) else paper
