"""Small rendered scenes with boxes in COCO form: four known shapes, three that are held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

KNOWN_SHAPES = ("disc", "square", "triangle", "ring")
UNKNOWN_SHAPES = ("star", "cross", "crescent")
SPLITS = ("train", "val", "test", "ood")

# With gaps and not in the order of the names, as in COCO itself: a reader that takes the ids for
# indices fails on these scenes.
_CATEGORY_IDS = {
    "disc": 7,
    "square": 3,
    "triangle": 18,
    "ring": 44,
    "star": 21,
    "cross": 62,
    "crescent": 5,
}
_SMALLEST, _LARGEST = 18 / 160, 70 / 160  # of the scene's side
_MIN_SIDE, _MIN_OBJECT = 64, 12
_OVERSAMPLING = 3
# Share of the smaller of two tiles. It keeps the IoU of the boxes below 0.2, and unlike an IoU it
# does not let a large object hide a small one.
_MAX_OVERLAP = 0.15
_TRIES = 200
_VISIBLE = 128  # of 255: the pixels that the shape covers to at least one half


@dataclass(frozen=True)
class Scene:
    """A picture and what it shows.

    Attributes:
        image: The picture (S, S), RGB.
        shapes: Name of each object's shape, from the one at the back to the one in front.
        masks: Visible pixels of each object (B, S, S), bool.
    """

    image: Image.Image
    shapes: tuple[str, ...]
    masks: np.ndarray

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Tight box (x1, y1, x2, y2) around each object's visible pixels."""
        boxes = [Image.fromarray(mask).getbbox() for mask in self.masks]
        # `_place` keeps most of every object visible, so that no mask is empty.
        return [box for box in boxes if box is not None]


def write_scenes(
    root: Path,
    *,
    train: int = 240,
    val: int = 80,
    test: int = 80,
    ood: int = 80,
    side: int = 160,
    seed: int = 0,
) -> Path:
    """Render scenes to `root/images` and their boxes to `root/annotations/<split>.json`.

    `train`, `val` and `test` show known shapes only. Each scene of `ood` shows one or two of the
    held-out shapes, and most show known ones as well. A scene depends on its split, its number,
    `side` and `seed` alone: asking for more scenes leaves the others as they were.

    Args:
        root: Folder to write to; it is created, and files of the same name are replaced.
        train: Number of scenes to train on.
        val: Number of scenes to calibrate on.
        test: Number of scenes to measure on.
        ood: Number of scenes with held-out shapes.
        side: Width and height in pixels, at least 64.
        seed: A number of at least 0; equal seeds give equal files.

    Returns:
        `root`.

    Raises:
        ValueError: If a number of scenes or `seed` is negative, or `side` is below 64.
        OSError: If the folder cannot be written.
    """
    counts = dict(zip(SPLITS, (train, val, test, ood), strict=True))
    for split, count in counts.items():
        if count < 0:
            raise ValueError(f"{split}: expected a number of scenes of at least 0, got {count}")
    for folder in ("images", "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        scenes = {}
        for index in range(count):
            scene = render_scene(split, index, side=side, seed=seed)
            name = f"{split}_{index:04d}.jpg"
            scene.image.save(root / "images" / name, quality=90)
            scenes[name] = scene
        text = json.dumps(_as_coco(scenes, split), indent=1)
        (root / "annotations" / f"{split}.json").write_text(text, encoding="utf-8")
    return root


def render_scene(split: str, index: int, *, side: int = 160, seed: int = 0) -> Scene:
    """The scene that `write_scenes` writes as number `index` of a split.

    Raises:
        ValueError: If `split` is none of `SPLITS`, or `side` is below 64.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    random = np.random.default_rng([seed, SPLITS.index(split), index])
    return draw_scene(_choose_shapes(split, index, random), side, random)


def draw_scene(shapes: Sequence[str], side: int, random: np.random.Generator) -> Scene:
    """Draw `shapes` at random places, in random sizes, colours and order, on a random background.

    A shape for which no place is left is left out; the first one is always drawn.

    Raises:
        ValueError: If `side` is below 64.
    """
    if side < _MIN_SIDE:
        raise ValueError(f"side: expected at least {_MIN_SIDE} pixels, got {side}")
    canvas = _background(side, random)
    placed = _place(shapes, side, random)
    # The first shape is the one that every scene of a split needs; it should not always lie at
    # the back.
    placed = [placed[i] for i in random.permutation(len(placed))]
    masks = np.zeros((len(placed), side, side), dtype=bool)
    for number, (_, alpha, left, top) in enumerate(placed):
        area = np.s_[top : top + len(alpha), left : left + len(alpha)]
        cover = alpha[..., None] / 255
        canvas[area] = cover * _surface(len(alpha), random) + (1 - cover) * canvas[area]
        visible = alpha >= _VISIBLE
        masks[(slice(None), *area)] &= ~visible
        masks[(number, *area)] = visible
    image = Image.fromarray(canvas.clip(0, 255).round().astype(np.uint8))
    return Scene(image, tuple(shape for shape, *_ in placed), masks)


def _as_coco(scenes: dict[str, Scene], split: str) -> dict[str, Any]:
    names = KNOWN_SHAPES + UNKNOWN_SHAPES if split == "ood" else KNOWN_SHAPES
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for file, scene in scenes.items():
        width, height = scene.image.size
        image_id = len(images) + 1
        images.append({"id": image_id, "file_name": file, "width": width, "height": height})
        for shape, mask, box in zip(scene.shapes, scene.masks, scene.boxes, strict=True):
            x1, y1, x2, y2 = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": _CATEGORY_IDS[shape],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": _CATEGORY_IDS[name], "name": name} for name in names]
    return {"images": images, "annotations": annotations, "categories": categories}


def _choose_shapes(split: str, index: int, random: np.random.Generator) -> list[str]:
    """One to four shapes; the first one takes turns, so that every split shows all of its shapes."""
    if split != "ood":
        others = random.choice(KNOWN_SHAPES, size=random.integers(0, 4))
        return [KNOWN_SHAPES[index % len(KNOWN_SHAPES)], *map(str, others)]
    unknown = random.choice(UNKNOWN_SHAPES, size=random.choice(2, p=[0.7, 0.3]))
    known = random.choice(KNOWN_SHAPES, size=random.choice(3, p=[0.2, 0.4, 0.4]))
    first = UNKNOWN_SHAPES[index % len(UNKNOWN_SHAPES)]
    return [first, *map(str, unknown), *map(str, known)]


def _place(
    shapes: Sequence[str], side: int, random: np.random.Generator
) -> list[tuple[str, np.ndarray, int, int]]:
    """Each shape with its tile of opacity (T, T), uint8, and the tile's left and top pixel."""
    placed: list[tuple[str, np.ndarray, int, int]] = []
    for shape in shapes:
        for _ in range(_TRIES):
            size = max(_MIN_OBJECT, side * random.uniform(_SMALLEST, _LARGEST))
            width = int(np.ceil(size)) + 2
            left, top = (int(start) for start in random.integers(0, side - width + 1, size=2))
            if all(
                _overlap((left, top, width), (x, y, len(tile))) < _MAX_OVERLAP
                for _, tile, x, y in placed
            ):
                alpha = _opacity(shape, size, width, random.uniform(0, 2 * np.pi))
                placed.append((shape, alpha, left, top))
                break
    return placed


def _overlap(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Common area of two squares (left, top, width), as a share of the smaller one."""
    sides = [
        min(one[axis] + one[2], other[axis] + other[2]) - max(one[axis], other[axis])
        for axis in (0, 1)
    ]
    return max(sides[0], 0) * max(sides[1], 0) / min(one[2], other[2]) ** 2


def _opacity(shape: str, size: float, width: int, angle: float) -> np.ndarray:
    """Anti-aliased tile (width, width), uint8, of a turned shape whose longer side is `size`."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    loops = [loop @ turn for loop in _outline(shape)]
    low, high = loops[0].min(0), loops[0].max(0)
    scale = size / (high - low).max()
    tile = Image.new("L", (width * _OVERSAMPLING,) * 2)
    for loop, fill in zip(loops, (255, 0), strict=False):
        corners = ((loop - (low + high) / 2) * scale + width / 2) * _OVERSAMPLING
        # Pillow counts from the middle of a pixel, the outline from its corner.
        ImageDraw.Draw(tile).polygon([(x, y) for x, y in corners - 0.5], fill=fill)
    return np.asarray(tile.resize((width, width), Image.Resampling.LANCZOS))


def _outline(shape: str) -> list[np.ndarray]:
    """Corners (K, 2) around the origin; a second loop is a hole."""
    if shape == "disc":
        return [_arc(0, 2 * np.pi)]
    if shape == "ring":
        return [_arc(0, 2 * np.pi), 0.55 * _arc(0, 2 * np.pi)]
    if shape == "square":
        return [_arc(0, 2 * np.pi, corners=4)]
    if shape == "triangle":
        return [_arc(0, 2 * np.pi, corners=3)]
    if shape == "star":
        radius = np.tile([1.0, 0.42], 5)[:, None]
        return [radius * _arc(0, 2 * np.pi, corners=10)]
    if shape == "cross":
        quarter = np.array([[0.3, 1.0], [0.3, 0.3], [1.0, 0.3]])
        turns = [np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        # Going round the quarters clockwise, so that their corners follow each other.
        return [np.concatenate([quarter @ turn.T for turn in turns])]
    # The crescent: the unit circle without a circle of radius 0.85 whose centre is 0.5 to the
    # right. The two meet where x is 0.5275.
    distance, radius_inside = 0.5, 0.85
    x = (1 + distance**2 - radius_inside**2) / (2 * distance)
    y = np.sqrt(1 - x**2)
    outer, inner = np.arctan2(y, x), np.arctan2(y, x - distance)
    inside = radius_inside * _arc(2 * np.pi - inner, inner) + [distance, 0]
    return [np.concatenate([_arc(outer, 2 * np.pi - outer), inside])]


def _arc(start: float, stop: float, corners: int = 64) -> np.ndarray:
    """Points (corners, 2) of the unit circle from one angle up to another."""
    angles = np.linspace(start, stop, corners, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _background(side: int, random: np.random.Generator) -> np.ndarray:
    """A dark mixture (side, side, 3) of a photo and smooth noise, float in [0, 255]."""
    photos = _photos()
    photo = photos[random.integers(len(photos))]
    width = int(random.integers(120, min(photo.size)))
    left, top = (int(random.integers(0, size - width + 1)) for size in photo.size)
    crop = photo.resize((side, side), box=(left, top, left + width, top + width))
    share = random.uniform(0.0, 0.9)
    smooth = _noise(side, int(random.integers(3, 9)), random)
    mixed = share * np.asarray(crop, dtype=float) + (1 - share) * smooth
    # Dimmed, so that the objects, which are bright, stand out from it.
    dark: np.ndarray = random.uniform(0.35, 0.6) * mixed + random.normal(0, 4, mixed.shape)
    return dark


def _surface(width: int, random: np.random.Generator) -> np.ndarray:
    """A bright colour (width, width, 3), shaded to one side and with some texture, in [0, 255]."""
    hue, saturation, value = random.uniform((0, 90, 190), (256, 230, 256)).astype(int)
    pixel = Image.new("HSV", (1, 1), (int(hue), int(saturation), int(value))).convert("RGB")
    colour = np.asarray(pixel, dtype=float)[0, 0]
    angle = random.uniform(0, 2 * np.pi)
    axis = np.linspace(-1, 1, width)
    slope = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    texture = _noise(width, max(3, width // 4), random).mean(axis=2) / 255 - 0.5
    light = 0.95 + 0.2 * slope + 0.35 * texture
    surface: np.ndarray = colour * light[..., None] + random.normal(0, 5, (width, width, 3))
    return surface


def _noise(side: int, cells: int, random: np.random.Generator) -> np.ndarray:
    """Smooth colour noise (side, side, 3) of `cells` bumps a side, float in [0, 255]."""
    coarse = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=float)


@lru_cache(maxsize=1)
def _photos() -> list[Image.Image]:
    """The two photos that scikit-learn ships."""
    return [Image.fromarray(photo) for photo in load_sample_images().images]
