"""Split-conformal p-values: from ID data alone, a threshold that keeps its promise.

Reference: Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005; classwise
(Mondrian) form: the same book, section 4.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from knownot.core.alpha import least_calibration


class ConformalCalibration:
    """p-values of an `ood_score` among the scores of held-out in-distribution data.

    `p(x) = (1 + #{calibration scores >= s(x)}) / (n + 1)`. An input is called unknown when
    `p < alpha`: whatever the model, at most `alpha` of new ID inputs are, in expectation.

    Args:
        scores: Scores of held-out ID data (n,), larger meaning more out-of-distribution.
        groups: Group of each score (n,), integers from 0, for one calibration per group; use the
            *predicted* class, which is known for a new input too. None pools all scores.
        min_group: A group with fewer scores than this uses the pooled ones, and so does one with too
            few for the alpha that is asked for: a p-value below it needs more than `1 / alpha - 1`.

    Raises:
        ValueError: If `scores` is empty, holds NaN, or shapes differ.

    Example:
        >>> calibration = ConformalCalibration(torch.arange(99.0))
        >>> calibration.p_value(torch.tensor([98.0, 98.5, -1.0])).tolist()
        [0.02, 0.01, 1.0]
    """

    def __init__(self, scores: Tensor, groups: Tensor | None = None, min_group: int = 20) -> None:
        scores = torch.as_tensor(scores).detach().cpu().double()  # MPS has no float64
        if scores.ndim != 1 or len(scores) == 0:
            raise ValueError(
                f"scores: expected a non-empty vector of scores, got shape {tuple(scores.shape)}"
            )
        if scores.isnan().any():
            raise ValueError("scores: calibration scores hold NaN")
        if groups is not None:
            groups = torch.as_tensor(groups).detach().long().cpu()
            if groups.shape != scores.shape or (groups < 0).any():
                raise ValueError("groups: expected one integer of at least 0 for each score")
        self.min_group = min_group
        self.scores, order = scores.sort()
        self.groups = None
        if groups is not None:
            self.groups = groups[order]
            self._keys = (self.groups * len(scores) + torch.arange(len(scores))).sort().values

    def __len__(self) -> int:
        return len(self.scores)

    def _sorted_scores(self, group: int | None, alpha: float) -> Tensor:
        if group is None or self.groups is None:
            return self.scores
        own = self.scores[self.groups == group]
        return own if len(own) >= self._least(alpha) else self.scores

    def _least(self, alpha: float | None) -> int:
        return self.min_group if alpha is None else max(self.min_group, least_calibration(alpha))

    def p_value(
        self, scores: Tensor, groups: Tensor | None = None, alpha: float | None = None
    ) -> Tensor:
        """p-values (N,) in (0, 1], float64, of scores (N,); NaN counts as the largest score.

        `groups` (N,) is needed exactly when the calibration is by group; groups that are too small for
        any p-value below `alpha` then use the pooled scores.

        Raises:
            ValueError: If `groups` is missing.
        """
        scores = torch.as_tensor(scores).detach().cpu().double()
        scores = torch.where(scores.isnan(), torch.inf, scores)
        n = len(self.scores)
        below = torch.searchsorted(self.scores, scores.contiguous())
        if self.groups is None:
            return _ratio(n - below, n)
        if groups is None:
            raise ValueError("groups: this calibration is by group; give the predicted classes")
        # By group and rank, one search serves all groups.
        first = torch.as_tensor(groups).long().cpu() * n
        first, at, end = torch.searchsorted(
            self._keys, torch.stack([first, first + below, first + n])
        )
        own = end - first >= self._least(alpha)
        return _ratio(torch.where(own, end - at, n - below), torch.where(own, end - first, n))

    def threshold(self, alpha: float, group: int | None = None) -> float:
        """The score above which `p < alpha`: an input is unknown exactly when its score is larger.

        Infinite when there are too few calibration scores for any p-value below `alpha`.

        Raises:
            ValueError: If `alpha` is outside (0, 1).
        """
        if not 0 < alpha < 1:
            raise ValueError(f"alpha: expected a fraction in (0, 1), got {alpha}")
        scores = self._sorted_scores(group, alpha)
        n = len(scores)
        # p < alpha <=> #{>= s} < alpha (n + 1) - 1 <=> at most j scores are >= s.
        at_most = math.ceil(alpha * (n + 1) - 1 - 1e-9) - 1
        return math.inf if at_most < 0 else float(scores[n - 1 - at_most])

    def is_unknown(self, scores: Tensor, alpha: float, groups: Tensor | None = None) -> Tensor:
        """Whether `p < alpha`, shape (N,), bool.

        Raises:
            ValueError: If `alpha` is outside (0, 1), or `groups` is missing.
        """
        if not 0 < alpha < 1:
            raise ValueError(f"alpha: expected a fraction in (0, 1), got {alpha}")
        return flagged(self.p_value(scores, groups, alpha), alpha)


def flagged(p_values: Tensor, alpha: float | Tensor) -> Tensor:
    """Whether `p < alpha`, of p-values (N,), float64; bool (N,).

    A p-value is a ratio of integers: one that equals alpha on paper, such as 5/100 and 0.05, must
    not be flagged because of its last bit.
    """
    return p_values < alpha - 1e-12


class CalibrationTable(nn.Module):
    """The p-values of several `ConformalCalibration`s as plain tensor operations.

    Comparisons instead of a search, and no loop over the groups in the data: it can be traced, and
    exported to any runtime. It takes time and memory N n where a search takes N log n.

    Args:
        calibrations: Calibrations of S scores on the same n inputs, all by group or none.
        num_groups: Number of groups G that an input may have; needed where they are by group.
    """

    scores: Tensor
    groups: Tensor
    own: Tensor

    def __init__(self, calibrations: Sequence[ConformalCalibration], num_groups: int = 0) -> None:
        super().__init__()
        self.register_buffer("scores", torch.stack([c.scores for c in calibrations]))
        groups = [c.groups for c in calibrations if c.groups is not None]
        self.by_group = bool(groups)
        if groups:
            own = torch.bincount(groups[0], minlength=num_groups)[:num_groups]
            self.min_group = calibrations[0].min_group
            self.register_buffer("groups", torch.stack(groups))
            self.register_buffer("own", own)

    def sizes(self, alpha: Tensor) -> Tensor:
        """How many scores each group's p-values are ranks among (G,), int64; alpha as in `forward`."""
        least = (1 / alpha + 1e-9).floor().clamp(min=float(self.min_group))
        return torch.where(self.own < least, self.scores.shape[1], self.own)

    def forward(self, scores: Tensor, which: Tensor, groups: Tensor, alpha: Tensor) -> Tensor:
        """p-values (N,), float64, of scores (N,) by the calibration `which`, an int64 scalar.

        `groups` (N,), int64 in [0, G), and `alpha`, a float64 scalar, count where the calibrations
        are by group.
        """
        scores = scores.double()
        scores = torch.where(scores.isnan(), torch.inf, scores).unsqueeze(1)
        at_least = self.scores.index_select(0, which.view(1)) >= scores
        if not self.by_group:
            return _ratio(at_least.sum(1), self.scores.shape[1])
        own = self.groups.index_select(0, which.view(1)) == groups.unsqueeze(1)
        sizes = self.sizes(alpha)
        at_least = at_least & (own | (sizes != self.own)[groups].unsqueeze(1))
        return _ratio(at_least.sum(1), sizes[groups])


def _ratio(at_least: Tensor, n: int | Tensor) -> Tensor:
    return (1.0 + at_least.double()) / (n + 1.0)
