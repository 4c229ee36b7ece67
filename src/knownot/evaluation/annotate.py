"""Copies of photos with the answer written below them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from knownot.data.photo import open_photo
from knownot.errors import DataError
from knownot.models.prediction import Prediction

_KNOWN, _UNKNOWN = (0, 114, 178), (213, 94, 0)
_MAX_SIDE = 1024


def save_annotated(prediction: Prediction, folder: Path) -> Path:
    """Write a JPEG copy of the photo with label, score and p-value on a strip below it.

    Returns:
        The copy's path; a number is added where photos of several folders share a name.

    Raises:
        DataError: If the folder cannot be written.
    """
    assert prediction.path is not None
    image = open_photo(prediction.path)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    size = max(14, image.width // 24)
    text = f"{prediction.label}  p = {prediction.p_value:.3f}  score = {prediction.ood_score:.2f}"
    font = ImageFont.load_default(size)
    width = max(image.width, int(font.getlength(text)) + size)
    canvas = Image.new("RGB", (width, image.height + 2 * size), "white")
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    colour = _UNKNOWN if prediction.is_unknown else _KNOWN
    draw.rectangle((0, image.height, width, canvas.height), fill=colour)
    draw.text((size // 2, image.height + size // 3), text, fill="white", font=font)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stem = Path(prediction.path).stem[:100]
        target, number = folder / f"{stem}.jpg", 1
        while target.exists():
            target, number = folder / f"{stem}-{number}.jpg", number + 1
        canvas.save(target, quality=90)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from None
    return target
