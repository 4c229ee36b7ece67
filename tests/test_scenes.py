"""Rendered scenes: valid COCO files, tight boxes, held-out shapes held out, equal seeds equal."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou, masks_to_boxes

from knownot.demo.scenes import (
    KNOWN_SHAPES,
    SPLITS,
    UNKNOWN_SHAPES,
    draw_scene,
    render_scene,
    write_scenes,
)

COUNTS = {"train": 12, "val": 4, "test": 4, "ood": 12}
SEED = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), **COUNTS, seed=SEED)


def read(root: Path, split: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((root / "annotations" / f"{split}.json").read_text())
    return data


def shapes_by_image(data: dict[str, Any]) -> dict[int, list[str]]:
    names = {category["id"]: category["name"] for category in data["categories"]}
    shapes: dict[int, list[str]] = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        shapes[annotation["image_id"]].append(names[annotation["category_id"]])
    return shapes


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("split", SPLITS)
def test_the_pictures_are_there_in_the_size_that_the_file_says(root: Path, split: str) -> None:
    images = read(root, split)["images"]
    assert len(images) == COUNTS[split]
    assert len({image["id"] for image in images}) == len(images)
    for number, image in enumerate(images):
        assert image["file_name"] == f"{split}_{number:04d}.jpg"
        with Image.open(root / "images" / image["file_name"]) as picture:
            picture.load()
            assert picture.format == "JPEG"
            assert picture.size == (image["width"], image["height"]) == (160, 160)


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_lie_inside_and_ids_refer_to_something(root: Path, split: str) -> None:
    data = read(root, split)
    images = {image["id"] for image in data["images"]}
    categories = {category["id"] for category in data["categories"]}
    assert len({annotation["id"] for annotation in data["annotations"]}) == len(data["annotations"])
    for annotation in data["annotations"]:
        x, y, width, height = annotation["bbox"]
        assert x >= 0
        assert y >= 0
        assert x + width <= 160
        assert y + height <= 160
        assert min(width, height) >= 5
        assert 0 < annotation["area"] <= width * height
        assert annotation["iscrowd"] == 0
        assert annotation["image_id"] in images
        assert annotation["category_id"] in categories


def test_category_ids_are_neither_indices_nor_in_order_and_agree_between_files(root: Path) -> None:
    known = [category["id"] for category in read(root, "train")["categories"]]
    assert sorted(known) != list(range(len(known)))
    assert sorted(known) != list(range(1, len(known) + 1))
    assert known != sorted(known)
    for split in ("val", "test", "ood"):
        assert [category["id"] for category in read(root, split)["categories"]][:4] == known


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_held_out_shapes_stay_out_and_every_known_one_is_shown(root: Path, split: str) -> None:
    data = read(root, split)
    assert [category["name"] for category in data["categories"]] == list(KNOWN_SHAPES)
    shapes = shapes_by_image(data)
    assert {shape for found in shapes.values() for shape in found} == set(KNOWN_SHAPES)
    assert all(1 <= len(found) <= 4 for found in shapes.values())


def test_every_ood_scene_shows_a_held_out_shape_and_most_show_a_known_one(root: Path) -> None:
    shapes = list(shapes_by_image(read(root, "ood")).values())
    unknown = [[shape for shape in found if shape in UNKNOWN_SHAPES] for found in shapes]
    assert all(unknown)
    assert {shape for found in unknown for shape in found} == set(UNKNOWN_SHAPES)
    assert sum(len(found) > len(u) for found, u in zip(shapes, unknown, strict=True)) > 6
    assert all(1 <= len(found) <= 4 for found in shapes)


@pytest.mark.parametrize("split", SPLITS)
def test_written_boxes_are_tight_around_the_visible_pixels(root: Path, split: str) -> None:
    data = read(root, split)
    for number, image in enumerate(data["images"]):
        scene = render_scene(split, number, seed=SEED)
        found = [a for a in data["annotations"] if a["image_id"] == image["id"]]
        assert shapes_by_image(data)[image["id"]] == list(scene.shapes)
        # torchvision's boxes end at the last pixel, COCO's behind it.
        first_last = masks_to_boxes(torch.from_numpy(scene.masks)).tolist()
        expected = [[x1, y1, x2 + 1 - x1, y2 + 1 - y1] for x1, y1, x2, y2 in first_last]
        assert [annotation["bbox"] for annotation in found] == expected
        assert [annotation["area"] for annotation in found] == scene.masks.sum((1, 2)).tolist()
        with Image.open(root / "images" / image["file_name"]) as picture:
            change = np.asarray(picture, dtype=float) - np.asarray(scene.image, dtype=float)
        assert np.abs(change).mean() < 8  # what JPEG changes


@pytest.mark.parametrize("shape", KNOWN_SHAPES + UNKNOWN_SHAPES)
def test_the_box_is_where_the_picture_differs_from_its_background(shape: str) -> None:
    for seed in range(5):
        # The background is drawn first, so that both scenes have the same.
        empty, scene = (draw_scene(s, 160, np.random.default_rng(seed)) for s in ([], [shape]))
        change = np.asarray(scene.image, dtype=int) - np.asarray(empty.image, dtype=int)
        rows, columns = np.nonzero(np.abs(change).max(axis=2) > 40)
        (box,) = scene.boxes
        # 1: the colour of pixels that the shape covers to a half may be near the background's.
        assert box == pytest.approx(
            (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), abs=1
        )
        assert 18 - 1 <= max(box[2] - box[0], box[3] - box[1]) <= 70 + 1


def test_objects_overlap_little_and_keep_most_of_their_pixels() -> None:
    crowded = 0
    for seed in range(60):
        scene = draw_scene(["disc", "crescent", "ring", "star"], 160, np.random.default_rng(seed))
        boxes = torch.tensor(scene.boxes, dtype=torch.float)
        overlap = box_iou(boxes, boxes).fill_diagonal_(0)
        assert float(overlap.max()) < 0.2
        assert int((boxes[:, 2:] - boxes[:, :2]).min()) >= 5
        assert not (scene.masks.sum(axis=0) > 1).any()
        crowded += bool(overlap.any())
    assert crowded > 5  # objects do overlap at times


def test_shapes_are_told_apart_by_how_much_of_their_box_they_fill() -> None:
    def filled(shape: str) -> float:
        shares = []
        for seed in range(20):
            scene = draw_scene([shape], 160, np.random.default_rng(seed))
            ((x1, y1, x2, y2),) = scene.boxes
            shares.append(scene.masks.sum() / max(x2 - x1, y2 - y1) ** 2)
        return float(np.mean(shares))

    assert filled("disc") == pytest.approx(np.pi / 4, abs=0.03)
    assert filled("ring") == pytest.approx(np.pi / 4 * (1 - 0.55**2), abs=0.03)
    assert 0.5 < filled("square") <= 1
    assert filled("triangle") < 0.5
    assert filled("star") < 0.45


def test_equal_seeds_give_equal_files_and_others_do_not(root: Path, tmp_path: Path) -> None:
    again = contents(write_scenes(tmp_path / "again", **COUNTS, seed=SEED))
    assert again == contents(root)
    other = contents(write_scenes(tmp_path / "other", **COUNTS, seed=SEED + 1))
    assert other.keys() == again.keys()
    assert not any(other[name] == again[name] for name in again)


def test_no_two_pictures_are_equal(root: Path) -> None:
    pictures = Counter(path.read_bytes() for path in (root / "images").iterdir())
    assert len(pictures) == sum(COUNTS.values())


def test_more_scenes_leave_the_first_ones_as_they_were(root: Path, tmp_path: Path) -> None:
    fewer = contents(write_scenes(tmp_path, train=5, val=0, test=0, ood=2, seed=SEED))
    pictures = {name: data for name, data in fewer.items() if name.endswith(".jpg")}
    assert len(pictures) == 7
    assert pictures.items() <= contents(root).items()
    assert read(tmp_path, "val")["images"] == []


def test_the_side_scales_the_objects() -> None:
    for side in (64, 320):
        scenes = [render_scene("train", number, side=side) for number in range(10)]
        assert all(scene.image.size == (side, side) for scene in scenes)
        sizes = [max(x2 - x1, y2 - y1) for s in scenes for x1, y1, x2, y2 in s.boxes]
        assert max(sizes) <= side * 70 / 160 + 1
        assert min(sizes) >= 10


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="val: expected a number of scenes of at least 0, got -1"):
        write_scenes(tmp_path, val=-1)
    with pytest.raises(ValueError, match="side: expected at least 64 pixels, got 63"):
        write_scenes(tmp_path, side=63)
    with pytest.raises(ValueError, match="split: expected one of train, val, test, ood, got 'dev'"):
        render_scene("dev", 0)
