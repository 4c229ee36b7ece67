"""How far FPR95 would scatter with other images from the same sources."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor


class Bootstrap:
    """FPR95 of sets that are drawn anew, with replacement, from the images at hand.

    The same draws serve every method and every seed, so that differences between methods and means
    over seeds can be taken draw by draw.

    Args:
        replicates: Number of draws B.
        ood_positive: Whether OOD is the positive class.
    """

    def __init__(self, replicates: int, ood_positive: bool) -> None:
        self.replicates, self.ood_positive = replicates, ood_positive

    def fpr95(self, id_scores: Tensor, ood_scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """FPR95 (B,), float64, of every OOD set.

        Args:
            id_scores: ID scores (N,), larger for more out-of-distribution.
            ood_scores: OOD scores (M,) by name of the set.
        """
        known = id_scores[self._draws(len(id_scores), "the ID set")]
        threshold = None if self.ood_positive else _reaching(known)
        rates = {}
        for name, scores in ood_scores.items():
            ood = scores[self._draws(len(scores), name)]
            if threshold is None:
                rejected = known >= -_reaching(-ood)[:, None]
                rates[name] = rejected.double().mean(1)
            else:
                rates[name] = (ood <= threshold[:, None]).double().mean(1)
        return rates

    def _draws(self, size: int, name: str) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.randint(size, (self.replicates, size), generator=generator)


def interval(values: Tensor, level: float = 0.95) -> tuple[float, float]:
    """The central interval that holds a share `level` of values (B,)."""
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=values.dtype)
    low, high = torch.quantile(values, ends).tolist()
    return low, high


def _reaching(rows: Tensor) -> Tensor:
    """The smallest value of each row (B, N) such that at least 95 % are no larger (B,)."""
    rank = max(1, math.ceil(0.95 * rows.shape[1] - 1e-9))  # as in `core.metrics`
    return rows.kthvalue(rank, dim=1).values
