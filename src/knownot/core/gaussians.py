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
        self.upkeep()
        self.take_in(features, labels)

    def upkeep(self) -> None:
        """Bookkeeping on the host before features are taken in; a kind may need none."""

    def take_in(self, features: Tensor, labels: Tensor) -> None:
        """`update` without `upkeep`: operations on tensors alone, fit for `torch.compile`.

        Args:
            features: Rows (N, D), any floating dtype; N may be 0.
            labels: Their classes (N,), integers.
        """
        raise NotImplementedError  # abstract

    @property
    def counts(self) -> Tensor:
        """Weight behind each class mean, shape (K,): number of features, whole or decayed."""
        raise NotImplementedError  # abstract

    @property
    def means(self) -> Tensor:
        """Class means, shape (K, D), float64; zero for a class never seen."""
        raise NotImplementedError  # abstract

    def deviations(self) -> tuple[Tensor, Tensor]:
        """Sum of `(h - mu)(h - mu)^T` over the features, (D, D), and their weight, a scalar.

        Both float64. The matrix is a new tensor at every call; the weight may be 0.
        """
        raise NotImplementedError  # abstract

    def empirical_covariance(self) -> Tensor:
        """Shared covariance before shrinkage, shape (D, D), float64 (equation 2 without ridge)."""
        total, weight = self.deviations()
        return total / weight.clamp(min=1)

    def covariance(self) -> Tensor:
        """Shared covariance after shrinkage, shape (D, D), float64, positive definite."""
        total, weight = self.deviations()
        weight = weight.clamp(min=1)
        mean_variance = total.diagonal().mean() / weight
        floor = _RELATIVE_FLOOR * mean_variance + _ABSOLUTE_FLOOR
        if self.shrinkage == "oas":
            identity = oas_weight(total, self.counts.sum())
            total *= (1 - identity) / weight
            floor = floor + identity * mean_variance
        else:
            total /= weight
            floor = floor + PAPER_RIDGE
        total.diagonal().add_(floor)
        return total

    def cholesky(self) -> Tensor:
        """Lower factor `L` of the covariance, `L L^T = Sigma`, shape (D, D), float64.

        Never fails on finite features, and never waits for the device.
        """
        covariance = self.covariance()
        # The upper factor takes one pass less on a CPU; its transpose is a view.
        upper, info = torch.linalg.cholesky_ex(covariance, upper=True)
        factor: Tensor = upper.T
        if covariance.dtype == torch.float64:
            return factor  # the floor lies far above its rounding
        # A device without float64: should its rounding win, the diagonal serves.
        fallback = torch.diag_embed(covariance.diagonal().clamp_min(_ABSOLUTE_FLOOR).sqrt())
        return torch.where(info == 0, factor, fallback)

    def _class_or_ignored(self, features: Tensor, labels: Tensor) -> Tensor:
        """Class of each row (N,), int64; K for rows without a class or with non-finite numbers.

        The features must have the state's dtype.
        """
        if features.ndim != 2 or features.shape[1] != self.feature_dim:
            raise ValueError(
                f"features: expected shape (N, {self.feature_dim}), got {tuple(features.shape)}"
            )
        if labels.shape != features.shape[:1]:
            raise ValueError(
                f"labels: expected shape ({features.shape[0]},), got {tuple(labels.shape)}"
            )
        k = self.num_classes
        group = labels.long().clamp(-1, k).remainder(k + 1)  # -1 and K both become K
        # A sum is finite only if all its terms are, and float64 sums of float32 cannot overflow.
        finite = features.sum(dim=1).abs() < torch.inf
        return torch.where(finite, group, k)


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
    origin: Tensor
    totals: Tensor
    scatter: Tensor

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
        return torch.addmm(self.scatter, totals.T, shift, alpha=-1), counts.sum()

    def upkeep(self) -> None:
        self._updates += 1
        if self._updates % self.refresh_every == 0:
            self.refresh()

    @torch.no_grad()
    def take_in(self, features: Tensor, labels: Tensor) -> None:
        # First in the precision of the window, so that what leaves equals what entered.
        rows = features.detach().to(self.window.dtype).to(self.origin.dtype)
        group = self._class_or_ignored(rows, labels)
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
        added = rows - origin
        removed = self.window.index_select(0, place) - origin
        removed *= (age >= q).unsqueeze(1)  # else the place was free
        change = added - removed
        self.totals.index_add_(0, group, change)
        # a^T a - r^T r is the symmetric part of (a - r)^T (a + r): one product instead of two.
        product = change.T @ (added + removed)
        self.scatter.add_(product + product.T, alpha=0.5)
        self.window.index_copy_(0, place, rows.to(self.window.dtype))

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
    centres: Tensor
    scatter: Tensor
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

    @property
    def counts(self) -> Tensor:
        return self.weights

    @property
    def means(self) -> Tensor:
        return self.centres

    def deviations(self) -> tuple[Tensor, Tensor]:
        return self.scatter.clone(), self.scatter_weight

    @torch.no_grad()
    def take_in(self, features: Tensor, labels: Tensor) -> None:
        rows = features.detach().to(self.centres.dtype)
        group = self._class_or_ignored(rows, labels)
        usable = group < self.num_classes
        label = torch.where(usable, group, 0)
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


def oas_weight(scatter: Tensor, count: Tensor) -> Tensor:
    """Weight of the scaled identity in the oracle approximating shrinkage estimate.

    Args:
        scatter: Empirical covariance (D, D) of `count` rows around known means, or a multiple.
        count: Number of rows, scalar tensor.

    Returns:
        Weight in [0, 1], scalar; 1 where the formula has no answer (no spread at all).

    Reference:
        Chen, Wiesel, Eldar, Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", 2010, in
        the form that scikit-learn's `OAS` uses.
    """
    dim = scatter.shape[0]
    squared_mean = scatter.diagonal().mean().square()
    mean_square = torch.linalg.vector_norm(scatter).square() / dim**2
    weight = (mean_square + squared_mean) / ((count + 1.0) * (mean_square - squared_mean / dim))
    # At most 0 only for a multiple of the identity, or no spread at all.
    return torch.where(weight > 0, weight, 1.0).clamp(max=1.0)
