"""Free energy of logits, plain and weighted.

Reference: Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020; Du et al.,
"VOS: Learning What You Don't Know by Virtual Outlier Synthesis", ICLR 2022, equation 5.
"""

from __future__ import annotations

import torch
from torch import Tensor


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`E = -T log sum_k exp(f_k / T)`; larger means more out-of-distribution.

    Args:
        logits: Class logits (N, K), any floating dtype; computed in at least float32.
        temperature: T, positive.

    Returns:
        Energies (N,), float32 or float64.

    Raises:
        ValueError: If `temperature` is not positive.

    Example:
        >>> energy(torch.tensor([[0.0, 0.0], [9.0, 0.0]])).tolist()
        [-0.6931471824645996, -9.000123023986816]
    """
    if temperature <= 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    return -temperature * torch.logsumexp(at_least_float32(logits) / temperature, dim=-1)


def negative_weighted_energy(logits: Tensor, log_weights: Tensor) -> Tensor:
    """`-E = log sum_k w_k exp(f_k)`, computed as `logsumexp(f + log w)`: what phi takes in.

    Args:
        logits: Class logits (N, K), any floating dtype; computed in at least float32.
        log_weights: Logarithms of the positive class weights (K,).

    Returns:
        Negative energies (N,), float32 or float64; larger means more in-distribution.
    """
    return torch.logsumexp(at_least_float32(logits) + log_weights, dim=-1)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` itself, or its float32 copy if it is of lower precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
