"""The bytes of a stranger as a photo, or a refusal."""

from __future__ import annotations

import io

from PIL import Image

from knownot.data.photo import decode_photo
from knownot.errors import DataError, PhotoFormatError, PhotoSizeError
from knownot.serve.refused import RefusedError
from knownot.serve.uploads import Upload

# Pillow reads many more, some by starting other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_NAMED = "JPEG, PNG, WebP, GIF, BMP or TIFF"
# A progressive JPEG has about ten scans. Each goes over the whole photo and may take 60 bytes of file:
# one upload could keep a decoder busy for half an hour.
_MAX_SCANS = 100
_SCAN, _END, _FILL = 0xDA, 0xD9, 0xFF
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xD9)}


def decode(upload: Upload, at_least: int | None, max_pixels: int) -> Image.Image:
    """Decode to RGB, upright, as `open_photo` does; takes long, so call it in a thread.

    Args:
        upload: The photo.
        at_least: Shortest side in pixels that is needed; None for all of it.
        max_pixels: Limit of width times height.

    Raises:
        RefusedError: 415 if it is no photo of these formats, 413 if it has too many pixels, 422 if it
            is empty or damaged.
    """
    name = upload.name
    if upload.data.startswith(b"\xff\xd8") and _scans(upload.data) > _MAX_SCANS:
        raise RefusedError(
            422, "unreadable_photo", f"{name}: more than {_MAX_SCANS} scans; save it anew"
        )
    try:
        return decode_photo(
            io.BytesIO(upload.data), name, at_least, max_pixels=max_pixels, formats=FORMATS
        )
    except PhotoFormatError:
        message = f"{name}: not a {_NAMED} photo, or too damaged to tell"
        raise RefusedError(415, "unsupported_photo", message) from None
    except PhotoSizeError as error:
        raise RefusedError(413, "too_many_pixels", str(error)) from None
    except DataError as error:
        raise RefusedError(422, "unreadable_photo", str(error)) from None


def _scans(jpeg: bytes) -> int:
    """Number of scans up to the end of the picture: phones put a video behind it, whose bytes are any."""
    scans, at = 0, 2
    while 0 <= (at := jpeg.find(_FILL.to_bytes(), at)) < len(jpeg) - 1:
        marker = jpeg[at + 1]
        if marker == _END or scans > _MAX_SCANS:
            break
        if marker == _FILL:
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        else:
            scans += marker == _SCAN
            at += 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    return scans
