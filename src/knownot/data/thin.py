"""Photos that are too thin for a detector, which resizes a photo as a whole."""

from __future__ import annotations

from knownot.errors import DataError


def longest_side(image_size: int) -> int:
    """Longest side in pixels of a photo whose shorter side becomes `image_size`."""
    return image_size * 5 // 3  # torchvision's 800 x 1333


def refuse_thin(size: tuple[int, int], image_size: int, name: str) -> None:
    """Raise `DataError`, with the photo's name, if the shorter side, resized, would have no pixel."""
    least, most = sorted(size)
    if least * longest_side(image_size) < 1.001 * most:  # the network rounds in float32
        raise DataError(
            f"{name}: {size[0]} x {size[1]} pixels is too thin, nothing is left of the shorter side "
            f"where the longer one has {longest_side(image_size)}; cut the photo"
        )
