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
_SCAN, _MAX_SCANS = b"\xff\xda", 100


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
    if upload.data.startswith(b"\xff\xd8") and upload.data.count(_SCAN) > _MAX_SCANS:
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
