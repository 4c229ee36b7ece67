"""Class-conditional Gaussians with one shared covariance, kept up to date as features stream in.

`WindowGaussians` holds the last Q features of each class, as the paper does; `StreamingGaussians`
forgets exponentially and needs no window. Both have the interface of `ClassGaussians`.

Reference: Du et al., "VOS: Learning What You Don't Know by Virtual Outlier Synthesis", ICLR 2022,
equations 1 and 2.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from knownot.core.fixed_dtype import FixedDtypeModule

Shrinkage = Literal["oas", "fixed"]
PAPER_RIDGE = 1e-4
# Relative to the mean variance: far below what any feature needs, far above float64 rounding, so
# that the Cholesky factor exists even for features that are duplicated, constant or collapsed.
_RELATIVE_FLOOR = 1e-7
_ABSOLUTE_FLOOR = 1e-30
# From this width on a symmetric product is worth computing in parts, its lower left half left out.
_WIDE = 512
_PARTS = 4


class ClassGaussians(FixedDtypeModule):
    """Means `mu_k` of every class and one covariance `Sigma`, estimated online.

    State is in buffers (it travels with `state_dict` and `.to`), moments in float64. Rows whose
    label is outside `[0, num_classes)` or that hold a non-finite number are ignored. No method
    waits for the device (`update` and `cholesky` hold no branch on a tensor's value).

    Means and moments follow every row. The factor in use, `upper`, is the most expensive part of a
    step for wide features; `factor_due` asks for a new one when the rows since the last one exceed
    a share `factor_lag` of the rows taken in, at most of the `K * queue_size` remembered. Features
    in a full window are half a window old on average; a lag of 0.02 makes the covariance behind
    the factor at most that share of a window older.

    Args:
        num_classes: Number of classes K, at least 1.
        feature_dim: Feature width D, at least 1.
        queue_size: Features remembered of each class, Q, at least 1.
        shrinkage: `"oas"` shrinks the covariance towards a scaled identity by the oracle
            approximating formula (Chen et al. 2010); `"fixed"` adds `1e-4` to its diagonal, as the
            paper does. Both then add `1e-7` of the mean variance, so that a Cholesky factor exists
            for every finite input.
        factor_lag: In [0, 1); 0 makes a new factor due at every step.

    Raises:
        ValueError: If a number is out of range or `shrinkage` is unknown.
    """

    upper: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        queue_size: int = 1000,
        shrinkage: Shrinkage = "oas",
        factor_lag: float = 0.02,
    ) -> None:
        super().__init__()
        for name, size in (
            ("num_classes", num_classes),
            ("feature_dim", feature_dim),
            ("queue_size", queue_size),
        ):
            if size < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {size}")
        if shrinkage not in ("oas", "fixed"):
            raise ValueError(f'shrinkage: expected "oas" or "fixed", got {shrinkage!r}')
        if not 0 <= factor_lag < 1:
            raise ValueError(f"factor_lag: expected a share in [0, 1), got {factor_lag}")
        self.num_classes = num_classes
        self.feature_dim = feature_dim
        self.queue_size = queue_size
        self.shrinkage = shrinkage
        self.factor_lag = factor_lag
        self._rows = 0
        self._rows_since_factor = 0
        self.register_fixed("upper", torch.zeros(feature_dim, feature_dim, dtype=torch.float32))

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in features (N, D), any floating dtype, with integer labels (N,)."""
        self.upkeep(len(labels))
        self.take_in(features, labels)

    def upkeep(self, rows: int) -> None:
        """Bookkeeping on the host before so many rows are taken in."""
        self._rows += rows
        self._rows_since_factor += rows

    def factor_due(self) -> bool:
        """Whether `refactor` is due; tells so once, and the caller then has to call it.

        Rows are counted on the host, those that are ignored included.
        """
        remembered = min(self._rows, self.num_classes * self.queue_size)
        due = self._rows_since_factor >= max(1.0, self.factor_lag * remembered)
        if due:
            self._rows_since_factor = 0
        return due

    @torch.no_grad()
    def refactor(self) -> None:
        """Bring `upper` (D, D), float32, up to date: `upper^T upper = Sigma`; tensors alone."""
        self.upper.copy_(self._upper_factor())

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

        Both float64. The matrix is a new tensor at every call and counts on and above the diagonal
        only, what is below may be anything; the weight may be 0.
        """
        raise NotImplementedError  # abstract

    def empirical_covariance(self) -> Tensor:
        """Shared covariance before shrinkage, shape (D, D), float64 (equation 2 without ridge)."""
        total, weight = self.deviations()
        return _symmetric(total / weight.clamp(min=1))

    def covariance(self) -> Tensor:
        """Shared covariance after shrinkage, shape (D, D), float64, positive definite."""
        return _symmetric(self._upper_covariance())

    def _upper_covariance(self) -> Tensor:
        total, weight = self.deviations()
        return self.shrunk(total, weight, self.counts.sum())

    def shrunk(self, total: Tensor, weight: Tensor, count: Tensor) -> Tensor:
        """Covariance (D, D) after shrinkage, upper half, zeros below the diagonal.

        Args:
            total: Sum of `(h - mu)(h - mu)^T` (D, D), float64, upper half; is overwritten.
            weight: Its weight, scalar.
            count: Number of rows behind it, scalar.
        """
        total.triu_()
        weight = weight.clamp(min=1)
        mean_variance = total.diagonal().mean() / weight
        floor = _RELATIVE_FLOOR * mean_variance + _ABSOLUTE_FLOOR
        if self.shrinkage == "oas":
            identity = oas_weight(total, count)
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
        return self._upper_factor().T

    def _upper_factor(self) -> Tensor:
        return upper_factor(self._upper_covariance())

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self._rows, self._rows_since_factor])

    def set_extra_state(self, state: Tensor) -> None:
        self._rows, self._rows_since_factor = state.tolist()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}upper" not in state_dict:  # saved before there was one: due at once
            state_dict[f"{prefix}upper"] = torch.zeros_like(self.upper)
            rows = self.num_classes * self.queue_size
            state_dict[f"{prefix}_extra_state"] = torch.tensor([rows, rows])
        super()._load_from_state_dict(state_dict, prefix, *args)

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
        return torch.addmm(self.scatter, totals.T, shift, alpha=-1), counts.sum()

    def upkeep(self, rows: int) -> None:
        super().upkeep(rows)
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
        self.totals.index_add_(0, group, added - removed)
        _add_squares(self.scatter, added)
        _add_squares(self.scatter, removed, sign=-1)
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
        factor_lag: float = 0.02,
    ) -> None:
        super().__init__(num_classes, feature_dim, queue_size, shrinkage, factor_lag)
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
        weight = usable.to(rows.dtype)
        rows = torch.where(usable.unsqueeze(1), rows, 0)
        label = torch.where(usable, group, 0)

        # What belongs to a class stands in the place of its last row in the batch, and is gathered
        # from there by all: the cost depends on the batch, not on the number of classes.
        arrival = torch.arange(len(group), device=group.device)
        last = group.new_zeros(self.num_classes + 1).scatter_reduce_(0, group, arrival, "amax")
        place = last[group]
        number = torch.zeros_like(weight).index_add_(0, place, weight)[place]
        total = torch.zeros_like(rows).index_add_(0, place, rows)[place]

        batch_mean = total / number.clamp(min=1).unsqueeze(1)
        old_weight = self.weights[label]
        old = old_weight * (1 - 1 / self.queue_size) ** number
        new = old + number
        move = batch_mean - self.centres[label]
        # Rows around their batch mean, shifted so that one product also holds the between-means
        # term n b / (n + b) (m_b - m)(m_b - m)^T: within a class the rows sum to zero.
        spread = (old / new.clamp(min=1e-12)).sqrt().unsqueeze(1) * move
        deviations = (rows - batch_mean + spread) * weight.unsqueeze(1)

        usable_rows = weight.sum()
        keep = (1 - 1 / (self.queue_size * self.num_classes)) ** usable_rows
        self.scatter.mul_(keep)
        _add_squares(self.scatter, deviations)
        self.scatter_weight.mul_(keep).add_(usable_rows)
        once = weight * (place == arrival)
        share = once * number / new.clamp(min=1e-12)
        self.centres.index_add_(0, label, move * share.unsqueeze(1))
        self.weights.index_add_(0, label, once * (new - old_weight))


def _add_squares(total: Tensor, rows: Tensor, sign: int = 1) -> None:
    """Add `rows^T rows`, rows (N, D), to `total` (D, D), on and above the diagonal at least."""
    width = total.shape[0]
    step = width if width < _WIDE else -(-width // _PARTS)
    for start in range(0, width, step):
        part = rows[:, start : start + step]
        total[start : start + step, start:].addmm_(part.T, rows[:, start:], alpha=sign)


def _symmetric(upper: Tensor) -> Tensor:
    """The symmetric matrix (D, D) with the upper half of `upper`."""
    return upper.triu() + upper.triu(1).T


def upper_factor(covariance: Tensor) -> Tensor:
    """Factor `U` (D, D) with `U^T U` the covariance whose upper half is given, positive definite."""
    # Reads the upper half alone.
    upper: Tensor
    upper, info = torch.linalg.cholesky_ex(covariance, upper=True)
    if covariance.dtype == torch.float64:
        return upper  # the floor lies far above its rounding
    # A device without float64: should its rounding win, the diagonal serves.
    fallback = torch.diag_embed(covariance.diagonal().clamp_min(_ABSOLUTE_FLOOR).sqrt())
    return torch.where(info == 0, upper, fallback)


def oas_weight(scatter: Tensor, count: Tensor) -> Tensor:
    """Weight of the scaled identity in the oracle approximating shrinkage estimate.

    Args:
        scatter: Empirical covariance (D, D) of `count` rows around known means, or a multiple; the
            upper half, zeros below the diagonal.
        count: Number of rows, scalar tensor.

    Returns:
        Weight in [0, 1], scalar; 1 where the formula has no answer (no spread at all).

    Reference:
        Chen, Wiesel, Eldar, Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", 2010, in
        the form that scikit-learn's `OAS` uses.
    """
    dim = scatter.shape[0]
    squared_mean = scatter.diagonal().mean().square()
    diagonal = scatter.diagonal().square().sum()
    mean_square = (2 * torch.linalg.vector_norm(scatter).square() - diagonal) / dim**2
    weight = (mean_square + squared_mean) / ((count + 1.0) * (mean_square - squared_mean / dim))
    # At most 0 only for a multiple of the identity, or no spread at all.
    return torch.where(weight > 0, weight, 1.0).clamp(max=1.0)
