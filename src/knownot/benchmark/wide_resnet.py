"""pytorch-ood's Wide ResNet, which tells its feature maps as timm's networks do."""

from __future__ import annotations

from collections.abc import Sequence

from pytorch_ood.model import WideResNet
from torch import Tensor, nn


class WideResNetFeatures(WideResNet):  # type: ignore[misc]
    """Maps images (N, 3, 32, 32) to features (N, 64 * width).

    Args:
        depth: Convolutions and last layer, 6 n + 4.
        width: Factor of the channels.
        dropout: Share of activations left out within blocks.
    """

    def __init__(self, depth: int, width: int, dropout: float) -> None:
        super().__init__(1, depth=depth, widen_factor=width, drop_rate=dropout)
        self.fc = nn.Identity()

    def forward_intermediates(
        self, images: Tensor, indices: Sequence[int] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The map before pooling (N, 64 * width, 8, 8), and those behind the three blocks."""
        maps = [self.conv1(images)]
        for block in (self.block1, self.block2, self.block3):
            maps.append(block(maps[-1]))
        last = self.relu(self.bn1(maps[-1]))
        return last, maps[1:] if indices is None else [maps[1 + i] for i in indices]

    def forward_head(self, last: Tensor) -> Tensor:
        """The map before pooling to features."""
        features: Tensor = self.forward_feature_maps(last)
        return features
