"""What a backbone sees before its last features: the mean of an earlier feature map.

The last features keep what tells the known classes apart; in a network trained from nothing they forget
most of the rest, and noise may look like a class to them. A map of finer resolution still has it. The
Mahalanobis distance reads both. Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution
Samples and Adversarial Attacks", NeurIPS 2018, section 2.2, weigh distances of every layer against each
other; one distance of two layers side by side has nothing to weigh, and sees what goes with what as well.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from knownot.core.energy import at_least_float32
from knownot.errors import ConfigError
from knownot.models.modes import evaluating

# How networks of timm, and others that look like them, answer a call that they cannot serve.
_REFUSALS = (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError)


class EarlierMap(BaseModel):
    """A feature map of a backbone that has timm's `forward_intermediates` and `forward_head`.

    Attributes:
        index: Its number among the maps of `forward_intermediates`.
        width: Its channels M.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: int = Field(ge=0, le=1000)
    width: int = Field(ge=1, le=100_000)


def find_earlier_map(backbone: nn.Module, image_size: int) -> EarlierMap | None:
    """The deepest map that is finer than the last one, for images of `image_size` pixels.

    None where a backbone tells no maps, or has them all at one resolution, as plain vision transformers do.
    """
    with evaluating(backbone), torch.no_grad():
        return _find(backbone, image_size)


def check_earlier_map(backbone: nn.Module, image_size: int, earlier: EarlierMap) -> None:
    """Raise `ConfigError` unless the backbone has this map."""
    with evaluating(backbone), torch.no_grad():
        widths = [one.shape[1] for one in _maps(backbone, image_size)]
    if widths[earlier.index : earlier.index + 1] != [earlier.width]:
        raise ConfigError(
            f"earlier_map: the backbone has maps of {widths} channels, number {earlier.index} is "
            f"to have {earlier.width}"
        )


def features_and_map(backbone: nn.Module, pixels: Tensor, earlier: EarlierMap) -> Tensor:
    """Last features and, behind them, the map's means (N, B + M) of normalised images (N, 3, S, S)."""
    features, (found,) = _last_and_maps(backbone, pixels, [earlier.index])
    means = at_least_float32(found).mean((2, 3)).to(features.dtype)
    return torch.cat([features, means], dim=1)


def _find(backbone: nn.Module, image_size: int) -> EarlierMap | None:
    maps = _maps(backbone, image_size)
    finer = [i for i, one in enumerate(maps) if one[0, 0].numel() > maps[-1][0, 0].numel()]
    if not finer:
        return None
    earlier = EarlierMap(index=finer[-1], width=maps[finer[-1]].shape[1])
    # Some networks of timm compute other last features on the way to single maps, or none.
    images = _probe(backbone, image_size)
    try:
        expected = backbone(images)
        found = features_and_map(backbone, images, earlier)[:, : -earlier.width]
    except _REFUSALS:
        return None
    same = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-5)
    return earlier if same else None


def _maps(backbone: nn.Module, image_size: int) -> list[Tensor]:
    """The feature maps of an image; none where the backbone does not tell them."""
    if not hasattr(backbone, "forward_intermediates"):
        return []
    try:
        return _last_and_maps(backbone, _probe(backbone, image_size), None)[1]
    except _REFUSALS:
        return []


def _probe(backbone: nn.Module, image_size: int) -> Tensor:
    like = next(backbone.parameters(), torch.zeros(()))
    ramp = torch.linspace(-1, 1, 3 * image_size**2, device=like.device, dtype=like.dtype)
    return ramp.view(1, 3, image_size, image_size)


def _last_and_maps(
    backbone: Any, pixels: Tensor, indices: list[int] | None
) -> tuple[Tensor, list[Tensor]]:
    last, maps = backbone.forward_intermediates(pixels, indices=indices)
    return backbone.forward_head(last), maps
