"""Copies of photos, and frames of videos, with the answer written or drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image, ImageDraw

from knownot.data.photo import open_photo
from knownot.errors import DataError
from knownot.evaluation.draw_boxes import UNKNOWN_COLOUR, DrawnBox, draw_boxes, legible_font
from knownot.models.prediction import DetectionPrediction, Prediction

_KNOWN = (0, 114, 178)
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
    strip = _strip(prediction, image.width)
    canvas = Image.new("RGB", (strip.width, image.height + strip.height), "white")
    canvas.paste(image, (0, 0))
    canvas.paste(strip, (0, image.height))
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
    boxes = _drawn_boxes(prediction, classes)
    return draw_boxes(open_photo(prediction.path), boxes, least_side=_LEAST_SIDE)


def annotated_frame(
    image: Image.Image, answer: Prediction | DetectionPrediction, classes: Sequence[str]
) -> Image.Image:
    """A frame of a video with its answer, in the frame's own size.

    Args:
        image: The frame, RGB.
        answer: Answer for it: boxes, drawn as in photos, or a label, on a strip over its bottom.
        classes: The model's class names, which pick the colours of boxes.
    """
    if isinstance(answer, DetectionPrediction):
        return draw_boxes(image, _drawn_boxes(answer, classes), most_side=max(image.size))
    canvas = image.copy()
    strip = _strip(answer, image.width)
    canvas.paste(strip, (0, max(0, image.height - strip.height)))
    return canvas


def _drawn_boxes(prediction: DetectionPrediction, classes: Sequence[str]) -> list[DrawnBox]:
    return [
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


def _strip(prediction: Prediction, width: int) -> Image.Image:
    """Label, score and p-value on a coloured strip of at least `width` pixels."""
    size = max(14, width // 24)
    text = f"{prediction.label}  p = {prediction.p_value:.3f}  score = {prediction.ood_score:.2f}"
    font = legible_font(size)
    width = max(width, int(font.getlength(text)) + size)
    colour = UNKNOWN_COLOUR if prediction.is_unknown else _KNOWN
    strip = Image.new("RGB", (width, 2 * size), colour)
    ImageDraw.Draw(strip).text((size // 2, size // 3), text, fill="white", font=font)
    return strip


def free_name(folder: Path, source: str, suffix: str) -> Path:
    """A file of `folder` that does not exist yet, named after `source`."""
    stem = Path(source).stem[:100]
    target = folder / f"{stem}{suffix}"
    if not target.exists():
        return target

    def numbered(number: int) -> Path:
        return folder / f"{stem}-{number}{suffix}"

    # Not one number after another: photos of many folders may all be called the same.
    free = 1
    while numbered(free).exists():
        free *= 2
    taken = free // 2
    while free - taken > 1:
        middle = (free + taken) // 2
        taken, free = (middle, free) if numbered(middle).exists() else (taken, middle)
    return numbered(free)


def _write(image: Image.Image, photo: str, folder: Path) -> Path:
    target = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = free_name(folder, photo, ".jpg")
        image.save(target, quality=90)
    except OSError as error:
        if target is not None:
            with suppress(OSError):  # half a picture, of a full disk
                target.unlink()
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from None
    return target
