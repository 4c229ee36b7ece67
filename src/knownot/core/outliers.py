"""Virtual outliers: exact draws from the low-likelihood tail of every class Gaussian.

With `v = mu + L z` and `Sigma = L L^T` the likelihood of `v` depends on `|z|` alone. The t least
likely of n draws are therefore the t largest of n chi radii, each in an independent uniform
direction, and order statistics of n uniform numbers can be drawn one after another without drawing
the other n - t: the law of the paper's equation 3 at cost O(t D) instead of O(n D).

Reference: Du et al., "VOS: Learning What You Don't Know by Virtual Outlier Synthesis", ICLR 2022,
equation 3; order statistics: Devroye, "Non-Uniform Random Variate Generation", 1986, V.3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from knownot.core.chi_square import ChiSquareTail, radius_ratio
from knownot.core.gaussians import ClassGaussians

_NARROW = 128  # up to this width a GPU may read the factor anew for every class


class TailNoise(NamedTuple):
    """The random numbers behind the outliers, apart from all that depends on the Gaussians."""

    exponential: Tensor  # (..., t), float64: one for each radius
    normal: Tensor  # (..., t, D): the directions


def draw_tail_noise(
    classes: int,
    outliers_per_class: int,
    tail: ChiSquareTail,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> TailNoise:
    """Draw what `place_outliers` needs for K classes, on the device of `tail`.

    Args:
        classes: Number of classes K.
        outliers_per_class: t of the paper.
        tail: Chi-square quantile for D degrees of freedom.
        dtype: Of the directions.
        generator: Source of randomness, on the device of `tail`.
    """
    shape, device = (classes, outliers_per_class), tail.cubics.device
    exponential = torch.empty(shape, dtype=tail.cubics.dtype, device=device)
    normal = torch.empty((*shape, tail.dim), dtype=dtype, device=device)
    return TailNoise(
        exponential.exponential_(generator=generator), normal.normal_(generator=generator)
    )


def tail_radii(exponential: Tensor, tail: ChiSquareTail, draws: float) -> Tensor:
    """The t largest of `draws` radii of standard normal vectors, drawn exactly.

    Args:
        exponential: Standard exponential random numbers (..., t), all independent.
        tail: Chi-square quantile of the feature width D.
        draws: Number of draws n, at least t; need not be whole (1/n is the tail probability).

    Returns:
        Radii (..., t), descending along the last axis; dtype of `tail`.

    Raises:
        ValueError: If fewer draws than kept radii are asked for.
    """
    kept = exponential.shape[-1]
    if draws < kept:
        raise ValueError(
            f"draws: expected at least the {kept} outliers kept per class, got {draws}"
        )
    # -log of the order statistics: u_(n) = V1^(1/n), u_(n-1) = u_(n) V2^(1/(n-1)), and so on,
    # with -log V exponential. Kept as logarithms, 1 - u loses no digit however thin the tail.
    remaining = draws - torch.arange(kept, dtype=exponential.dtype, device=exponential.device)
    minus_log_u = (exponential / remaining).cumsum(dim=-1)
    logit_tail = minus_log_u.expm1_().log_()
    return tail.log_squared_radius(logit_tail).mul_(0.5).exp_()


def place_outliers(
    noise: TailNoise,
    means: Tensor,
    upper: Tensor,
    tail: ChiSquareTail,
    *,
    draws_per_class: float = 10_000.0,
    radius_scale: float = 1.0,
) -> Tensor:
    """The least likely of `draws_per_class` draws of each class Gaussian, from their noise.

    Args:
        noise: Of K classes and t outliers each.
        means: Class means (K, D).
        upper: Upper factor `U` (D, D) of the shared covariance, `U^T U = Sigma`; or (K, D, D), one
            for each class.
        tail: Chi-square quantile for D degrees of freedom.
        draws_per_class: n of the paper; `1 / n` is the tail probability. Need not be whole.
        radius_scale: Stretches all radii; 1 keeps the exact law.

    Returns:
        Virtual outliers (K, t, D), least likely first within a class, dtype of `means`.

    Raises:
        ValueError: If `draws_per_class` is less than t.

    Example:
        >>> tail = ChiSquareTail(3)
        >>> noise = draw_tail_noise(classes=2, outliers_per_class=4, tail=tail)
        >>> outliers = place_outliers(noise, torch.zeros(2, 3), torch.eye(3), tail)
        >>> outliers.shape, bool((outliers.norm(dim=-1) > 3).all())
        (torch.Size([2, 4, 3]), True)
    """
    radii = tail_radii(noise.exponential, tail, draws_per_class) * radius_scale
    z = noise.normal.to(means.dtype)
    length = torch.linalg.vector_norm(z, dim=-1)
    z = z * (radii.to(means.dtype) / length).unsqueeze(-1)
    return _placed(means.unsqueeze(1), z, upper.to(means.dtype))


def _placed(means: Tensor, z: Tensor, upper: Tensor) -> Tensor:
    """`mu + z U` of means (K, 1, D) and directions (K, t, D)."""
    if z.is_cuda and upper.ndim == 2 and len(upper) <= _NARROW:
        # Class by class: as one product of ten rows of 128 an H200 takes 53 µs for it, so 5.
        return torch.baddbmm(means, z, upper.expand(len(z), -1, -1))
    return means + z @ upper


class OutlierSampler(nn.Module):
    """Where virtual outliers come from: what `VirtualOutlierLoss` asks in every step.

    `draw` makes the random numbers, `place` turns them into outliers by operations on tensors alone,
    fit for `torch.compile`. Outliers of a class that has shown no feature may be anything finite:
    they take no part in the loss.

    Args:
        feature_dim: Feature width D.
        outliers_per_class: t of the paper.

    Attributes:
        reads_windows: Whether it needs the features themselves, that is `WindowGaussians`.
    """

    reads_windows = False

    @property
    def radius_ratio(self) -> float | None:
        """Median radius of outliers over that of data, where there is a law of it."""
        return None

    def __init__(self, feature_dim: int, outliers_per_class: int = 1) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.outliers_per_class = outliers_per_class

    def draw(self, classes: int, device: torch.device, generator: torch.Generator | None) -> Any:
        """Random numbers for so many classes: a tuple of tensors on the device."""
        raise NotImplementedError  # abstract

    def place(
        self, noise: Any, gaussians: ClassGaussians, upper: Tensor, classes: Tensor | None
    ) -> Tensor:
        """Virtual outliers from their random numbers.

        Args:
            noise: What `draw` gave for C classes.
            gaussians: What is known of the classes.
            upper: Factor `U` (D, D), float32, of their covariance, `U^T U = Sigma`.
            classes: Indices of the classes (C,), int64; None for all.

        Returns:
            Outliers (C, t, D), float32.
        """
        raise NotImplementedError  # abstract


class GaussianTail(OutlierSampler):
    """The paper's: the least likely draws of every class Gaussian, see `place_outliers`.

    Args:
        feature_dim: Feature width D.
        outliers_per_class: t of the paper.
        draws_per_class: n of the paper.
        radius_scale: Stretches all radii.
    """

    def __init__(
        self,
        feature_dim: int,
        outliers_per_class: int = 1,
        draws_per_class: float = 10_000.0,
        radius_scale: float = 1.0,
    ) -> None:
        super().__init__(feature_dim, outliers_per_class)
        self.draws_per_class = draws_per_class
        self.radius_scale = radius_scale
        self.tail = ChiSquareTail(feature_dim)

    @property
    def radius_ratio(self) -> float:
        """By the law, stretched."""
        return radius_ratio(self.feature_dim, self.draws_per_class) * self.radius_scale

    def draw(
        self, classes: int, device: torch.device, generator: torch.Generator | None
    ) -> TailNoise:
        """Ranks in the tail and directions."""
        self.tail.follow(device)
        return draw_tail_noise(classes, self.outliers_per_class, self.tail, generator=generator)

    def place(
        self, noise: TailNoise, gaussians: ClassGaussians, upper: Tensor, classes: Tensor | None
    ) -> Tensor:
        """Outliers (C, t, D) around the class means."""
        means = gaussians.means
        if classes is not None:
            means = means.index_select(0, classes)
        return place_outliers(
            noise,
            means.float(),
            self.factor(gaussians, upper, classes),
            self.tail,
            draws_per_class=self.draws_per_class,
            radius_scale=self.radius_scale,
        )

    def factor(self, gaussians: ClassGaussians, upper: Tensor, classes: Tensor | None) -> Tensor:
        """Factor of the covariance that is drawn from: `upper`, shared by all classes."""
        return upper
