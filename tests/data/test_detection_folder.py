"""Folders of photos with boxes: which annotations are found, how they are split, what is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from knownot.data.detection_folder import (
    looks_like_detection,
    only_training_split,
    read_detection,
    read_detection_splits,
    require_clean,
    summarise,
)
from knownot.data.detection_set import DetectionSet
from knownot.errors import DataError


def photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def coco(
    path: Path,
    start: int = 0,
    count: int = 12,
    classes: tuple[str, ...] = ("cat", "dog"),
    images: Path | None = None,
    boxed: bool = True,
) -> Path:
    """A COCO file with `count` photos, every one with a box of each class."""
    folder = images or path.parent.parent / "images"
    for i in range(start, start + count):
        photo(folder / f"{i}.png", seed=i)
    content = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(start, start + count)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(classes)],
        "annotations": [
            {"id": len(classes) * i + k, "image_id": i, "category_id": k, "bbox": [k, 1, 5, 6]}
            for i in range(start, start + count)
            for k in range(len(classes))
            if boxed
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def edit(path: Path, **lists: list[Any]) -> None:
    """Append to the lists of a COCO file."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: content[key] + lists.get(key, []) for key in content}))


def voc(root: Path, stems: str = "abc", **splits: str) -> None:
    for seed, stem in enumerate(stems):
        photo(root / "JPEGImages" / f"{stem}.png", seed)
        path = root / "Annotations" / f"{stem}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
            "<xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
        )
    for name, listed in splits.items():
        path = root / "ImageSets" / "Main" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(listed) + "\n")


def stems(photos: DetectionSet) -> list[str]:
    return [path.stem for path in photos.paths]


# -- looks_like_detection


def test_coco_and_voc_folders_are_recognised(tmp_path: Path) -> None:
    assert looks_like_detection(coco(tmp_path / "a" / "annotations" / "train.json"))
    assert looks_like_detection(tmp_path / "a")
    coco(tmp_path / "b" / "boxes.json", images=tmp_path / "b")
    assert looks_like_detection(tmp_path / "b")
    coco(tmp_path / "c" / "train" / "_annotations.coco.json", images=tmp_path / "c" / "train")
    assert looks_like_detection(tmp_path / "c")
    voc(tmp_path / "d")
    assert looks_like_detection(tmp_path / "d")


def test_class_folders_other_json_and_missing_paths_are_not(tmp_path: Path) -> None:
    picture = photo(tmp_path / "train" / "cat" / "a.png")
    assert not looks_like_detection(tmp_path)
    assert not looks_like_detection(picture)
    assert not looks_like_detection(tmp_path / "nowhere")
    for name, text in {
        "empty": "",
        "list": '[{"images": [], "annotations": []}]',
        "half": '{"images": []}',
        "other": '{"images": 5, "annotations": "none"}',
    }.items():
        path = tmp_path / f"{name}.json"
        path.write_text(text)
        assert not looks_like_detection(path), name
    (tmp_path / "annotations").mkdir()
    (tmp_path / "Annotations").mkdir(exist_ok=True)
    assert not looks_like_detection(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '\ufeff {"images":[],"annotations" : [ ]}',
        '\n{"a":1, "images": [1], "annotations":[',
    ],
)
def test_a_coco_file_is_recognised_without_parsing_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert looks_like_detection(path)


# -- read_detection


def test_a_file_or_the_only_file_of_a_folder_is_read(tmp_path: Path) -> None:
    path = coco(tmp_path / "annotations" / "ood.json", count=3)
    for given in (path, tmp_path, str(tmp_path)):
        photos = read_detection(given)
        assert stems(photos) == ["0", "1", "2"]
        assert photos.classes == ["cat", "dog"]
    assert read_detection(tmp_path, classes=["dog", "cat"]).objects[0].labels.tolist() == [1, 0]
    assert only_training_split(tmp_path) is None
    path = path.rename(path.with_name("train.json"))
    assert only_training_split(tmp_path) == path
    coco(tmp_path / "annotations" / "val.json", start=20, count=1)
    assert only_training_split(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.json", "train"),
        ("instances_train2017.json", "train"),
        ("fodTrainset.json", "train"),
        ("training.json", "train"),
        ("valid.json", "val"),
        ("my_validation_boxes.json", "val"),
        ("VAL.json", "val"),
        ("testing-2.json", "test"),
    ],
)
def test_the_split_is_read_off_the_name(tmp_path: Path, name: str, split: str) -> None:
    coco(tmp_path / "annotations" / name, count=2)
    coco(tmp_path / "annotations" / "x.json", start=20, count=2)
    assert stems(read_detection(tmp_path, split=split)) == ["0", "1"]


def test_a_word_that_ends_like_a_split_is_none(tmp_path: Path) -> None:
    for start, name in enumerate(("latest", "carnival", "trainval")):
        coco(tmp_path / "annotations" / f"{name}.json", start=2 * start, count=2)
    with pytest.raises(DataError, match="no test or val split"):
        read_detection(tmp_path)


def test_a_split_may_be_asked_for_by_any_of_its_words(tmp_path: Path) -> None:
    coco(tmp_path / "annotations" / "val.json", count=2)
    for word in ("val", "valid", "Validation"):
        assert len(read_detection(tmp_path, split=word)) == 2
    with pytest.raises(DataError, match="split: expected 'train', 'val' or 'test', got 'vale'"):
        read_detection(tmp_path, split="vale")


def test_of_several_the_test_split_is_taken_then_the_validation_split(tmp_path: Path) -> None:
    coco(tmp_path / "annotations" / "train.json", 0, 2)
    val = coco(tmp_path / "annotations" / "val.json", 10, 2)
    test = coco(tmp_path / "annotations" / "test.json", 20, 2)
    assert stems(read_detection(tmp_path)) == ["20", "21"]
    test.unlink()
    assert stems(read_detection(tmp_path)) == ["10", "11"]
    val.rename(val.with_name("more.json"))
    with pytest.raises(DataError, match=r"no test or val split among .*more.json, .*train.json"):
        read_detection(tmp_path)
    with pytest.raises(DataError, match=r"no test split among .*; name the JSON file itself"):
        read_detection(tmp_path, split="test")


def test_two_files_of_one_split_are_an_error_but_for_cocos_own(tmp_path: Path) -> None:
    first = coco(tmp_path / "annotations" / "train_a.json", 0, 2)
    coco(tmp_path / "annotations" / "train_b.json", 10, 2)
    with pytest.raises(DataError, match=r"train_a\.json, .*train_b\.json all seem to be the train"):
        read_detection(tmp_path, split="train")
    first.rename(first.with_name("instances_train2017.json"))
    assert stems(read_detection(tmp_path, split="train")) == ["0", "1"]


def test_folders_as_roboflow_writes_them(tmp_path: Path) -> None:
    for start, name in enumerate(("train", "valid", "test")):
        folder = tmp_path / name
        coco(folder / "_annotations.coco.json", 10 * start, 2, images=folder)
    assert stems(read_detection(tmp_path, split="val")) == ["10", "11"]
    assert stems(read_detection_splits(tmp_path).train) == ["0", "1"]


def test_voc_folders_are_read_by_their_split_lists(tmp_path: Path) -> None:
    voc(tmp_path, "abcd", train="ab", val="c", trainval="abc", cat_train="a")
    assert stems(read_detection(tmp_path, split="train")) == ["a", "b"]
    assert stems(read_detection(tmp_path)) == ["c"]
    with pytest.raises(DataError, match=r"no test split among .*expected lists ImageSets/Main"):
        read_detection(tmp_path, split="test")
    shutil.rmtree(tmp_path / "ImageSets")
    assert stems(read_detection(tmp_path)) == ["a", "b", "c", "d"]


def test_names_of_voc_photos_may_hold_blanks(tmp_path: Path) -> None:
    voc(tmp_path, "ab")
    for path in [*tmp_path.rglob("a.*")]:
        path.rename(path.with_stem("a photo"))
    path = tmp_path / "ImageSets" / "Main" / "val.txt"
    path.parent.mkdir(parents=True)
    path.write_text("a photo \r\n\r\n")
    assert stems(read_detection(tmp_path)) == ["a photo"]


def test_voc_folders_in_small_letters_are_read(tmp_path: Path) -> None:
    voc(tmp_path)
    (tmp_path / "Annotations").rename(tmp_path / "annotations")
    (tmp_path / "JPEGImages").rename(tmp_path / "images")
    assert looks_like_detection(tmp_path)
    assert len(read_detection(tmp_path)) == 3


def test_nothing_to_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file or folder; expected a COCO JSON"):
        read_detection(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        read_detection_splits(tmp_path / "nowhere")
    photo(tmp_path / "cat" / "a.png")
    with pytest.raises(DataError, match=r"holds no annotations of boxes; expected a COCO JSON"):
        read_detection(tmp_path)
    with pytest.raises(DataError, match=r"a\.png: is not valid JSON"):
        read_detection(tmp_path / "cat" / "a.png")


def test_a_set_without_a_usable_photo_is_refused(tmp_path: Path) -> None:
    path = coco(tmp_path / "annotations" / "ood.json", count=1)
    (tmp_path / "images" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)ood\.json: holds no usable photo; 1 problem.*0\.png"):
        read_detection(path)


# -- read_detection_splits


def test_train_and_val_are_read_with_the_classes_of_train(tmp_path: Path) -> None:
    coco(tmp_path / "annotations" / "train.json", 0, 12, ("cat", "dog"))
    coco(tmp_path / "annotations" / "val.json", 20, 3, ("dog",))
    splits = read_detection_splits(tmp_path)
    assert splits.train.classes == splits.val.classes == ["cat", "dog"]
    assert splits.train.counts() == {"cat": 12, "dog": 12}
    assert splits.val.counts() == {"cat": 0, "dog": 3}
    assert splits.val.objects[0].labels.tolist() == [1]
    assert splits.warnings == ["class 'cat' has no validation box; it is not calibrated"]
    assert splits.problems == []
    require_clean(splits)


def test_a_class_of_val_that_train_lacks_is_refused(tmp_path: Path) -> None:
    coco(tmp_path / "annotations" / "train.json")
    coco(tmp_path / "annotations" / "val.json", 20, 2, ("cat", "cow"))
    with pytest.raises(DataError, match=r"val\.json: the annotated categories cow are not among"):
        read_detection_splits(tmp_path)


@pytest.mark.parametrize("name", ["train.json", "boxes.json"])
@pytest.mark.parametrize("as_file", [True, False])
def test_without_val_a_random_share_is_set_aside(tmp_path: Path, name, as_file) -> None:
    path = coco(tmp_path / "annotations" / name, count=20)
    root = path if as_file else tmp_path
    one, again, other = (read_detection_splits(root, 0.25, seed) for seed in (0, 0, 1))
    assert (len(one.train), len(one.val)) == (15, 5)
    assert sorted(one.train.paths + one.val.paths) == sorted(read_detection(path).paths)
    assert one.val.paths == again.val.paths != other.val.paths
    assert one.warnings == [
        "no val annotations: 5 of 20 training photos are set aside for calibration"
    ]


def test_the_share_set_aside_leaves_photos_on_both_sides(tmp_path: Path) -> None:
    path = coco(tmp_path / "a.json", count=2, images=tmp_path)
    for fraction in (0.01, 0.99):
        splits = read_detection_splits(path, fraction)
        assert (len(splits.train), len(splits.val)) == (1, 1)
    lone = coco(tmp_path / "b.json", count=1, images=tmp_path)
    with pytest.raises(DataError, match=r"b\.json: holds a single photo"):
        read_detection_splits(lone)


def test_train_is_required(tmp_path: Path) -> None:
    coco(tmp_path / "annotations" / "val.json")
    with pytest.raises(DataError, match=r"has no train split among .*val\.json; name the JSON"):
        read_detection_splits(tmp_path)
    coco(tmp_path / "annotations" / "boxes.json")
    with pytest.raises(DataError, match=r"has no train split among .*boxes\.json, .*val\.json"):
        read_detection_splits(tmp_path)


def test_no_class_no_box_and_unknown_are_refused(tmp_path: Path) -> None:
    path = coco(tmp_path / "annotations" / "train.json", classes=())
    with pytest.raises(DataError, match=r"train\.json: names no category"):
        read_detection_splits(tmp_path)
    coco(path, boxed=False)
    with pytest.raises(DataError, match=r"train\.json: holds no usable box to train on"):
        read_detection_splits(tmp_path)
    coco(path, classes=("cat", "unknown"))
    with pytest.raises(DataError, match=r"train\.json: a category cannot be called 'unknown'"):
        read_detection_splits(tmp_path)


def test_one_class_is_enough(tmp_path: Path) -> None:
    coco(tmp_path / "annotations" / "train.json", classes=("cat",))
    assert read_detection_splits(tmp_path).train.classes == ["cat"]


def test_voc_splits_share_the_classes_of_train(tmp_path: Path) -> None:
    voc(tmp_path, "abcd", train="abc", val="d")
    splits = read_detection_splits(tmp_path)
    assert (stems(splits.train), stems(splits.val)) == (["a", "b", "c"], ["d"])
    assert splits.warnings == ["class 'cat' has only 3 training box(es); expect little of it"]


def test_rare_classes_twins_and_problems_are_in_the_warnings(tmp_path: Path) -> None:
    train = coco(tmp_path / "annotations" / "train.json", 0, 12)
    val = coco(tmp_path / "annotations" / "val.json", 20, 12)
    edit(
        train,
        categories=[{"id": 7, "name": "okapi"}],
        annotations=[{"id": 900, "image_id": 0, "category_id": 7, "bbox": [1, 1, 2, 2]}],
    )
    edit(val, annotations=[{"id": 901, "image_id": 21, "category_id": 0, "bbox": [99, 1, 2, 2]}])
    shutil.copy(tmp_path / "images" / "3.png", tmp_path / "images" / "25.png")
    splits = read_detection_splits(tmp_path)
    rare, missing, twins, problems = splits.warnings
    assert rare == "class 'okapi' has only 1 training box(es); expect little of it"
    assert missing == "class 'okapi' has no validation box; it is not calibrated"
    assert twins.startswith("1 photo(s) stand in both train and val")
    assert "3.png" in twins
    assert "25.png" in twins
    assert problems.startswith("1 problem(s) in the annotations (1 x box outside the photo)")
    assert "val.json, annotation 901 of '21.png'" in problems
    assert splits.problems == splits.val.problems
    for dirty in (splits, splits.val):
        with pytest.raises(DataError, match="1 x box outside the photo"):
            require_clean(dirty)
    require_clean(splits.train)


def test_problems_survive_the_setting_aside(tmp_path: Path) -> None:
    path = coco(tmp_path / "annotations" / "train.json")
    edit(path, annotations=[{"id": 901, "image_id": 2, "category_id": 0, "bbox": [1, 1, 0, 2]}])
    splits = read_detection_splits(tmp_path)
    assert len(splits.problems) == 1
    with pytest.raises(DataError, match="1 x box without area"):
        require_clean(splits)


# -- summarise


def test_the_summary_counts_by_kind_and_shows_the_first_few() -> None:
    problems = [f"box without area: a.json, annotation {i}: none" for i in range(6)]
    problems.insert(0, "photo missing: a.json, image 1: no file 'x: y.jpg' in images")
    text = summarise(problems, shown=2)
    assert text.splitlines() == [
        "7 problem(s) in the annotations (6 x box without area, 1 x photo missing)",
        f"  {problems[0]}",
        f"  {problems[1]}",
        "  and 5 more",
    ]
    assert "more" not in summarise(problems, shown=7)
    assert summarise([]) == "no problems in the annotations"


# -- the shared sets


@pytest.mark.photos
@pytest.mark.parametrize(
    ("name", "train", "val"),
    [
        ("natural5", (524, 851), (131, 203)),
        ("fod_a", (900, 900), (200, 200)),
        ("bccd", (205, 2804), (87, 1137)),
    ],
)
def test_the_shared_splits_are_clean(shared_data: Path, name: str, train, val) -> None:
    root = shared_data / "detection" / name
    assert looks_like_detection(root)
    splits = read_detection_splits(root)
    require_clean(splits)
    for photos, expected in ((splits.train, train), (splits.val, val)):
        assert (len(photos), sum(photos.counts().values())) == expected
    assert splits.warnings == []


@pytest.mark.photos
def test_the_shared_sets_have_the_expected_default_split(shared_data: Path) -> None:
    folder = shared_data / "detection"
    for name, count in {"ood_coco": 105, "ood_fod_a": 238, "bccd": 72, "fod_a": 200}.items():
        photos = read_detection(folder / name)
        require_clean(photos)
        assert len(photos) == count
    assert not looks_like_detection(shared_data / "cats_dogs")
