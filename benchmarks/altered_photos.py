"""Photos altered until they show no class any more: outliers made of in-distribution photos.

All seven of Hendrycks, Mazeika, Dietterich, "Deep Anomaly Detection with Outlier Exposure", ICLR
2019, section "validation data", which choose settings there instead of OOD data.
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
_GHOST_SHIFT = 0.1  # of the side
_SPECKLE = 0.6


def alter(name: str, photos: Tensor, seed: int) -> Tensor:
    """Photos (N, 3, S, S), uint8, altered by one of `ALTERATIONS`; the same shape, float32."""
    generator = torch.Generator().manual_seed(seed)
    x = photos.float()
    number, _, side, _ = x.shape
    if name == "uniform noise":
        return 255 * torch.rand(x.shape, generator=generator)
    if name in ("arithmetic mean", "geometric mean"):
        other = x[torch.randperm(number, generator=generator)]
        return (x + other) / 2 if name == "arithmetic mean" else (x * other).sqrt()
    if name == "jigsaw":
        tile = side // _TILES
        cut = x[..., : tile * _TILES, : tile * _TILES]
        tiles = cut.reshape(number, 3, _TILES, tile, _TILES, tile).permute(0, 2, 4, 1, 3, 5)
        tiles = tiles.reshape(number, _TILES**2, 3, tile, tile)
        order = torch.rand(number, _TILES**2, generator=generator).argsort(1)
        tiles = tiles.gather(1, order[:, :, None, None, None].expand_as(tiles))
        tiles = tiles.reshape(number, _TILES, _TILES, 3, tile, tile).permute(0, 3, 1, 4, 2, 5)
        x[..., : tile * _TILES, : tile * _TILES] = tiles.reshape(cut.shape)
        return x
    if name == "speckle":
        return (x * (1 + _SPECKLE * torch.randn(x.shape, generator=generator))).clamp(0, 255)
    if name in ("RGB ghosts", "inverted"):
        shift = round(_GHOST_SHIFT * side)
        moved = [x[:, c].roll((c - 1) * shift, dims=2) for c in range(3)]
        if name == "inverted":
            return 255 - torch.stack(moved, dim=1)
        return torch.stack([moved[1], moved[2], moved[0]], dim=1)
    raise ValueError(f"name: expected one of {ALTERATIONS}, got {name!r}")
