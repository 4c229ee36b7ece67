"""Boxes drawn into photos: colours at the edges, unknown ones told apart, odd input survived."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from knownot.evaluation.draw_boxes import UNKNOWN_COLOUR, DrawnBox, class_colour, draw_boxes

GREY = (90, 90, 90)
PALETTE = [class_colour(index) for index in range(6)]
# How a picture looks without the red, or without the green cones: Machado, Oliveira and Fernandes,
# "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009, severity 1.0.
PROTANOPIA = np.array(
    [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]
)
DEUTERANOPIA = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)


def known(box: tuple[float, ...], **changes: Any) -> DrawnBox:
    fields: dict[str, Any] = {
        "label": "cat",
        "is_unknown": False,
        "score": 0.93,
        "p_value": 0.41,
        "class_index": 0,
    }
    return DrawnBox(box=box, **(fields | changes))  # type: ignore[arg-type]


def unknown(box: tuple[float, ...], **changes: Any) -> DrawnBox:
    return known(box, **({"label": "unknown", "is_unknown": True, "p_value": 0.01} | changes))


def grey(width: int = 200, height: int = 150) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def edge(image: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    """Outermost pixels (K, 3) inside a box."""
    x1, y1, x2, y2 = box
    inside = pixels(image)[y1:y2, x1:x2]
    sides = (inside[0], inside[-1], inside[1:-1, 0], inside[1:-1, -1])
    return np.concatenate(sides)


def as_seen(colour: tuple[int, int, int], matrix: np.ndarray) -> np.ndarray:
    value = np.array(colour) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    seen = (matrix @ linear).clip(0, 1)
    return 255 * np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)


def luminance(colours: np.ndarray) -> np.ndarray:
    """Relative luminance of colours (..., 3) in [0, 255]."""
    return ((colours / 255) ** 2.2) @ np.array([0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("index", range(6))
def test_the_edge_of_a_known_box_has_the_colour_of_its_class(index: int) -> None:
    box = (40, 50, 160, 120)
    drawn = draw_boxes(grey(), [known(box, class_index=index)])
    assert (edge(drawn, box) == class_colour(index)).all()
    # Neither outside nor in the middle; the text is above the box.
    assert (pixels(drawn)[121:] == GREY).all()
    assert (pixels(drawn)[60:110, 50:150] == GREY).all()
    assert (pixels(drawn)[50:120, :40] == GREY).all()


def test_unknown_boxes_are_dashed_and_thicker() -> None:
    box = (40, 50, 160, 120)
    drawn = draw_boxes(grey(), [unknown(box)])
    dashes = (edge(drawn, box) == UNKNOWN_COLOUR).all(axis=1)
    assert 0.4 < dashes.mean() < 0.75
    assert (edge(drawn, box)[~dashes] == 255).all()
    thick = [
        int((pixels(draw_boxes(grey(), [b]))[50:120, 40:100] != GREY).any(axis=2)[35].sum())
        for b in (known(box), unknown(box))
    ]
    assert thick == [2, 3]


@pytest.mark.parametrize("side", [3, 4, 7, 12, 30, 100])
def test_an_unknown_box_shows_gaps_and_all_corners_however_small_it_is(side: int) -> None:
    box = (50, 20, 50 + side, 20 + side)
    drawn = draw_boxes(grey(), [unknown(box, label="", p_value=None)])
    dashes = (edge(drawn, box) == UNKNOWN_COLOUR).all(axis=1)
    assert 0.3 < dashes.mean() < 0.9
    for x, y in ((50, 20), (49 + side, 20), (50, 19 + side), (49 + side, 19 + side)):
        assert drawn.getpixel((x, y)) == UNKNOWN_COLOUR


def test_no_class_has_a_colour_near_that_of_unknown_ones() -> None:
    assert len(set(PALETTE)) == 6
    for colour in PALETTE:
        assert np.linalg.norm(np.subtract(colour, UNKNOWN_COLOUR)) > 100
        for matrix in (PROTANOPIA, DEUTERANOPIA):
            assert np.linalg.norm(as_seen(colour, matrix) - as_seen(UNKNOWN_COLOUR, matrix)) > 60


def test_colours_repeat_after_the_last_one() -> None:
    assert [class_colour(index) for index in range(6, 12)] == PALETTE
    assert class_colour(-1) == PALETTE[-1]
    assert UNKNOWN_COLOUR not in {class_colour(index) for index in range(100)}


def test_the_texts_say_label_score_and_p_value() -> None:
    assert known((0, 0, 9, 9)).numbers == "0.93 p=0.41"
    assert known((0, 0, 9, 9), p_value=None).numbers == "0.93"
    assert unknown((0, 0, 9, 9)).numbers == "p=0.01"
    assert unknown((0, 0, 9, 9), p_value=0.001).numbers == "p<0.01"
    assert unknown((0, 0, 9, 9), p_value=None).numbers == ""


@pytest.mark.parametrize("index", [*range(6), None])
def test_texts_are_readable_on_every_colour(index: int | None) -> None:
    box = (40, 50, 160, 120)
    drawn = known(box, class_index=index) if index is not None else unknown(box)
    colour = class_colour(index) if index is not None else UNKNOWN_COLOUR
    strip = pixels(draw_boxes(grey(), [drawn]))[30:50, 40:160]
    strip = strip[(strip != GREY).any(axis=2)]
    assert (strip == colour).all(axis=1).mean() > 0.4
    light = luminance(strip)
    ground = float(luminance(np.array(colour)))
    contrast = max((light.max() + 0.05) / (ground + 0.05), (ground + 0.05) / (light.min() + 0.05))
    assert contrast > 4  # WCAG asks for 4.5; hardly a pixel of a smoothed letter is full


@pytest.mark.parametrize(
    "box",
    [(0, 0, 200, 150), (0, 0, 20, 10), (180, 0, 200, 10), (0, 140, 20, 150), (180, 140, 200, 150)],
)
def test_the_strip_stays_inside_the_picture(box: tuple[int, int, int, int]) -> None:
    at_border = draw_boxes(grey(), [known(box, label="a cat on a mat")])
    in_middle = draw_boxes(grey(), [known((90, 70, 110, 80), label="a cat on a mat")])

    def letters(image: Image.Image) -> int:
        return int((pixels(image) == 255).all(axis=2).sum())

    assert letters(at_border) == letters(in_middle) > 50


def test_a_long_name_is_cut_and_its_numbers_stay() -> None:
    ends = []
    for label in ("a very long name " * 500, "a"):
        drawn = pixels(draw_boxes(grey(), [known((0, 60, 160, 120), label=label)]))
        letters = (drawn[45:60] == 255).all(axis=2)
        last = int(np.nonzero(letters.any(axis=0))[0].max())
        ends.append(drawn[45:60, last - 60 : last])
    # The numbers end both texts: the same pixels, moved.
    assert np.array_equal(*ends)


def test_unknown_boxes_are_drawn_on_top_whatever_the_order() -> None:
    box = (40, 50, 160, 120)
    both = [unknown(box), known(box)]
    first, second = draw_boxes(grey(), both), draw_boxes(grey(), both[::-1])
    assert first.tobytes() == second.tobytes()
    assert not (edge(first, box) == PALETTE[0]).all(axis=1).any()


def test_texts_of_boxes_side_by_side_do_not_cover_each_other() -> None:
    boxes = [known((60, 50, 90, 90), class_index=0), known((80, 50, 110, 90), class_index=1)]
    together = pixels(draw_boxes(grey(), boxes))
    for b, colour in zip(boxes, PALETTE, strict=False):
        alone = (pixels(draw_boxes(grey(), [b])) == colour).all(axis=2).sum()
        assert (together == colour).all(axis=2).sum() > 0.9 * alone


@pytest.mark.parametrize(
    "box",
    [
        (float("nan"), 0, 10, 10),
        (0, 0, float("inf"), 10),
        (float("-inf"), 0, 10, 10),
        (-50, -50, -10, -10),
        (200, 0, 300, 50),
        (50, 50, 50, 90),
        (90, 90, 50, 50),
    ],
)
@pytest.mark.parametrize("make", [known, unknown])
def test_boxes_that_show_nothing_leave_the_picture_alone(box: Any, make: Any) -> None:
    assert draw_boxes(grey(), [make(box)]).tobytes() == grey().tobytes()


def test_a_box_beyond_the_border_is_cut_there() -> None:
    drawn = draw_boxes(grey(), [known((-1e300, 50, 1e300, 120))])
    assert (edge(drawn, (0, 50, 200, 120)) == PALETTE[0]).all()


def test_a_large_picture_is_scaled_down_with_its_boxes() -> None:
    drawn = draw_boxes(grey(3200, 2000), [known((400, 800, 2400, 1600))])
    assert drawn.size == (1600, 1000)
    assert (edge(drawn, (200, 400, 1200, 800)) == PALETTE[0]).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "HSV"])
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 40), (16, 16), (5000, 1), (100, 80)])
def test_pictures_of_every_kind_are_drawn_on_and_left_alone(
    mode: str, size: tuple[int, int]
) -> None:
    image = Image.new(mode, size)
    before = image.tobytes()
    box = (0, 0, *size)
    drawn = draw_boxes(image, [known(box), unknown(box)])
    assert drawn.mode == "RGB"
    assert max(drawn.size) == min(max(size), 1600)
    assert drawn.getpixel((0, 0)) == UNKNOWN_COLOUR
    assert image.tobytes() == before
    assert image.mode == mode


def test_a_picture_without_boxes_is_a_copy() -> None:
    image = grey()
    drawn = draw_boxes(image, [])
    assert drawn is not image
    assert drawn.tobytes() == image.tobytes()
    assert draw_boxes(Image.new("RGB", (0, 5000)), [known((0, 0, 1, 1))]).size == (0, 5000)


@pytest.mark.parametrize("letter", ["ä", "é", "ß", "ł", "ж", "θ"])
def test_letters_of_european_scripts_are_in_the_font(letter: str) -> None:
    # U+10FFFF is in no font: it looks as every character does that is missing.
    drawn, missing = (
        draw_boxes(grey(), [known((10, 60, 190, 120), label=text)])
        for text in (letter, "\U0010ffff")
    )
    assert drawn.tobytes() != missing.tobytes()


@pytest.mark.parametrize(
    "label",
    ["", " ", "a\nb\tc", "\0", "\ud800", "日本語", "ἀ\u0301", "\u202eabc", "👨‍👩‍👧", "\u200b"],
)
def test_odd_names_do_not_raise(label: str) -> None:
    draw_boxes(grey(), [known((10, 60, 190, 120), label=label)])


coordinates = st.floats(-300, 500) | st.floats()
drawn_boxes = st.builds(
    DrawnBox,
    box=st.tuples(coordinates, coordinates, coordinates, coordinates),
    label=st.text(max_size=30),
    is_unknown=st.booleans(),
    score=st.floats(),
    p_value=st.none() | st.floats(),
    class_index=st.integers(),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(drawn_boxes, max_size=4), st.integers(1, 250), st.integers(1, 250))
def test_any_boxes_on_a_picture_of_any_size(boxes: list[DrawnBox], width: int, height: int) -> None:
    image = grey(width, height)
    drawn = draw_boxes(image, boxes)
    assert drawn.size == image.size
    assert image.tobytes() == grey(width, height).tobytes()


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_box_without_text_changes_only_its_own_edge(data: st.DataObject) -> None:
    x1, x2 = sorted(data.draw(st.lists(st.integers(0, 120), min_size=2, max_size=2, unique=True)))
    y1, y2 = sorted(data.draw(st.lists(st.integers(0, 90), min_size=2, max_size=2, unique=True)))
    drawn = pixels(draw_boxes(grey(120, 90), [unknown((x1, y1, x2, y2), label="", p_value=None)]))
    width = max(1, min(3, (x2 - x1) // 3, (y2 - y1) // 3))
    expected = np.zeros((90, 120), dtype=bool)
    expected[y1:y2, x1:x2] = True
    expected[y1 + width : max(y2 - width, 0), x1 + width : max(x2 - width, 0)] = False
    assert np.array_equal((drawn != GREY).any(axis=2), expected)


def test_a_small_picture_is_enlarged_with_its_boxes() -> None:
    box = DrawnBox((10.0, 10.0, 30.0, 20.0), "a", False, 0.5, None, 0)
    drawn = draw_boxes(Image.new("RGB", (60, 40)), [box], least_side=80)
    assert drawn.size == (120, 80)
    assert drawn.getpixel((20, 30)) == class_colour(0)  # the left edge, twice as far
    assert draw_boxes(Image.new("RGB", (3200, 4)), [], least_side=80).size == (1600, 2)
