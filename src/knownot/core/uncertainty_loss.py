"""The uncertainty loss of VOS: how well the energy separates features from virtual outliers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def uncertainty_loss(
    phi: Tensor, is_id: Tensor, weights: Tensor | None = None, total: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy of phi(-E): in-distribution rows are class 1, virtual outliers class 0.

    Args:
        phi: phi(-E) of in-distribution rows and virtual outliers (M,).
        is_id: 1 for the former, 0 for the latter (M,), dtype of `phi`.
        weights: Weight of each row (M,), 1 if not given.
        total: What the weighted sum is divided by, the sum of the weights if not given.

    Returns:
        Weighted mean over all rows, scalar; 0 if all weights are 0.

    Reference:
        Du et al., ICLR 2022, equation 6, averaged over all rows together as the authors' code does.
    """
    if weights is None:
        weights = torch.ones_like(phi)
    total = weights.sum() if total is None else total
    share = weights / total.clamp(min=1e-12)
    return F.binary_cross_entropy_with_logits(phi, is_id, share, reduction="sum")
