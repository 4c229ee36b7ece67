"""The centre of a photo as a square of a given side: the one resize that every path shares."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Reach of Pillow's bicubic filter to each side, in output pixels (in input pixels when enlarging).
REACH = 2.0


def centre_square(image: Image.Image, size: int, crop: float) -> NDArray[np.uint8]:
    """Centre square of `crop` of the shorter side, resized with antialiasing.

    Along the width first, then along the height, each pass rounded to 8 bits. Pillow does the same
    in one call, but from version 13 on takes tall photos the other way round, which rounds
    differently: said pass by pass, the pixels are the same under every version, and in a graph.

    Args:
        image: RGB image.
        size: Side S of the result, in pixels.
        crop: Share of the shorter side that is kept, in (0, 1]; at least one pixel is.

    Returns:
        Pixels (S, S, 3), uint8.
    """
    width, height = image.size
    side = max(1.0, min(width, height) * crop)
    left, top = (width - side) / 2, (height - side) / 2
    # Only the rows that the second pass reads: a 1 x 8000 photo is never blown up in full.
    reach = REACH * max(1.0, side / size) + 1
    first, last = max(0, math.floor(top - reach)), min(height, math.ceil(top + side + reach))
    if (first, last) != (0, height):
        image = image.crop((0, first, width, last))
    bicubic = Image.Resampling.BICUBIC
    image = image.resize((size, last - first), bicubic, box=(left, 0, left + side, last - first))
    top -= first
    return np.array(image.resize((size, size), bicubic, box=(0, top, size, top + side)))


def least_side(size: int, crop: float) -> int:
    """Shorter side in pixels from which `centre_square` only ever shrinks a photo."""
    return int(size / crop) + 1
