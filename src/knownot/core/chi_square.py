"""Radius of a Gaussian sample: the chi-square tail quantile, tabulated once for each dimension."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from knownot.core.fixed_dtype import FixedDtypeModule

# The table is uniform in the logit of the tail probability q, which resolves both ends alike:
# -90 reaches q = 8e-40, far below the smallest q that float64 random numbers can ask for at
# tail probabilities of 1e-12, and +40 reaches 1 - q = 4e-18.
_LOGIT_MIN = -90.0
_LOGIT_MAX = 40.0
_NODES = 4161  # spacing 1/32: interpolation error below 1e-8 for every dimension from 1 to 4096
_STEP = (_LOGIT_MAX - _LOGIT_MIN) / (_NODES - 1)


class ChiSquareTail(FixedDtypeModule):
    """Upper-tail quantile of the chi-square law with `dim` degrees of freedom.

    The squared length of a standard normal vector of `dim` entries follows this law, so it turns
    the probability of a tail into the radius where that tail begins. The exact quantile and its
    derivative are computed once at nodes (SciPy) and joined by cubic Hermite polynomials in
    `log r²`, so that a training step needs torch alone and no host synchronisation.

    Args:
        dim: Degrees of freedom D, at least 1.

    Raises:
        ValueError: If `dim` is less than 1.

    Example:
        >>> tail = ChiSquareTail(2)
        >>> round(tail.squared_radius(tail_probability=math.exp(-8.0)).item(), 6)
        16.0
    """

    cubics: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim: expected an integer of at least 1, got {dim}")
        self.dim = dim
        self.set_constant("cubics", _cubics(dim).clone())

    def follow(self, device: torch.device) -> None:
        """Be on that device, where whoever moved the rest of the model knew buffers alone."""
        if self.cubics.device != device:
            self._move("cubics", device)

    def log_squared_radius(self, logit: Tensor) -> Tensor:
        """`log r²` with `P(R² > r²) = sigmoid(logit)`.

        Args:
            logit: Logit of the tail probability, any shape; clamped to [-90, 40].

        Returns:
            `log r²`, same shape; float64 where the device has it.
        """
        position = (logit.to(self.cubics.dtype) - _LOGIT_MIN) / _STEP
        position = position.clamp_(0.0, _NODES - 1.0)
        index = position.long().clamp_(max=_NODES - 2)
        u = position - index
        a, b, c, d = self.cubics[index].unbind(-1)
        return torch.addcmul(a, u, torch.addcmul(b, u, torch.addcmul(c, u, d)))

    def squared_radius(self, tail_probability: Tensor | float) -> Tensor:
        """`r²` with `P(R² > r²) = tail_probability`.

        Args:
            tail_probability: In (0, 1), any shape.

        Returns:
            Squared radius, same shape; relative error below 1e-6.
        """
        q = torch.as_tensor(tail_probability, dtype=self.cubics.dtype, device=self.cubics.device)
        return self.log_squared_radius(torch.log(q) - torch.log1p(-q)).exp()


def radius_ratio(dim: int, draws: float = 10_000.0) -> float:
    """How far virtual outliers lie from the data: their median radius over the data's.

    Both radii are Mahalanobis distances from the class mean under the class Gaussian; the outlier
    is the least likely of `draws` draws. The ratio falls to 1 as the dimension grows (1.36 at
    D = 64, 1.09 at D = 1024 for 10,000 draws): the outliers then teach nothing, and a bottleneck
    layer or a smaller tail probability is needed.

    Args:
        dim: Feature width D.
        draws: Number of draws n; 1/n is the tail probability.

    Returns:
        The ratio, at least 1 for `draws` of at least 1.

    Raises:
        ValueError: If `dim` or `draws` is less than 1.

    Example:
        >>> round(radius_ratio(64), 2), round(radius_ratio(1024), 2)
        (1.36, 1.09)
    """
    if draws < 1:
        raise ValueError(f"draws: expected a number of at least 1, got {draws}")
    tail = ChiSquareTail(dim)
    median_tail = -math.expm1(math.log(0.5) / draws)
    outlier = tail.squared_radius(median_tail)
    return float((outlier / tail.squared_radius(0.5)).sqrt())


@functools.lru_cache(maxsize=64)
def _cubics(dim: int) -> Tensor:
    """`log r²` between two nodes as a cubic in the fraction of the step: coefficients (nodes - 1, 4).

    Value and derivative at the nodes are exact.
    """
    import numpy as np
    from scipy import special

    logit = np.linspace(_LOGIT_MIN, _LOGIT_MAX, _NODES)
    shape = dim / 2
    half_r2 = np.where(
        logit < 0,
        special.gammainccinv(shape, special.expit(logit)),
        special.gammaincinv(shape, special.expit(-logit)),
    )
    # For one or two degrees of freedom the quantile underflows near probability 1.
    half_r2 = np.maximum(half_r2, np.finfo(np.float64).tiny)
    log_r2 = np.log(2 * half_r2)
    # d log r² / d logit = -q (1 - q) / (r² · density(r²)), all in logarithms.
    log_density_times_r2 = shape * np.log(half_r2) - half_r2 - special.gammaln(shape)
    log_q_p = special.log_expit(logit) + special.log_expit(-logit)
    slope = -_STEP * np.exp(log_q_p - log_density_times_r2)
    y0, change, d0, d1 = log_r2[:-1], np.diff(log_r2), slope[:-1], slope[1:]
    return torch.from_numpy(
        np.stack([y0, d0, 3 * change - 2 * d0 - d1, d0 + d1 - 2 * change], axis=-1)
    )
