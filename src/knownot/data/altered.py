"""Photos altered until they show no class any more: outliers made of in-distribution photos.

They stand in for OOD photos where something must be chosen and no OOD photo may be seen. All seven of
Hendrycks, Mazeika, Dietterich, "Deep Anomaly Detection with Outlier Exposure", ICLR 2019, section
"validation data".
"""

from __future__ import annotations

import torch
from torch import Tensor

ALTERATIONS = (
    "uniform noise",
    "arithmetic mean",
    "geometric mean",
    "jigsaw",
    "speckle",
    "RGB ghosts",
    "inverted",
)
_TILES = 4
_GHOST_SHIFT = 0.1  # of the width
_SPECKLE = 0.6


def alter(name: str, photos: Tensor, seed: int) -> Tensor:
    """Photos (N, 3, H, W), uint8, altered by one of `ALTERATIONS`; the same shape, float32.

    The means mix photos of the same call, one alone with itself turned upside down. A side that four
    tiles do not divide keeps its last pixels.

    Raises:
        ValueError: If the name is unknown.
    """
    generator = torch.Generator().manual_seed(seed)
    x = photos.float()
    number, _, height, width = x.shape
    if name == "uniform noise":
        return 255 * torch.rand(x.shape, generator=generator)
    if name in ("arithmetic mean", "geometric mean"):
        order = torch.randperm(number, generator=generator)
        other = x.clone()
        other[order] = x[order.roll(1)]  # of no photo itself
        if number == 1:
            other = x.flip(2, 3)
        return (x + other) / 2 if name == "arithmetic mean" else (x * other).sqrt()
    if name == "jigsaw":
        tall, wide = height // _TILES, width // _TILES
        cut = x[..., : tall * _TILES, : wide * _TILES]
        tiles = cut.reshape(number, 3, _TILES, tall, _TILES, wide).permute(0, 2, 4, 1, 3, 5)
        tiles = tiles.reshape(number, _TILES**2, 3, tall, wide)
        order = torch.rand(number, _TILES**2, generator=generator).argsort(1)
        tiles = tiles.gather(1, order[:, :, None, None, None].expand_as(tiles))
        tiles = tiles.reshape(number, _TILES, _TILES, 3, tall, wide).permute(0, 3, 1, 4, 2, 5)
        x[..., : tall * _TILES, : wide * _TILES] = tiles.reshape(cut.shape)
        return x
    if name == "speckle":
        return (x * (1 + _SPECKLE * torch.randn(x.shape, generator=generator))).clamp(0, 255)
    if name in ("RGB ghosts", "inverted"):
        shift = round(_GHOST_SHIFT * width)
        moved = [x[:, c].roll((c - 1) * shift, dims=2) for c in range(3)]
        if name == "inverted":
            return 255 - torch.stack(moved, dim=1)
        return torch.stack([moved[1], moved[2], moved[0]], dim=1)
    raise ValueError(f"name: expected one of {ALTERATIONS}, got {name!r}")
