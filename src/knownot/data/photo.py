"""Open one photo, whatever it is, or say in one sentence why it cannot be used."""

from __future__ import annotations

import functools
import io
import stat
import warnings
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from knownot.errors import DataError, PhotoFormatError, PhotoSizeError

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .avif .bmp .gif .tif .tiff .ppm".split()  # noqa: SIM905
)
# What a name with these suffixes may hold. Pillow would try all formats that it knows, whatever the name, and
# hand PostScript to another program.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF", "PPM")
MAX_PIXELS = 100_000_000
_STRIP = 2**20  # pixels
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF
_TAIL = 65_536  # bytes at the end of a PNG, where what follows its pixels is
_TURNED_BY_A_QUARTER = (5, 6, 7, 8)  # values of the EXIF orientation that swap width and height
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_photo(path: str | Path, at_least: int | None = None) -> Image.Image:
    """Decode a photo to RGB, upright.

    Grey, palette, CMYK, transparent (on white), 16-bit (scaled) and animated (first frame) files
    are converted. The pixel count is read from the header and refused before any pixel is decoded.

    Args:
        path: File to open.
        at_least: Shortest side in pixels that is needed; a JPEG may then be decoded at a fraction
            of its size, which is faster.

    Raises:
        DataError: If the file is missing, empty, damaged, not a photo, or larger than 100 megapixels.
    """
    path = Path(path)
    _refuse_pipe(path)
    try:
        return decode_photo(path, str(path), at_least)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None


def decode_photo(
    source: Path | IO[bytes],
    name: str,
    at_least: int | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] | None = None,
) -> Image.Image:
    """`open_photo` for a file or the bytes of one.

    Args:
        source: File to open, or an open one.
        name: What errors call it.
        at_least: As for `open_photo`.
        max_pixels: Limit of width times height.
        formats: Names of the formats that Pillow may try; those of `SUFFIXES` if not given.

    Raises:
        FileNotFoundError: If the file is missing.
        PhotoFormatError: If it is no photo of these formats.
        PhotoSizeError: If it has more pixels.
        DataError: If it is empty or damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source, formats=formats or _formats()) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise PhotoSizeError(
                        f"{name}: {width} x {height} pixels is more than the limit of "
                        f"{max_pixels / 1e6:g} megapixels; scale the photo down"
                    )
                # Tiles are decoded whole, however small the photo is.
                tiles = getattr(image, "tag_v2", {})
                if tiles.get(_TILE_WIDTH, 1) * tiles.get(_TILE_LENGTH, 1) > max_pixels:
                    raise PhotoSizeError(
                        f"{name}: tiles of more than the limit of {max_pixels / 1e6:g} megapixels; "
                        "save it anew"
                    )
                if at_least is not None and min(width, height) > at_least:
                    scale = at_least / min(width, height)
                    image.draft("RGB", (round(width * scale), round(height * scale)))
                image.load()
                return to_rgb(upright(image))
    except (DataError, FileNotFoundError):
        raise
    except Image.DecompressionBombError:
        raise PhotoSizeError(
            f"{name}: more pixels than the limit of {max_pixels / 1e6:g} megapixels; "
            "scale the photo down"
        ) from None
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        kind = DataError
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # its own text shows the object
            kind, reason = PhotoFormatError, "cannot identify the format"
        if _is_empty(source):
            kind, reason = DataError, "the file is empty"
        raise kind(f"{name}: not a readable photo ({reason}); repair or remove it") from None


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height that `open_photo` will give; reads the header, and what else a PNG may need.

    Raises:
        DataError: If the file is not a photo, or larger than `open_photo` takes.
    """
    _refuse_pipe(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=_formats()) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise PhotoSizeError(
                        f"{path}: {width} x {height} pixels is more than the limit of "
                        f"{MAX_PIXELS / 1e6:.0f} megapixels; scale the photo and its boxes down"
                    )
                if isinstance(image, PngImagePlugin.PngImageFile) and _exif_may_follow(path):
                    image.load()
                # The base class's getexif: that of PNG files would decode the photo. A TIFF's
                # orientation is in its size already.
                orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
                is_tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
    except PhotoSizeError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: not a readable photo ({reason}); repair or remove it") from None
    if orientation in _TURNED_BY_A_QUARTER and not is_tiff:
        return height, width
    return width, height


def upright(image: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation says that it is to be looked at."""
    # Pillow's own function writes all of EXIF anew, and fails over tags that are of no use here.
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if turn is None:
        return image
    upright = image.transpose(turn)
    for name in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"):
        upright.info.pop(name, None)  # they say that it is not
    return upright


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow image to 8-bit RGB: 16-bit is scaled, transparency laid on white.

    32-bit whole numbers to 255 are taken as they are, fractions to 1 as shares of white.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion clips at 255, which turns 16-bit photos white.
        values = np.asarray(image)
        scale, largest = 257.0, values.max(initial=0)
        if image.mode == "F" and largest <= 1:  # fractions
            scale = 1 / 255
        elif image.mode in ("F", "I") and largest <= 255:  # "I" has 32 bits; of 16 it is "I;16"
            scale = 1.0
        grey = np.empty(values.shape, np.uint8)
        for row, scaled in zip(
            values, grey, strict=True
        ):  # in float64 a photo is eight times as large
            scaled[:] = (row / np.float64(scale)).clip(0, 255).round()
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """In strips: whole, a photo would be in memory four times over."""
    whole = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        whole.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return whole


def small_jpeg(image: Image.Image, side: int, quality: int) -> bytes:
    """A JPEG file of an RGB photo and nothing else: no place, no camera, no comment.

    Args:
        image: The photo; scaled down in place.
        side: How many pixels it may be wide and high.
        quality: As Pillow counts it, up to 95.
    """
    image.thumbnail((side, side))
    image.info.clear()  # Pillow writes a comment that it read
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def is_photo_name(path: Path) -> bool:
    """Whether the file name ends like a photo and is not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)  # older ones lack AVIF


def _refuse_pipe(path: Path) -> None:
    """Raise `DataError` for what would keep its reader waiting for someone to write."""
    with suppress(OSError, ValueError):  # what is missing is told by whoever opens it
        kind = path.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise DataError(f"{path}: is no regular file")


def _exif_may_follow(png: Path) -> bool:
    """Whether a PNG may tell its orientation only after its pixels."""
    with png.open("rb") as file:
        file.seek(max(0, png.stat().st_size - _TAIL))
        return b"eXIf" in file.read()


def _is_empty(source: Path | IO[bytes]) -> bool:
    try:
        return (source.stat().st_size if isinstance(source, Path) else source.seek(0, 2)) == 0
    except (OSError, ValueError):  # ValueError: already closed
        return False
