"""Class-conditional Gaussians with one shared covariance, kept up to date as features stream in.

What all estimators share; each is in a file of its own. `WindowGaussians` holds the last Q features of
each class, as the paper does; `StreamingGaussians` forgets exponentially and needs no window.

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
        return shrunk(total, weight, self.counts.sum(), self.shrinkage)

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

    def _class_or_ignored(self, features: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """Class of each row (N,), int64; K for rows without a class or with non-finite numbers.

        `dtype` is the state's.
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
        finite = features.sum(dim=1, dtype=dtype).abs() < torch.inf
        return torch.where(finite, group, k)


def add_squares(total: Tensor, rows: Tensor, sign: int = 1) -> None:
    """Add `rows^T rows`, rows (N, D), to `total` (D, D), on and above the diagonal at least."""
    width = total.shape[0]
    step = width if width < _WIDE else -(-width // _PARTS)
    for start in range(0, width, step):
        part = rows[:, start : start + step]
        total[start : start + step, start:].addmm_(part.T, rows[:, start:], alpha=sign)


def exchange_squares(total: Tensor, entering: Tensor, leaving: Tensor) -> None:
    """Add `a^T a - b^T b` of rows a, b (N, D) that enter and leave to `total` (D, D).

    Of narrow ones it adds `(a - b)^T (a + b)`, half the work, which differs from that by an
    antisymmetric matrix alone: `exchanged` is the sum.
    """
    if len(total) < _WIDE:
        total.addmm_((entering - leaving).T, entering + leaving)
    else:
        add_squares(total, entering)
        add_squares(total, leaving, sign=-1)


def exchanged(total: Tensor) -> Tensor:
    """What `exchange_squares` added up, on and above the diagonal at least."""
    return (total + total.T) / 2 if len(total) < _WIDE else total


def _symmetric(upper: Tensor) -> Tensor:
    """The symmetric matrix (D, D) with the upper half of `upper`."""
    return upper.triu() + upper.triu(1).T


def upper_factor(covariance: Tensor) -> Tensor:
    """Factor `U` (D, D) with `U^T U` the covariance whose upper half is given, positive definite."""
    # Reads the upper half alone. Asked for the upper factor, a GPU takes half as long again.
    upper: Tensor
    if covariance.is_cuda:
        lower, info = torch.linalg.cholesky_ex(covariance.mT)
        upper = lower.mT
    else:
        upper, info = torch.linalg.cholesky_ex(covariance, upper=True)
    if covariance.dtype == torch.float64:
        return upper  # the floor lies far above its rounding
    # A device without float64: should its rounding win, the diagonal serves.
    fallback = torch.diag_embed(covariance.diagonal().clamp_min(_ABSOLUTE_FLOOR).sqrt())
    return torch.where(info == 0, upper, fallback)


def shrunk(total: Tensor, weight: Tensor, count: Tensor, shrinkage: Shrinkage = "oas") -> Tensor:
    """Covariance (D, D) after shrinkage, upper half, zeros below the diagonal.

    Args:
        total: Sum of `(h - mu)(h - mu)^T` (D, D), float64, upper half; is overwritten.
        weight: Its weight, scalar.
        count: Number of rows behind it, scalar.
        shrinkage: As of `ClassGaussians`.
    """
    total.triu_()
    weight = weight.clamp(min=1)
    mean_variance = total.diagonal().mean() / weight
    floor = _RELATIVE_FLOOR * mean_variance + _ABSOLUTE_FLOOR
    if shrinkage == "oas":
        identity = oas_weight(total, count)
        total *= (1 - identity) / weight
        floor = floor + identity * mean_variance
    else:
        total /= weight
        floor = floor + PAPER_RIDGE
    total.diagonal().add_(floor)
    return total


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
