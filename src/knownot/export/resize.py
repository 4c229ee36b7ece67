"""`centre_square` as tensor operations, equal to it pixel by pixel.

Pillow computes filter weights in float64, rounds them to fixed point with 22 bits after the point,
sums in integers and rounds each pass to 8 bits. All of it fits float64 without any error, so that
two matrix products with integer weights give the same pixels in any runtime.

Reference: `src/libImaging/Resample.c` of Pillow; Keys, "Cubic Convolution Interpolation for Digital
Image Processing", 1981, for the filter, with a = -1/2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from knownot.data.square import REACH

_ONE = 2.0**22
_F64 = torch.float64


def centre_square(photos: Tensor, size: int, crop: float) -> Tensor:
    """Centre squares of `crop` of the shorter side, resized as `knownot.data.square` does it.

    Args:
        photos: Photos (N, H, W, 3), uint8.
        size: Side S of the result.
        crop: Share of the shorter side that is kept.

    Returns:
        Pixels (N, 3, S, S), float64, whole numbers in [0, 255].
    """
    height, width = photos.shape[1], photos.shape[2]
    h, w = _float(height), _float(width)
    side = (torch.minimum(h, w) * crop).clamp(min=1.0)
    left, top = (w - side) / 2, (h - side) / 2
    # The rows before `first` play no part; counting from there is what rounds the box alike.
    first = (top - (REACH * (side / size).clamp(min=1.0) + 1)).floor().clamp(min=0.0)
    columns = _weights(torch.arange(width, dtype=_F64), left, left + side, size)
    rows = _weights(torch.arange(height, dtype=_F64) - first, top - first, top - first + side, size)
    pixels = photos.permute(0, 3, 1, 2).to(_F64)
    narrow = _to_8_bits(pixels @ columns.T)
    return _to_8_bits(rows @ narrow)


def _float(length: int) -> Tensor:
    return torch.scalar_tensor(length, dtype=_F64)


def _weights(places: Tensor, start: Tensor, stop: Tensor, size: int) -> Tensor:
    """Fixed-point weights (S, L) of input pixels `places` (L,) for the span from start to stop."""
    start, stop = start.float(), stop.float()  # as Pillow takes them
    scale = ((stop - start).to(_F64) / size).reshape(())
    stretch = scale.clamp(min=1.0)
    centre = (start.to(_F64) + (torch.arange(size, dtype=_F64) + 0.5) * scale).unsqueeze(1)
    reach = REACH * stretch
    inside = (places >= (centre - reach + 0.5).floor()) & (places < (centre + reach + 0.5).floor())
    distance = ((places - centre + 0.5) * (1.0 / stretch)).abs()
    weights = torch.where(inside & (places >= 0), _cubic(distance), 0.0)
    weights = weights / weights.sum(1, keepdim=True)
    return (weights.abs() * _ONE + 0.5).floor() * weights.sign()


def _cubic(distance: Tensor) -> Tensor:
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def _to_8_bits(sums: Tensor) -> Tensor:
    return ((sums + _ONE / 2) / _ONE).floor().clamp(0, 255)
