"""The centre square: against Pillow's own single call, and in shapes that are far from square."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from knownot.data.square import centre_square, least_side


def noise(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(1, 1), (40, 40), (75, 100), (30, 900), (1, 50), (224, 301)])
def test_wide_photos_are_what_one_call_of_pillow_makes(size: tuple[int, int]) -> None:
    image = noise(*size)
    side = max(1.0, min(size) * 0.875)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    once = np.array(image.resize((40, 40), Image.Resampling.BICUBIC, box=box))
    assert (centre_square(image, 40, 0.875) == once).all()


def test_tall_photos_are_cut_as_wide_ones_are() -> None:
    tall = noise(400, 60)
    wide = tall.transpose(Image.Transpose.TRANSPOSE)
    turned = centre_square(wide, 48, 0.9).swapaxes(0, 1).astype(int)
    straight = centre_square(tall, 48, 0.9)
    # The order of the passes differs, and with it where sums beyond 0 or 255 are cut off.
    assert np.abs(straight - turned).mean() < 1


def test_a_photo_like_a_thread_takes_no_memory() -> None:
    assert centre_square(Image.new("RGB", (1, 3_000_000), "red"), 64, 1.0).shape == (64, 64, 3)
    assert centre_square(Image.new("RGB", (3_000_000, 1), "red"), 64, 1.0)[0, 0].tolist() == [
        255,
        0,
        0,
    ]


def test_a_square_that_is_ready_stays_as_it_is() -> None:
    image = noise(32, 32)
    assert (centre_square(image, 32, 1.0) == np.array(image)).all()


def test_a_photo_of_the_least_side_is_only_ever_shrunk() -> None:
    assert least_side(224, 0.875) * 0.875 > 224
