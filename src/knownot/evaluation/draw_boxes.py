"""Copies of photos with the detector's boxes drawn in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
# First and last pixel: left, top, right, bottom.
Area = tuple[int, int, int, int]

# Vermilion, which marks unknown photos as well (`annotate.py`).
UNKNOWN_COLOUR: Colour = (213, 94, 0)
# Okabe and Ito's palette, made for readers who tell few colours apart, without vermilion, the
# orange that is near it, and black, which vanishes in dark photos; and Paul Tol's indigo.
_CLASS_COLOURS: tuple[Colour, ...] = (
    (0, 114, 178),
    (240, 228, 66),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (51, 34, 136),
)
_MAX_SIDE = 1600
# Longer names fit into no picture of `_MAX_SIDE` pixels, and measuring them takes long.
_MAX_CHARACTERS = 300


@dataclass(frozen=True)
class DrawnBox:
    """One box and what is written at it.

    Attributes:
        box: Corners (x1, y1, x2, y2) in pixels of the picture.
        label: Class name, or "unknown" if `is_unknown`.
        is_unknown: Whether the object is unknown.
        score: Confidence of the detector, in [0, 1]; not written at unknown objects.
        p_value: Share of in-distribution objects that look at least as strange, or None.
        class_index: Index of the class, which picks the colour.
    """

    box: tuple[float, float, float, float]
    label: str
    is_unknown: bool
    score: float
    p_value: float | None
    class_index: int

    @property
    def numbers(self) -> str:
        """What is written after the label."""
        words = [] if self.is_unknown else [f"{self.score:.2f}"]
        if self.p_value is not None:
            # A p-value is never zero, and should not read as if it were.
            words.append("p<0.01" if self.p_value < 0.005 else f"p={self.p_value:.2f}")
        return " ".join(words)


def class_colour(index: int) -> Colour:
    """Colour of a class; the colours repeat, and `UNKNOWN_COLOUR` is none of them."""
    return _CLASS_COLOURS[index % len(_CLASS_COLOURS)]


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[DrawnBox],
    *,
    least_side: int = 1,
    most_side: int = _MAX_SIDE,
) -> Image.Image:
    """Draw boxes with label, score and p-value; unknown ones on top, in thick dashed lines.

    A box is cut at the border of the picture. One that lies outside of it, has no area or is not
    finite is left out. Text that does not fit is shortened, and left out if nothing of it fits.

    Args:
        image: The picture (W, H), in any mode.
        boxes: Boxes in pixels of `image`.
        least_side: Enlarge a picture whose shorter side is less than this, so that the text, which
            is drawn in pixels, hides less of it.
        most_side: Scale a picture down whose longer side is more than this.

    Returns:
        A new RGB picture, of at most `most_side` pixels on its longer side.
    """
    # torchvision's draw_bounding_boxes knows neither dashes nor clipping: it raises for a box whose
    # corners are swapped, and its text runs out of the picture.
    canvas = image.convert("RGB")
    if canvas is image:
        canvas = image.copy()
    if not all(image.size):
        return canvas
    if max(canvas.size) > most_side:
        canvas.thumbnail((most_side, most_side), Image.Resampling.LANCZOS)
    enlarge = min(least_side / min(canvas.size), most_side / max(canvas.size))
    if enlarge > 1:
        size = (round(canvas.width * enlarge), round(canvas.height * enlarge))
        canvas = canvas.resize(size, Image.Resampling.BICUBIC)
    scale = (canvas.width / image.width, canvas.height / image.height)
    placed = [(box, _pixels(box.box, scale, canvas.size)) for box in boxes]
    shown = [(box, area) for box, area in placed if area is not None]
    areas = [area for _, area in shown]
    texts: list[Area] = []
    draw = ImageDraw.Draw(canvas)
    for unknown in (False, True):
        group = [(box, area) for box, area in shown if box.is_unknown == unknown]
        for box, area in group:
            _outline(draw, area, box, max(2, max(canvas.size) // 300))
        # After the lines, so that none of the same kind runs through a text.
        for box, area in group:
            texts.extend(_strip(draw, area, box, canvas.size, texts, areas))
    return canvas


def _colour(box: DrawnBox) -> Colour:
    return UNKNOWN_COLOUR if box.is_unknown else class_colour(box.class_index)


def _pixels(box: Iterable[float], scale: tuple[float, float], size: tuple[int, int]) -> Area | None:
    """The pixels of a box, or None if it shows nothing."""
    x1, y1, x2, y2 = box
    if not all(isfinite(value) for value in (x1, y1, x2, y2)):
        return None
    ends = []
    for low, high, factor, length in ((x1, x2, scale[0], size[0]), (y1, y2, scale[1], size[1])):
        start, stop = max(low * factor, 0), min(high * factor, length)
        if stop <= start:
            return None
        first = min(round(start), length - 1)
        ends.append((first, max(first, round(stop) - 1)))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def _outline(draw: ImageDraw.ImageDraw, area: Area, box: DrawnBox, width: int) -> None:
    """Lines that lie inside the area, plain ones or thicker dashes."""
    left, top, right, bottom = area
    if box.is_unknown:
        width += max(1, width // 2)
    # A third, so that something of a small object is left to see.
    width = max(1, min(width, (right - left + 1) // 3, (bottom - top + 1) // 3))
    whole = [(left, right)], [(top, bottom)]
    if not box.is_unknown:
        _lines(draw, area, width, _colour(box), *whole)
        return
    # White in the gaps: vermilion alone is lost on bricks and on skin.
    _lines(draw, area, width, (255, 255, 255), *whole)
    dashes = _dashes(left, right, 4 * width), _dashes(top, bottom, 4 * width)
    _lines(draw, area, width, _colour(box), *dashes)


def _lines(
    draw: ImageDraw.ImageDraw,
    area: Area,
    width: int,
    colour: Colour,
    across: Iterable[tuple[int, int]],
    down: Iterable[tuple[int, int]],
) -> None:
    """Pieces of both horizontal (`across`) and of both vertical edges (`down`)."""
    # Filled bars: the outline that Pillow draws around an area of one row runs over into the next.
    left, top, right, bottom = area
    for start, stop in across:
        draw.rectangle((start, top, stop, top + width - 1), fill=colour)
        draw.rectangle((start, bottom - width + 1, stop, bottom), fill=colour)
    for start, stop in down:
        draw.rectangle((left, start, left + width - 1, stop), fill=colour)
        draw.rectangle((right - width + 1, start, right, stop), fill=colour)


def _dashes(first: int, last: int, length: int) -> list[tuple[int, int]]:
    """First and last pixel of each dash: as many dashes as gaps and one more, of equal length."""
    pixels = last - first + 1
    # At least two dashes, however small the box, if it has three pixels to show them.
    gaps = max(1, round(pixels / (2 * length))) if pixels >= 3 else 0
    parts = 2 * gaps + 1
    ends = [first + round(part * pixels / parts) for part in range(parts + 1)]
    return [(ends[part], ends[part + 1] - 1) for part in range(0, parts, 2)]


def _strip(
    draw: ImageDraw.ImageDraw,
    area: Area,
    box: DrawnBox,
    size: tuple[int, int],
    texts: Sequence[Area],
    areas: Sequence[Area],
) -> list[Area]:
    """Write the text on a filled strip at the box; the strip, or nothing if none fits.

    Args:
        draw: Where to draw.
        area: The box.
        box: What to write.
        size: Width and height of the picture.
        texts: Strips to keep clear of.
        areas: Boxes to keep clear of, if there is a choice.
    """
    points = min(32, max(11, max(size) // 45))
    font, margin, height = legible_font(points), points // 4, int(1.3 * points) + 1
    # A long name may be as long as its box, but should not cross half of a large picture.
    room = min(size[0], max(area[2] - area[0] + 1, size[0] // 2, 20 * points))
    text = _shortened(box, font, room - 2 * margin)
    if not text or height > size[1]:
        return []
    width = min(room, int(font.getlength(text)) + 1 + 2 * margin)

    def hidden(spot: Area) -> tuple[int, int]:
        return sum(_common(spot, text) for text in texts), sum(_common(spot, a) for a in areas)

    spot = min(_spots(area, width, height, size), key=hidden)
    draw.rectangle(spot, fill=_colour(box))
    middle = (spot[0] + margin, spot[1] + height / 2)
    draw.text(middle, text, fill=_readable_on(_colour(box)), font=font, anchor="lm")
    return [spot]


def _spots(area: Area, width: int, height: int, size: tuple[int, int]) -> list[Area]:
    """Places for a strip, best first: above the box, below it, and inside; all in the picture."""
    left, top, right, bottom = area
    lows = [top - height, bottom + 1, top, bottom + 1 - height]
    lows = [y for y in lows if 0 <= y <= size[1] - height]
    # None is left if the box, and all above and below it, is lower than the text.
    lows = lows or [min(top, size[1] - height)]
    starts = [min(max(x, 0), size[0] - width) for x in (left, right + 1 - width)]
    return [(x, y, x + width - 1, y + height - 1) for y in lows for x in starts]


@lru_cache(maxsize=32)
def legible_font(points: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """matplotlib's DejaVu Sans: Pillow's own font lacks even the letters of French and German."""
    try:
        path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        return ImageFont.truetype(str(path), points)
    except OSError:  # some Linux distributions package matplotlib without its fonts
        return ImageFont.load_default(points)


def _shortened(box: DrawnBox, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    """Label and numbers; the label loses its end, and then the numbers go, until it fits."""
    # Pillow would write a line break as two lines, which the strip has no room for.
    label = " ".join(box.label.split())
    for numbers in (box.numbers, ""):
        for kept in range(min(len(label), _MAX_CHARACTERS), 0, -1):
            start = label if kept == len(label) else label[:kept].rstrip() + "…"
            text = f"{start} {numbers}".rstrip()
            if font.getlength(text) <= room:
                return text
    return box.numbers if font.getlength(box.numbers) <= room else ""


def _readable_on(colour: Colour) -> str:
    """Black or white, whichever has the larger contrast by the formula of WCAG 2."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (v / 255 for v in colour)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # Contrast with white is 1.05 / (L + 0.05), with black (L + 0.05) / 0.05.
    return "white" if (luminance + 0.05) ** 2 < 1.05 * 0.05 else "black"


def _common(one: Area, other: Area) -> int:
    """Number of pixels that lie in both."""
    width = min(one[2], other[2]) - max(one[0], other[0]) + 1
    height = min(one[3], other[3]) - max(one[1], other[1]) + 1
    return max(width, 0) * max(height, 0)
