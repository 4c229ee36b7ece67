"""The resize of the graph is Pillow's, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from knownot.data import square
from knownot.export.resize import centre_square

SHAPES = [(1, 1), (1, 9), (9, 1), (2, 3), (61, 47), (500, 375), (375, 500), (2000, 50), (50, 2000)]


@pytest.mark.parametrize("crop", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_graph_resizes_as_pillow_does(shape: tuple[int, int], crop: float) -> None:
    random = np.random.default_rng(0)
    smooth = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
    hard = ((smooth > 128) * 255).astype(np.uint8)
    photos = np.stack([smooth, hard])
    for size in (32, 97, 224):
        found = centre_square(torch.from_numpy(photos), size, crop).permute(0, 2, 3, 1).numpy()
        expected = [square.centre_square(Image.fromarray(photo), size, crop) for photo in photos]
        assert (found == np.stack(expected)).all()
