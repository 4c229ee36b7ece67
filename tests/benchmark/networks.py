"""Small networks of red and green, trained by a plain loop, and sets of images for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.helpers import COLOURS, pixels, tiny_backbone

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
Sets = dict[str, list]


def normalised(photos: Tensor) -> Tensor:
    return (photos.float() / 255 - MEAN[0]) / STD[0]


def colours(count: int, start: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of red and green images with their labels."""
    parts = [pixels(count, c, start + 1000 * k) for k, c in enumerate(COLOURS.values())]
    labels = torch.arange(2).repeat_interleave(count)
    order = torch.randperm(2 * count, generator=torch.Generator().manual_seed(start))
    images = normalised(torch.cat(parts))
    return [(images[some], labels[some]) for some in order.split(16)]


def trained(seed: int) -> nn.Module:
    network = nn.Sequential(tiny_backbone(seed), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(10):
        for images, labels in colours(30, 0):
            loss = nn.functional.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()
