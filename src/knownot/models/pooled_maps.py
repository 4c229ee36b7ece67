"""What a backbone sees in each box of a photo: its feature maps, averaged over the box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_over_boxes(feature_map: Tensor, boxes: Tensor, stride: int) -> Tensor:
    """Mean of a feature map over boxes, every cell counted by how much of it the box covers.

    Args:
        feature_map: Map (C, H, W) of one image.
        boxes: Boxes (B, 4) in that image, corners in its pixels.
        stride: Pixels between neighbouring cells.

    Returns:
        Means (B, C). A box without area, or outside the map, has zeros.
    """
    height, width = feature_map.shape[-2:]
    rows = _covered(boxes[:, 1], boxes[:, 3], height, stride)
    columns = _covered(boxes[:, 0], boxes[:, 2], width, stride)
    covered = (rows.unsqueeze(2) * columns.unsqueeze(1)).flatten(1)  # (B, H W)
    share = covered / covered.sum(1, keepdim=True).clamp(min=1e-12)
    return share.to(feature_map.dtype) @ feature_map.flatten(1).T


def pooled_maps(feature_maps: Sequence[Tensor], boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """Means of several maps (C_i, H_i, W_i) over boxes (B, 4), side by side (B, sum of C_i).

    Those of each map have unit length, so that none outweighs another.
    """
    means = [mean_over_boxes(m, boxes, s) for m, s in zip(feature_maps, strides, strict=True)]
    return torch.cat([F.normalize(mean, dim=1) for mean in means], dim=1)


def _covered(first: Tensor, last: Tensor, cells: int, stride: int) -> Tensor:
    """Pixels (B, cells) of each cell in a line that lie between `first` (B,) and `last` (B,)."""
    left = torch.arange(cells, device=first.device, dtype=first.dtype) * stride
    from_left = torch.maximum(first.unsqueeze(1), left)
    to_right = torch.minimum(last.unsqueeze(1), left + stride)
    return (to_right - from_left).clamp(min=0)
