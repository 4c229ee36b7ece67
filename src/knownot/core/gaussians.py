"""Class-conditional Gaussians with one shared covariance, kept up to date as features stream in.

`WindowGaussians` holds the last Q features of each class, as the paper does; `StreamingGaussians`
forgets exponentially and needs no window. Both have the interface of `ClassGaussians`.

Reference: Du et al., "VOS: Learning What You Don't Know by Virtual Outlier Synthesis", ICLR 2022,
equations 1 and 2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from knownot.core.fixed_dtype import FixedDtypeModule

Shrinkage = Literal["oas", "fixed"]
PAPER_RIDGE = 1e-4
# Relative to the mean variance: far below what any feature needs, far above float64 rounding, so
# that the Cholesky factor exists even for features that are duplicated, constant or collapsed.
_RELATIVE_FLOOR = 1e-7
_ABSOLUTE_FLOOR = 1e-30


class ClassGaussians(FixedDtypeModule):
    """Means `mu_k` of every class and one covariance `Sigma`, estimated online.

    State is in buffers (it travels with `state_dict` and `.to`), moments in float64. Rows whose
    label is outside `[0, num_classes)` or that hold a non-finite number are ignored. No method
    waits for the device (`update` and `cholesky` hold no branch on a tensor's value).

    Args:
        num_classes: Number of classes K, at least 1.
        feature_dim: Feature width D, at least 1.
        shrinkage: `"oas"` shrinks the covariance towards a scaled identity by the oracle
            approximating formula (Chen et al. 2010); `"fixed"` adds `1e-4` to its diagonal, as the
            paper does. Both then add `1e-7` of the mean variance, so that a Cholesky factor exists
            for every finite input.

    Raises:
        ValueError: If a size is less than 1 or `shrinkage` is unknown.
    """

    origin: Tensor
    totals: Tensor
    scatter: Tensor

    def __init__(self, num_classes: int, feature_dim: int, shrinkage: Shrinkage = "oas") -> None:
        super().__init__()
        for name, size in (("num_classes", num_classes), ("feature_dim", feature_dim)):
            if size < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {size}")
        if shrinkage not in ("oas", "fixed"):
            raise ValueError(f'shrinkage: expected "oas" or "fixed", got {shrinkage!r}')
        self.num_classes = num_classes
        self.feature_dim = feature_dim
        self.shrinkage = shrinkage

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in features (N, D), any floating dtype, with integer labels (N,)."""
        raise NotImplementedError  # abstract

    @property
    def counts(self) -> Tensor:
        """Weight behind each class mean, shape (K,): number of features, whole or decayed."""
        raise NotImplementedError  # abstract

    @property
    def means(self) -> Tensor:
        """Class means, shape (K, D), float64; zero for a class never seen."""
        raise NotImplementedError  # abstract

    def empirical_covariance(self) -> Tensor:
        """Shared covariance before shrinkage, shape (D, D), float64 (equation 2 without ridge).

        A new tensor at every call.
        """
        raise NotImplementedError  # abstract

    def covariance(self) -> Tensor:
        """Shared covariance after shrinkage, shape (D, D), float64, positive definite."""
        covariance = self.empirical_covariance()
        diagonal = covariance.diagonal()
        mean_variance = diagonal.mean()
        if self.shrinkage == "oas":
            weight = oas_weight(covariance, self.counts.sum())
            covariance = covariance * (1 - weight)
            ridge = weight * mean_variance
        else:
            ridge = torch.full_like(mean_variance, PAPER_RIDGE)
        covariance.diagonal().add_(ridge + _RELATIVE_FLOOR * mean_variance + _ABSOLUTE_FLOOR)
        return covariance

    def cholesky(self) -> Tensor:
        """Lower factor `L` of the covariance, `L L^T = Sigma`, shape (D, D), float64.

        Never fails on finite features, and never waits for the device.
        """
        covariance = self.covariance()
        factor, info = torch.linalg.cholesky_ex(covariance)
        # Unreachable by construction; should a backend fail all the same, the diagonal serves.
        fallback = torch.diag_embed(covariance.diagonal().clamp_min(_ABSOLUTE_FLOOR).sqrt())
        return torch.where(info == 0, factor, fallback)

    def _usable(self, features: Tensor, labels: Tensor) -> Tensor:
        """Which rows (N,) have a class and hold finite numbers; features of the state's dtype."""
        if features.ndim != 2 or features.shape[1] != self.feature_dim:
            raise ValueError(
                f"features: expected shape (N, {self.feature_dim}), got {tuple(features.shape)}"
            )
        if labels.shape != features.shape[:1]:
            raise ValueError(
                f"labels: expected shape ({features.shape[0]},), got {tuple(labels.shape)}"
            )
        in_range = (labels >= 0) & (labels < self.num_classes)
        # A sum is finite only if all its terms are, and float64 sums of float32 cannot overflow.
        return in_range & features.sum(dim=1).isfinite()


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
        refresh_every: Updates between two exact recomputations.

    Example:
        >>> gaussians = WindowGaussians(num_classes=2, feature_dim=1, queue_size=2)
        >>> gaussians.update(torch.tensor([[1.0], [2.0], [4.0], [9.0]]), torch.tensor([0, 0, 0, 1]))
        >>> gaussians.counts.tolist(), gaussians.means.flatten().tolist()
        ([2, 1], [3.0, 9.0])
    """

    window: Tensor
    seen: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        queue_size: int = 1000,
        shrinkage: Shrinkage = "oas",
        refresh_every: int = 4096,
    ) -> None:
        super().__init__(num_classes, feature_dim, shrinkage)
        if queue_size < 1:
            raise ValueError(f"queue_size: expected an integer of at least 1, got {queue_size}")
        if refresh_every < 1:
            raise ValueError(f"refresh_every: expected at least 1, got {refresh_every}")
        self.queue_size = queue_size
        self.refresh_every = refresh_every
        self._updates = 0
        k, d, f64 = num_classes, feature_dim, torch.float64
        # One row more than K * Q: rows to be ignored are written there, which keeps every shape
        # static. It is float32 in any precision: what leaves must equal what entered.
        self.register_fixed("window", torch.zeros(k * queue_size + 1, d, dtype=torch.float32))
        self.register_buffer("seen", torch.zeros(k, dtype=torch.int64))
        # The sums are of `h - origin_k`, with a feature of the class as origin: they keep their
        # digits when the mean is much larger than the spread.
        self.register_fixed("origin", torch.zeros(k, d, dtype=f64))
        self.register_fixed("totals", torch.zeros(k, d, dtype=f64))
        self.register_fixed("scatter", torch.zeros(d, d, dtype=f64))

    @property
    def counts(self) -> Tensor:
        return self.seen.clamp(max=self.queue_size)

    @property
    def means(self) -> Tensor:
        return self.origin + self.totals / self.counts.clamp(min=1).unsqueeze(1)

    def features(self) -> tuple[Tensor, Tensor]:
        """The windowed features (M, D), float32, and their labels (M,), classes in order."""
        slots = torch.arange(self.queue_size, device=self.window.device)
        filled = slots < self.counts.unsqueeze(1)
        labels = torch.arange(self.num_classes, device=self.window.device).unsqueeze(1)
        rows = self.window[:-1].view(self.num_classes, self.queue_size, self.feature_dim)
        return rows[filled], labels.expand_as(filled)[filled]

    def empirical_covariance(self) -> Tensor:
        counts = self.counts
        # sum (h - mu)(h - mu)^T = sum (h - c)(h - c)^T - sum_k n_k (mu_k - c_k)(mu_k - c_k)^T
        shift = self.totals / counts.clamp(min=1).unsqueeze(1)
        centred = torch.addmm(self.scatter, self.totals.T, shift, alpha=-1)
        return centred.div_(counts.sum().clamp(min=1))

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        # First in the precision of the window, so that what leaves equals what entered.
        rows = features.detach().to(self.window.dtype).to(self.origin.dtype)
        usable = self._usable(rows, labels)
        rows = torch.where(usable.unsqueeze(1), rows, 0)
        q, k = self.queue_size, self.num_classes
        # Rows to be ignored are a class of their own when ranked, and add zeros to class 0 after.
        rank, in_batch = rank_within_class(torch.where(usable, labels, k).long(), k + 1)
        label = torch.where(usable, labels, 0).long()
        seen = self.seen[label]

        # A batch may hold more rows of a class than its window: only the last Q of them stay.
        stays = usable & (rank >= in_batch[label] - q)
        slot = (seen + rank) % q
        place = torch.where(stays, label * q + slot, k * q)
        # The first row of a class is its origin, zero until then; the others add nothing to it.
        first = usable & (seen + rank == 0)
        self.origin.index_add_(0, label, rows * first.to(rows.dtype).unsqueeze(1))

        origin = self.origin.index_select(0, label)
        leaving = self.window.index_select(0, place).to(rows.dtype)
        added = (rows - origin) * stays.to(rows.dtype).unsqueeze(1)
        removed = (leaving - origin) * (stays & (slot < seen)).to(rows.dtype).unsqueeze(1)
        change = added - removed
        self.totals.index_add_(0, label, change)
        # a^T a - r^T r is the symmetric part of (a - r)^T (a + r): one product instead of two.
        product = change.T @ (added + removed)
        self.scatter.add_(product + product.T, alpha=0.5)
        self.window.index_copy_(0, place, rows.to(self.window.dtype))
        self.seen.add_(in_batch[:k])

        self._updates += 1
        if self._updates % self.refresh_every == 0:
            self.refresh()

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


class StreamingGaussians(ClassGaussians):
    """Gaussians with exponential forgetting: `K * D + D²` numbers instead of `K * Q * D`.

    A feature weighs `(1 - 1/queue_size)^a` in its class mean after `a` newer features of the class,
    and `(1 - 1/(K * queue_size))^a` in the covariance after `a` newer features of any class, so
    that the memory is as long as that of a window of `queue_size` per class. Deviations enter the
    covariance around the class mean of their time, by a pairwise (Chan) update that keeps it
    positive semi-definite whatever the order of arrival.

    Args:
        num_classes: Number of classes K.
        feature_dim: Feature width D.
        queue_size: Effective number of features remembered per class.
        shrinkage: See `ClassGaussians`.
    """

    weights: Tensor
    scatter_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        queue_size: int = 1000,
        shrinkage: Shrinkage = "oas",
    ) -> None:
        super().__init__(num_classes, feature_dim, shrinkage)
        if queue_size < 1:
            raise ValueError(f"queue_size: expected an integer of at least 1, got {queue_size}")
        self.queue_size = queue_size
        k, d, f64 = num_classes, feature_dim, torch.float64
        self.register_fixed("weights", torch.zeros(k, dtype=f64))
        self.register_fixed("centres", torch.zeros(k, d, dtype=f64))
        self.register_fixed("scatter", torch.zeros(d, d, dtype=f64))
        self.register_fixed("scatter_weight", torch.zeros((), dtype=f64))

    centres: Tensor

    @property
    def counts(self) -> Tensor:
        return self.weights

    @property
    def means(self) -> Tensor:
        return self.centres

    def empirical_covariance(self) -> Tensor:
        return self.scatter / self.scatter_weight.clamp(min=1)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        rows = features.detach().to(self.centres.dtype)
        usable = self._usable(rows, labels)
        label = torch.where(usable, labels, 0).long()
        rows = torch.where(usable.unsqueeze(1), rows, 0)
        weight = usable.to(rows.dtype)
        number = torch.zeros_like(self.weights).index_add_(0, label, weight)
        total = torch.zeros_like(self.centres).index_add_(0, label, rows)

        batch_mean = total / number.clamp(min=1).unsqueeze(1)
        old = self.weights * (1 - 1 / self.queue_size) ** number
        new = old + number
        move = torch.where(number > 0, batch_mean.T - self.centres.T, 0).T
        # Rows around their batch mean, shifted so that one product also holds the between-means
        # term n b / (n + b) (m_b - m)(m_b - m)^T: within a class the rows sum to zero.
        spread = (old / new.clamp(min=1e-12)).sqrt().unsqueeze(1) * move
        deviations = (rows - batch_mean[label] + spread[label]) * weight.unsqueeze(1)

        usable_rows = weight.sum()
        keep = (1 - 1 / (self.queue_size * self.num_classes)) ** usable_rows
        self.scatter.mul_(keep).addmm_(deviations.T, deviations)
        self.scatter_weight.mul_(keep).add_(usable_rows)
        self.centres += move * (number / new.clamp(min=1e-12)).unsqueeze(1)
        self.weights.copy_(new)


def rank_within_class(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Position of each row among the rows of its class, and the number of rows of each class.

    Args:
        labels: Class indices (N,), int64, in [0, num_classes).
        num_classes: Number of classes.

    Returns:
        Ranks (N,), from 0 in order of appearance, and counts (num_classes,), both int64.

    Example:
        >>> rank_within_class(torch.tensor([1, 0, 1, 1]), 2)[0].tolist()
        [0, 0, 1, 2]
    """
    counts = torch.zeros(num_classes, dtype=torch.int64, device=labels.device)
    counts.index_add_(0, labels, torch.ones_like(labels))
    order = torch.argsort(labels, stable=True)
    first = counts.cumsum(0) - counts
    rank_sorted = torch.arange(len(labels), device=labels.device) - first[labels[order]]
    return torch.empty_like(labels).index_copy_(0, order, rank_sorted), counts


def oas_weight(covariance: Tensor, count: Tensor) -> Tensor:
    """Weight of the scaled identity in the oracle approximating shrinkage estimate.

    Args:
        covariance: Empirical covariance (D, D) of `count` rows around known means.
        count: Number of rows, scalar tensor.

    Returns:
        Weight in [0, 1], scalar; 1 where the formula has no answer (no spread at all).

    Reference:
        Chen, Wiesel, Eldar, Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", 2010, in
        the form that scikit-learn's `OAS` uses.
    """
    scale = covariance.diagonal().mean()
    # Of the covariance scaled to unit mean variance: squares that neither overflow nor vanish.
    mean_square = (covariance / torch.where(scale > 0, scale, 1.0)).square().mean()
    weight = (mean_square + 1) / ((count + 1.0) * (mean_square - 1 / covariance.shape[0]))
    # At most 0 only for a multiple of the identity, or no spread at all.
    return torch.where(weight > 0, weight, 1.0).clamp(max=1.0)
