"""Copies of photos with the answer written below them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from knownot.data.photo import open_photo
from knownot.errors import DataError
from knownot.evaluation.draw_boxes import DrawnBox, draw_boxes
from knownot.models.prediction import DetectionPrediction, Prediction

_KNOWN, _UNKNOWN = (0, 114, 178), (213, 94, 0)
_MAX_SIDE = 1024
_LEAST_SIDE = 480


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
    return _write(canvas, prediction.path, folder)


def save_drawn(prediction: DetectionPrediction, classes: Sequence[str], folder: Path) -> Path:
    """Write a JPEG copy of the photo with its boxes drawn, unknown ones in a colour of their own.

    Args:
        prediction: Answer for the photo.
        classes: The model's class names, which pick the colours.
        folder: Where to.

    Returns:
        The copy's path; a number is added where photos of several folders share a name.

    Raises:
        DataError: If the folder cannot be written.
    """
    assert prediction.path is not None
    return _write(drawn(prediction, classes), prediction.path, folder)


def drawn(prediction: DetectionPrediction, classes: Sequence[str]) -> Image.Image:
    """The photo of an answer with its boxes drawn."""
    assert prediction.path is not None
    boxes = [
        DrawnBox(
            box=(found.box[0], found.box[1], found.box[2], found.box[3]),
            label=found.label,
            is_unknown=found.is_unknown,
            score=found.confidence,
            p_value=found.p_value,
            class_index=classes.index(found.nearest_class) if found.nearest_class else 0,
        )
        for found in prediction.boxes
    ]
    return draw_boxes(open_photo(prediction.path), boxes, least_side=_LEAST_SIDE)


def _write(image: Image.Image, photo: str, folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stem = Path(photo).stem[:100]
        target, number = folder / f"{stem}.jpg", 1
        while target.exists():
            target, number = folder / f"{stem}-{number}.jpg", number + 1
        image.save(target, quality=90)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from None
    return target
