"""Photos as a caller hands them over: paths, Pillow images, arrays, tensors, one or several."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from knownot.data.photo import to_rgb, upright
from knownot.errors import DataError


def as_list(photos: Any) -> Sequence[Any]:
    """The photos of one argument: a single one becomes a list of one, a stack (N, ...) one of N."""
    single = isinstance(photos, (str, bytes, bytearray, Path, Image.Image, Mapping))
    if single or hasattr(photos, "read"):
        return [photos]
    # An array of names, or a column of them, is several photos; one of pixels, one.
    of_pixels = isinstance(photos, np.ndarray) and photos.dtype.kind in "biuf"
    if (of_pixels or _is_tensor(photos)) and photos.ndim != 4:
        return [photos]
    if isinstance(photos, Sequence):
        return photos
    return list(photos) if isinstance(photos, Iterable) else [photos]


def to_pil(photo: Any) -> Image.Image:
    """An RGB Pillow image, upright, of a Pillow image, an array or a tensor.

    Raises:
        DataError: If it is none of these, or of an odd shape or type.
    """
    if isinstance(photo, Image.Image):
        try:
            photo.load()  # what a file says of its orientation may stand behind its pixels
            return to_rgb(upright(photo))
        except Exception as error:  # Pillow's decoders raise many types on damaged files
            raise DataError(f"image: cannot be decoded ({error})") from None
    if _is_tensor(photo):
        if photo.ndim != 3 or photo.shape[0] not in (1, 3):
            raise DataError(f"tensor: expected shape (3, H, W), got {tuple(photo.shape)}")
        pixels = photo.detach().cpu()
        if pixels.numel() == 0:
            raise DataError(f"tensor: has no pixel, shape {tuple(pixels.shape)}")
        low, high = float(pixels.min()), float(pixels.max())
        fractions = pixels.is_floating_point()
        # A resize with a cubic filter leaves the range by a little.
        least, most = (-0.1, 1.1) if fractions else (0, 255)
        if not least <= low <= high <= most or str(pixels.dtype) == "torch.bool":
            raise DataError(
                "tensor: expected fractions from 0 to 1 or integers from 0 to 255, before any "
                f"normalisation, got {pixels.dtype} from {low:g} to {high:g}"
            )
        if fractions:
            pixels = (pixels.clamp(0, 1) * 255).round()
        pixels = pixels.byte().permute(1, 2, 0)
        photo = (pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).numpy()
    if isinstance(photo, np.ndarray):
        channels = photo.shape[2:] or (1,)
        wrong = photo.ndim not in (2, 3) or channels not in ((1,), (3,), (4,))
        if wrong or photo.dtype != np.uint8 or photo.size == 0:
            raise DataError(
                f"array: expected uint8 of shape (H, W), (H, W, 3) or (H, W, 4), got {photo.dtype} "
                f"{photo.shape}"
            )
        if channels == (1,):
            photo = photo.reshape(photo.shape[:2])
        return to_rgb(Image.fromarray(photo))
    raise DataError(
        f"photo: expected a path, Pillow image, array or tensor, got {type(photo).__name__}"
    )


def _is_tensor(photo: Any) -> bool:
    # Who holds a tensor has loaded torch; everyone else need not wait for it.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(photo, torch.Tensor)
