"""How two score vectors become numbers: the paper's way and OpenOOD's.

Both use the metrics of `core.metrics`; they differ in which class is positive, in how many OOD
images count, and in the area under the precision-recall curve.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from knownot.core import metrics
from knownot.errors import ConfigError

Metric = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Protocol:
    """A way of measuring.

    Attributes:
        about: What it does, for reports.
        metrics: Functions of ID scores (N,) and OOD scores (M,), by name; the first one leads.
        ood_positive: Whether the leading FPR95 takes OOD as the positive class.
        share: At most this share of the number of ID images is taken of an OOD set; all if None.
        repeats: Random choices of so many, averaged.
    """

    about: str
    metrics: dict[str, Metric]
    ood_positive: bool
    share: float | None = None
    repeats: int = 1

    @property
    def leading(self) -> str:
        """The metric that tables are sorted by: an FPR95, lower is better."""
        return next(iter(self.metrics))

    def measure(self, id_scores: Tensor, ood_scores: Tensor, name: str = "") -> dict[str, float]:
        """All metrics of ID scores (N,) and OOD scores (M,), as fractions.

        Args:
            id_scores: ID test scores, larger for more out-of-distribution.
            ood_scores: Those of an OOD set.
            name: Name of the set, from which the random choices follow.

        Raises:
            ValueError: If scores are missing or NaN.
        """
        most = len(ood_scores) if self.share is None else int(self.share * len(id_scores))
        if most >= len(ood_scores):
            chosen = [ood_scores]
        else:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            orders = (
                torch.randperm(len(ood_scores), generator=generator) for _ in range(self.repeats)
            )
            chosen = [ood_scores[order[: max(1, most)]] for order in orders]
        return {
            key: sum(metric(id_scores, ood) for ood in chosen) / len(chosen)
            for key, metric in self.metrics.items()
        }


PROTOCOLS: dict[str, Protocol] = {
    "paper": Protocol(
        "ID positive; of each OOD set a fifth of the number of ID images, mean over 10 choices",
        {
            "fpr95": metrics.fpr95,
            "auroc": metrics.auroc,
            # Average precision, as scikit-learn computes it.
            "aupr_in": partial(metrics.aupr_in, rule="step"),
        },
        ood_positive=False,
        share=0.2,
        repeats=10,
    ),
    "openood": Protocol(
        "OOD positive; all OOD images; near and far apart",
        {
            "fpr95_ood_positive": metrics.fpr95_ood_positive,
            "auroc": metrics.auroc,
            "aupr_in": metrics.aupr_in,
            "aupr_out": metrics.aupr_out,
        },
        ood_positive=True,
    ),
}


def file_of(name: str, protocol: str) -> str:
    """A file's name, told apart by protocol where that is not the paper's: "report-openood.md"."""
    stem, dot, ending = name.rpartition(".")
    return name if protocol == "paper" else f"{stem}-{protocol}{dot}{ending}"


def get_protocol(name: str) -> Protocol:
    """A protocol by name.

    Raises:
        ConfigError: If there is none of this name.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol: expected {' or '.join(PROTOCOLS)}, got {name!r}")
    return PROTOCOLS[name]
