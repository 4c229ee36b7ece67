"""Gaussians over the last Q features of each class: the paper's, exact and updated instead of recomputed."""

from __future__ import annotations

import torch
from torch import Tensor

from knownot.core.gaussians import ClassGaussians, Shrinkage, exchange_squares, exchanged


class WindowGaussians(ClassGaussians):
    """Gaussians over the last `queue_size` features of each class (equations 1 and 2).

    The sums behind the moments change by the rows that enter and leave, in float64, which is
    exact but for rounding; every `refresh_every` updates they are recomputed from the windows, so
    that rounding (or one huge feature that came and went) cannot accumulate.

    Args:
        num_classes: Number of classes K.
        feature_dim: Feature width D.
        queue_size: Window length Q; the windows take `4 * K * Q * D` bytes.
        shrinkage: See `ClassGaussians`.
        factor_lag: See `ClassGaussians`.
        refresh_every: Updates between two exact recomputations.

    Example:
        >>> gaussians = WindowGaussians(num_classes=2, feature_dim=1, queue_size=2)
        >>> gaussians.update(torch.tensor([[1.0], [2.0], [4.0], [9.0]]), torch.tensor([0, 0, 0, 1]))
        >>> gaussians.counts.tolist(), gaussians.means.flatten().tolist()
        ([2, 1], [3.0, 9.0])
    """

    window: Tensor
    seen: Tensor
    origin: Tensor
    totals: Tensor
    scatter: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        queue_size: int = 1000,
        shrinkage: Shrinkage = "oas",
        factor_lag: float = 0.02,
        refresh_every: int = 4096,
    ) -> None:
        super().__init__(num_classes, feature_dim, queue_size, shrinkage, factor_lag)
        if refresh_every < 1:
            raise ValueError(f"refresh_every: expected at least 1, got {refresh_every}")
        self.refresh_every = refresh_every
        self._updates = 0
        k, d, f64 = num_classes, feature_dim, torch.float64
        # Rows to be ignored are zeros of a class K of their own, which has a mean of zero and one
        # place in the window: no shape depends on how many they are, and no sum needs a mask.
        # The window is float32 in any precision: what leaves must equal what entered.
        self.register_fixed("window", torch.zeros(k * queue_size + 1, d, dtype=torch.float32))
        self.register_buffer("seen", torch.zeros(k + 1, dtype=torch.int64))
        # The sums are of `h - origin_k`, with a feature of the class as origin: they keep their
        # digits when the mean is much larger than the spread.
        self.register_fixed("origin", torch.zeros(k + 1, d, dtype=f64))
        self.register_fixed("totals", torch.zeros(k + 1, d, dtype=f64))
        self.register_fixed("scatter", torch.zeros(d, d, dtype=f64))

    @property
    def counts(self) -> Tensor:
        return self.seen[:-1].clamp(max=self.queue_size)

    @property
    def means(self) -> Tensor:
        return self.origin[:-1] + self.totals[:-1] / self.counts.clamp(min=1).unsqueeze(1)

    def features(self) -> tuple[Tensor, Tensor]:
        """The windowed features (M, D), float32, and their labels (M,), classes in order."""
        slots = torch.arange(self.queue_size, device=self.window.device)
        filled = slots < self.counts.unsqueeze(1)
        labels = torch.arange(self.num_classes, device=self.window.device).unsqueeze(1)
        rows = self.window[:-1].view(self.num_classes, self.queue_size, self.feature_dim)
        return rows[filled], labels.expand_as(filled)[filled]

    def deviations(self) -> tuple[Tensor, Tensor]:
        counts, totals = self.counts, self.totals[:-1]
        # sum (h - mu)(h - mu)^T = sum (h - c)(h - c)^T - sum_k n_k (mu_k - c_k)(mu_k - c_k)^T
        shift = totals / counts.clamp(min=1).unsqueeze(1)
        return torch.addmm(exchanged(self.scatter), totals.T, shift, alpha=-1), counts.sum()

    def upkeep(self, rows: int) -> None:
        super().upkeep(rows)
        self._updates += 1
        if self._updates % self.refresh_every == 0:
            self.refresh()

    @torch.no_grad()
    def take_in(self, features: Tensor, labels: Tensor) -> None:
        """As in `ClassGaussians`."""
        # In the precision of the window, so that what leaves equals what entered.
        rows = features.detach().to(self.window.dtype)
        group = self._class_or_ignored(rows, labels, self.origin.dtype)
        # In parts that no window is too short for: no two rows of a part share a place.
        q = self.queue_size
        while len(rows) > q:
            self._take_in_part(rows[:q], group[:q])
            rows, group = rows[q:], group[q:]
        if len(rows):
            self._take_in_part(rows, group)

    def _take_in_part(self, rows: Tensor, group: Tensor) -> None:
        """Move the windows on by at most Q rows (N, D) of the groups (N,), in order of arrival."""
        n, q, k = len(rows), self.queue_size, self.num_classes
        group, order = group.sort(stable=True)
        rows = torch.cat([rows, rows.new_zeros(1, self.feature_dim)])
        rows = rows.index_select(0, torch.where(group < k, order, n))
        ends = torch.searchsorted(group, torch.arange(k + 2, device=group.device))
        starts, ends = ends[:-1], ends[1:]

        # How many rows of the class came before each row, ever.
        age = torch.arange(n, device=group.device) + (self.seen - starts).index_select(0, group)
        place = (group * q + age % q).clamp(max=k * q)

        new = (self.seen == 0) & (ends > starts)
        firsts = rows.index_select(0, starts.clamp(max=n - 1))
        self.origin.copy_(torch.where(new.unsqueeze(1), firsts, self.origin))
        self.seen += ends - starts

        origin = self.origin.index_select(0, group)
        added = rows - origin  # in float64, as the origin is
        removed = self.window.index_select(0, place) - origin
        removed *= (age >= q).unsqueeze(1)  # else the place was free
        self.totals.index_add_(0, group, added - removed)
        exchange_squares(self.scatter, added, removed)
        self.window.index_copy_(0, place, rows)

    @torch.no_grad()
    def refresh(self) -> None:
        """Recompute all sums from the windows, class by class to bound the memory."""
        self.totals.zero_()
        self.scatter.zero_()
        rows = self.window[:-1].view(self.num_classes, self.queue_size, self.feature_dim)
        slots = torch.arange(self.queue_size, device=self.window.device).unsqueeze(1)
        for k, count in enumerate(self.counts):
            kept = (slots < count).to(self.origin.dtype)
            features = rows[k].to(self.origin.dtype)
            self.origin[k] = (features * kept).sum(0) / count.clamp(min=1)
            centred = (features - self.origin[k]) * kept
            self.totals[k] = centred.sum(0)
            self.scatter.addmm_(centred.T, centred)
