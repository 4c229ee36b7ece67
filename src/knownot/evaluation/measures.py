"""The numbers of an evaluation: how well scores separate two sets, how sure a share is."""

from __future__ import annotations

from torch import Tensor

from knownot.core import metrics


def separation(id_scores: Tensor, ood_scores: Tensor) -> dict[str, float]:
    """The five metrics of two score vectors, by name, as fractions in [0, 1]."""
    return {
        "fpr95": metrics.fpr95(id_scores, ood_scores),
        "fpr95_ood_positive": metrics.fpr95_ood_positive(id_scores, ood_scores),
        "auroc": metrics.auroc(id_scores, ood_scores),
        "aupr_in": metrics.aupr_in(id_scores, ood_scores),
        "aupr_out": metrics.aupr_out(id_scores, ood_scores),
    }


def binomial_interval(successes: int, trials: int, level: float = 0.95) -> list[float]:
    """Exact (Clopper-Pearson) interval of a share, as two fractions."""
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(level)
    return [float(interval.low), float(interval.high)]
