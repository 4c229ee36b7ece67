"""One score from several: conformal p-values of the parts, combined by Fisher's sum of logarithms.

The parts live on different scales and fail on different inputs. Their p-values among held-out ID
data share a scale, and a sum of `-log p` is large when one part is very sure or several are
somewhat sure. The parts are not independent, so the sum has no textbook law: it is calibrated
again, on out-of-fold values, to give an honest p-value in the end.

Reference: Fisher, "Statistical Methods for Research Workers", 1932; cross-conformal predictors:
Vovk, "Cross-conformal predictors", 2015.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from knownot.core.fixed_dtype import FixedDtypeModule
from knownot.core.metrics import fpr95

_TAIL = 0.1
_KNOTS = 512
_LEAST_LEFT = 0.9  # of different scores, after they were rounded


class TailLogP(FixedDtypeModule):
    """Smooth `-log p` of a score among ID scores, resolved beyond the largest of them.

    Below the 90 % quantile it is the empirical law, interpolated; above, an exponential tail with
    the mean excess of the ID scores, so that far inputs keep their order instead of sharing the
    smallest p-value. Non-decreasing in the score.

    Args:
        knots: Number of quantile knots stored.
    """

    quantiles: Tensor
    minus_log_p: Tensor
    mean_excess: Tensor

    def __init__(self, knots: int = _KNOTS) -> None:
        super().__init__()
        self.register_fixed("quantiles", torch.zeros(knots))
        self.register_fixed("minus_log_p", torch.zeros(knots))
        self.register_fixed("mean_excess", torch.ones(()))

    @torch.no_grad()
    def fit(self, scores: Tensor) -> TailLogP:
        """Fit to held-out ID scores (n,).

        Raises:
            ValueError: If there is none, or one is NaN.
        """
        if not len(scores) or scores.isnan().any():
            raise ValueError(f"scores: expected one or more, and no NaN, got {len(scores)}")
        ordered = scores.detach().cpu().double().sort().values
        different = len(torch.unique(ordered))
        if len(torch.unique(ordered.float())) < _LEAST_LEFT * different:
            warnings.warn(
                "scores: lie so close together, for their size, that float32 takes different ones for the "
                "same; subtract their median first",
                stacklevel=2,
            )
        finite = ordered[ordered.isfinite()]
        if len(finite):  # what is infinite stands at the end of what is not: the law has a scale
            ordered = ordered.clamp(finite[0], finite[-1])
        knots = len(self.quantiles)
        upper = torch.linspace(1.0, _TAIL, knots, dtype=torch.float64)  # P(score >= quantile)
        self.quantiles.copy_(torch.quantile(ordered, 1 - upper))
        self.minus_log_p.copy_(-upper.log())
        start = torch.quantile(ordered, 1 - _TAIL)
        excess = ordered[ordered > start] - start
        # Ties at the top leave no excess; the spread, or else 1, then sets the scale.
        scale = excess.mean() if len(excess) else ordered.std(correction=0)
        self.mean_excess.copy_(scale if scale > 0 else torch.ones(()))
        return self

    def forward(self, scores: Tensor) -> Tensor:
        """`-log p` (N,), at least 0, of scores (N,)."""
        return tail_log_p([self], scores.unsqueeze(0)).squeeze(0)


def tail_log_p(laws: Sequence[TailLogP], scores: Tensor) -> Tensor:
    """`-log p` (P, N) of scores (P, N), each row by its own of the P laws, of equally many knots."""
    q, y, mean_excess = (
        torch.stack(values)
        for values in zip(
            *((law.quantiles, law.minus_log_p, law.mean_excess) for law in laws), strict=True
        )
    )
    scores = scores.to(q.dtype)
    if torch.compiler.is_compiling():  # a search cannot be exported to any runtime
        at_most = (scores.unsqueeze(-1) >= q.unsqueeze(1)).sum(-1)
    else:
        at_most = torch.searchsorted(q, scores.contiguous(), right=True)
    right = at_most.clamp(1, q.shape[1] - 1)
    left = right - 1
    q_left, y_left = q.gather(1, left), y.gather(1, left)
    gap = q.gather(1, right) - q_left
    share = ((scores - q_left) / torch.where(gap > 0, gap, 1.0)).clamp(0.0, 1.0)
    inside = y_left + share * (y.gather(1, right) - y_left)
    last = q[:, -1:]
    beyond = y[:, -1:] + (scores - last) / mean_excess.unsqueeze(1)
    return torch.where(scores > last, beyond, inside)


class CombinedScore(FixedDtypeModule):
    """Weighted Fisher sum `sum_i w_i * (-log p_i)` of several ood_scores.

    Args:
        parts: Names of the scores that take part.
        weights: Weight of each, at least 0; 1 if not given.

    Raises:
        ValueError: If there is no part, or weights are negative, all 0, or of another number.

    Example:
        >>> combined = CombinedScore(["knn", "vos"]).fit(
        ...     {"knn": torch.rand(200), "vos": torch.randn(200)}
        ... )
        >>> near, far = combined({"knn": torch.tensor([0.5, 9.0]), "vos": torch.tensor([0.0, 9.0])})
        >>> bool(far > near)
        True
    """

    weights: Tensor

    def __init__(self, parts: Sequence[str], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        chosen = [1.0] * len(parts) if weights is None else [float(w) for w in weights]
        usable = all(0 <= weight < math.inf for weight in chosen)
        if not parts or len(chosen) != len(parts) or not usable or not any(chosen):
            raise ValueError(
                f"weights: expected one number of at least 0 for each of {list(parts)}, not all 0; "
                f"got {chosen}"
            )
        self.parts = list(parts)
        self.register_fixed("weights", torch.tensor(chosen, dtype=torch.float32))
        self.log_p = nn.ModuleDict({part: TailLogP() for part in self.parts})

    def fit(self, scores: Mapping[str, Tensor]) -> CombinedScore:
        """Fit to the parts' scores (n,) of held-out ID data."""
        for part, log_p in self.log_p.items():
            log_p.fit(scores[part])  # type: ignore[operator]
        return self

    def forward(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Combined score (N,) of the parts' scores (N,)."""
        laws = [self.log_p[part] for part in self.parts]
        # All parts together: for a few rows the number of calls is what takes time.
        terms = tail_log_p(laws, torch.stack([scores[part] for part in self.parts]))  # type: ignore[arg-type]
        return (self.weights.unsqueeze(1) * terms).sum(0)  # no product that autocast would round

    @torch.no_grad()
    def fit_and_score(self, scores: Mapping[str, Tensor], folds: int = 10) -> Tensor:
        """Fit, and return the combined scores (n,) of the same data, each from a fit without it.

        These out-of-fold scores are what `ConformalCalibration` needs: in-fold ones would be too
        small in the tail, and new ID inputs would be called unknown too often.
        """
        n = len(scores[self.parts[0]])
        out = torch.empty(n)
        if n < 2 * folds:
            folds = max(2, n)
        for fold in range(min(folds, n)):
            held_out = torch.arange(n) % folds == fold
            if held_out.all():
                held_out = torch.zeros(n, dtype=torch.bool)
            self.fit({part: scores[part][~held_out] for part in self.parts})
            out[held_out] = self({part: scores[part][held_out] for part in self.parts})
        self.fit(scores)
        if n == 1:
            out = self(scores)
        return out


def choose_parts(
    known: Mapping[str, Tensor], outliers: Sequence[Mapping[str, Tensor]], parts: Sequence[str]
) -> list[str]:
    """Which parts to combine, judged by outliers that were made of in-distribution data.

    Of all combinations the one with the lowest FPR95, in the mean over the kinds of outliers; but
    all parts together, unless its gain over them is more than one standard error of the kinds'
    gains.

    Args:
        known: The parts' scores (n,) of held-out ID data.
        outliers: Their scores (m,) of each kind of outliers.
        parts: Names of the parts.

    Returns:
        The chosen parts, in their order; all of them where fewer than two kinds can judge.
    """
    subsets = [s for size in range(len(parts), 0, -1) for s in combinations(parts, size)]
    if len(outliers) < 2:
        return list(parts)
    together = CombinedScore(parts).fit(known)

    def minus_log_p(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {part: together.log_p[part](scores[part]).double() for part in parts}

    of_known, of_kinds = minus_log_p(known), [minus_log_p(scores) for scores in outliers]

    def measured(subset: Sequence[str], of: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([of[part] for part in subset]).sum(0)

    rates = torch.tensor(
        [
            [fpr95(measured(subset, of_known), measured(subset, kind)) for kind in of_kinds]
            for subset in subsets
        ]
    )
    best = int(rates.mean(1).argmin())
    gains = rates[0] - rates[best]
    error = gains.std() / len(outliers) ** 0.5
    return list(subsets[best] if gains.mean() > error else parts)
