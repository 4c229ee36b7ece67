"""Virtual outliers: exact draws from the low-likelihood tail of every class Gaussian.

With `v = mu + L z` and `Sigma = L L^T` the likelihood of `v` depends on `|z|` alone. The t least
likely of n draws are therefore the t largest of n chi radii, each in an independent uniform
direction, and order statistics of n uniform numbers can be drawn one after another without drawing
the other n - t: the law of the paper's equation 3 at cost O(t D) instead of O(n D).

Reference: Du et al., "VOS: Learning What You Don't Know by Virtual Outlier Synthesis", ICLR 2022,
equation 3; order statistics: Devroye, "Non-Uniform Random Variate Generation", 1986, V.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from knownot.core.chi_square import ChiSquareTail


def tail_radii(
    shape: tuple[int, ...],
    tail: ChiSquareTail,
    draws: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The t largest of `draws` radii of standard normal vectors, drawn exactly.

    Args:
        shape: Output shape; the last entry is t, the others are independent repetitions.
        tail: Chi-square quantile of the feature width D.
        draws: Number of draws n, at least t; need not be whole (1/n is the tail probability).
        generator: Source of randomness, on the device of `tail`.

    Returns:
        Radii of shape `shape`, descending along the last axis; dtype of `tail`.

    Raises:
        ValueError: If fewer draws than kept radii are asked for.
    """
    kept = shape[-1]
    if draws < kept:
        raise ValueError(
            f"draws: expected at least the {kept} outliers kept per class, got {draws}"
        )
    exponential = torch.empty(shape, dtype=tail.cubics.dtype, device=tail.cubics.device)
    exponential.exponential_(generator=generator)
    remaining = draws - torch.arange(kept, dtype=exponential.dtype, device=exponential.device)
    # -log of the order statistics: u_(n) = V1^(1/n), u_(n-1) = u_(n) V2^(1/(n-1)), and so on,
    # with -log V exponential. Kept as logarithms, 1 - u loses no digit however thin the tail.
    minus_log_u = exponential.div_(remaining).cumsum(dim=-1)
    logit_tail = minus_log_u.expm1_().log_()
    return tail.log_squared_radius(logit_tail).mul_(0.5).exp_()


def sample_virtual_outliers(
    means: Tensor,
    cholesky: Tensor,
    tail: ChiSquareTail,
    *,
    draws_per_class: float = 10_000.0,
    outliers_per_class: int = 1,
    radius_scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The `outliers_per_class` least likely of `draws_per_class` draws of each class Gaussian.

    Args:
        means: Class means (K, D).
        cholesky: Lower factor (D, D) of the shared covariance.
        tail: Chi-square quantile for D degrees of freedom.
        draws_per_class: n of the paper; `1 / n` is the tail probability. Need not be whole.
        outliers_per_class: t of the paper.
        radius_scale: Stretches all radii; 1 keeps the exact law.
        generator: Source of randomness, on the device of `means`.

    Returns:
        Virtual outliers (K, t, D), least likely first within a class, dtype of `means`.

    Example:
        >>> outliers = sample_virtual_outliers(
        ...     torch.zeros(2, 3), torch.eye(3), ChiSquareTail(3), outliers_per_class=4
        ... )
        >>> outliers.shape, bool((outliers.norm(dim=-1) > 3).all())
        (torch.Size([2, 4, 3]), True)
    """
    k, d = means.shape
    shape = (k, outliers_per_class)
    radii = tail_radii(shape, tail, draws_per_class, generator) * radius_scale
    z = torch.empty((*shape, d), dtype=means.dtype, device=means.device)
    z.normal_(generator=generator)
    z *= (radii.to(means.dtype) / torch.linalg.vector_norm(z, dim=-1)).unsqueeze(-1)
    return means.unsqueeze(1) + z @ cholesky.to(means.dtype).T
