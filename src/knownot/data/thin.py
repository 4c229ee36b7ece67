"""Photos that are too thin for a detector, which resizes a photo as a whole."""

from __future__ import annotations

from knownot.errors import DataError


def refuse_thin(size: tuple[int, int], longest_side: int, name: str) -> None:
    """Raise `DataError`, with the photo's name, if its shorter side, resized, would have no pixel.

    Args:
        size: Sides of the photo, pixels.
        longest_side: Pixels that its longer side has at most after the resize.
        name: What the error calls it.
    """
    least, most = sorted(size)
    if least * longest_side < 1.001 * most:  # the network rounds in float32
        raise DataError(
            f"{name}: {size[0]} x {size[1]} pixels is too thin, nothing is left of the shorter side "
            f"where the longer one has {longest_side}; cut the photo"
        )
