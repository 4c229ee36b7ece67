"""COCO files as tools write them, and what is said about the wrong ones."""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import box_convert

from knownot.data.box_checks import check_box, leaves_folder, upright_size
from knownot.data.coco import read_coco
from knownot.data.detection_set import DetectionSet
from knownot.data.photo import open_photo
from knownot.errors import DataError

WIDTH, HEIGHT = 64, 48


def photo(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "grey").save(path, **options)
    return path


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def image(number: Any = 1, name: Any = "a.jpg", **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT, **more}


def box(number: Any = 1, bbox: Any = (4, 6, 10, 20), **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": 3, "bbox": bbox, "iscrowd": 0, **more}


def write(root: Path, name: str = "annotations/train.json", **content: Any) -> Path:
    """A COCO file of one photo and one box; `content` replaces its lists."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}]
    full = {"images": [image()], "annotations": [box()], "categories": categories, **content}
    path.write_text(json.dumps(full))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    photo(tmp_path / "images" / "a.jpg")
    return tmp_path


def the_problem(photos: DetectionSet) -> str:
    assert len(photos.problems) == 1, photos.problems
    return photos.problems[0]


def test_boxes_become_corners_and_categories_are_sorted_by_id(root: Path) -> None:
    photo(root / "images" / "empty.jpg")
    path = write(
        root,
        images=[image(), image(7, "empty.jpg")],
        annotations=[box(1, [4, 6, 10, 20]), box(2, [0.5, 0, 8, 48], category_id=90, iscrowd=1)],
    )
    photos = read_coco(path)
    assert photos.classes == ["cat", "dog"]
    assert photos.paths == [root / "images" / "a.jpg", root / "images" / "empty.jpg"]
    assert photos.problems == []
    objects, none = photos.objects
    assert objects.boxes.tolist() == [[4, 6, 14, 26], [0.5, 0, 8.5, 48]]
    assert objects.labels.tolist() == [0, 1]
    assert objects.ignore.tolist() == [False, True]
    assert (objects.boxes.dtype, objects.labels.dtype, objects.ignore.dtype) == (
        torch.float32,
        torch.int64,
        torch.bool,
    )
    assert len(none) == 0
    assert none.boxes.shape == (0, 4)
    assert photos.counts() == {"cat": 1, "dog": 0}


@pytest.mark.parametrize(
    ("flag", "crowd"),
    [(1, True), ("1", True), (True, True), (0, False), ("0", False), (None, False), ("", False)],
)
def test_crowds_are_flagged_in_any_type(root: Path, flag: object, crowd: bool) -> None:
    file = write(root, annotations=[box(1, [4, 6, 10, 20], iscrowd=flag)])
    assert read_coco(file).objects[0].ignore.tolist() == [crowd]


def test_classes_give_the_order_and_may_miss_only_categories_without_boxes(root: Path) -> None:
    path = write(root)
    photos = read_coco(path, classes=["cow", "cat"])
    assert photos.classes == ["cow", "cat"]
    assert photos.objects[0].labels.tolist() == [1]
    with pytest.raises(DataError, match=r"train\.json: the annotated categories cat are not among"):
        read_coco(path, classes=["dog"])


def test_categories_of_one_name_are_one_class(root: Path) -> None:
    # Roboflow writes the project's name as category 0 and often again as category 1.
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    boxes = [box(i, category_id=i) for i in range(3)]
    photos = read_coco(write(root, categories=categories, annotations=boxes))
    assert photos.classes == ["cat", "dog"]
    assert photos.objects[0].labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/train.json", "images"),
        ("annotations/train.json", "train"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/train.json", "annotations"),
        ("annotations/train.json", "."),
        ("train.json", "images"),
        ("train.json", "train"),
        ("train.json", "."),
    ],
)
def test_the_images_folder_is_found(tmp_path: Path, file: str, folder: str) -> None:
    there = photo(tmp_path / folder / "a.jpg")
    photo(tmp_path / "elsewhere" / "a.jpg", (9, 9))
    assert read_coco(write(tmp_path, file)).paths == [there]


def test_the_first_of_several_folders_is_taken_and_a_named_one_before_all(root: Path) -> None:
    photo(root / "train" / "a.jpg")
    other = photo(root / "other" / "a.jpg")
    path = write(root)
    assert read_coco(path).paths == [root / "images" / "a.jpg"]
    assert read_coco(path, other.parent).paths == [other]


def test_the_folder_is_found_although_the_first_photo_is_missing(root: Path) -> None:
    photos = read_coco(write(root, images=[image(9, "gone.jpg"), image()]))
    assert photos.paths == [root / "images" / "a.jpg"]
    assert "photo missing" in the_problem(photos)


def test_photos_that_are_nowhere_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"photos, for example 'a\.jpg', are in none of .*images"):
        read_coco(write(tmp_path))
    with pytest.raises(DataError, match=r"nowhere: no such folder; expected the photos"):
        read_coco(write(tmp_path), tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not valid JSON"),
        (b'{"images": [', "is not valid JSON"),
        (b"\xff\xfe\xfa", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "holds a list"),
        (b"null", "holds a NoneType"),
        (b'{"images": [], "categories": 5}', "has no list of annotations, categories"),
        (b'{"images": [], "annotations": [], "categories": [{"id": 1}]}', "category .* not usable"),
        (
            b'{"images": [], "annotations": [], "categories": ["cat"]}',
            "category 'cat' is not usable",
        ),
        (
            b'{"images": [], "annotations": [], "categories": '
            b'[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "category id 1 is both 'a' and 'b'",
        ),
    ],
)
def test_what_is_no_coco_file_is_named(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "odd.json"
    path.write_bytes(text)
    with pytest.raises(DataError, match=rf"odd\.json: .*{message}") as caught:
        read_coco(path)
    assert "give each" in str(caught.value) or "expected" in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: no such file; expected a COCO object"):
        read_coco(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_coco(tmp_path)


def test_a_file_without_photos_is_an_empty_set(tmp_path: Path) -> None:
    photos = read_coco(write(tmp_path, images=[]))
    assert len(photos) == 0
    assert photos.classes == ["cat", "dog"]
    assert the_problem(photos).startswith("unknown image id: ")


def test_a_byte_order_mark_does_no_harm(root: Path) -> None:
    path = write(root)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_coco(path)) == 1


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ([64, 0, 5, 5], "box outside the photo"),
        ([0, 100, 5, 5], "box outside the photo"),
        ([-9, 0, 9, 5], "box outside the photo"),
        ([4, 4, 0, 5], "box without area"),
        ([4, 4, 5, -3], "box without area"),
        ([4, 4, 1e-12, 5], "box without area"),
        ([float("nan"), 4, 5, 5], "box with a coordinate that is no finite number"),
        ([4, 4, float("inf"), 5], "box with a coordinate that is no finite number"),
        ([4, 4, 10**400, 5], "box with a coordinate that is no finite number"),
        ([4, 4, "5", 5], "box with a coordinate that is no finite number"),
        ([4, 4, None, 5], "box with a coordinate that is no finite number"),
        ([4, 4, True, 5], "box with a coordinate that is no finite number"),
        ([4, 4, 5], "box is not 4 numbers"),
        ([4, 4, 5, 5, 5], "box is not 4 numbers"),
        (None, "box is not 4 numbers"),
        ({"x": 4}, "box is not 4 numbers"),
    ],
)
def test_a_wrong_box_is_left_out_and_named(root: Path, wrong: Any, kind: str) -> None:
    photos = read_coco(write(root, annotations=[box(11, wrong), box(12)]))
    assert photos.objects[0].boxes.tolist() == [[4, 6, 14, 26]]
    assert the_problem(photos).startswith(
        f"{kind}: {root / 'annotations' / 'train.json'}, annotation 11 of 'a.jpg': "
    )


@pytest.mark.parametrize(
    ("wrong", "kind", "where"),
    [
        (box(11, category_id=5), "unknown category id", "annotation 11 of 'a.jpg': .* category 5"),
        (box(11, category_id=[3]), "unknown category id", "annotation 11 .* no category"),
        (box(11, image_id=5), "unknown image id", "annotation 11: there is no image 5"),
        (box(11, image_id={}), "unknown image id", "annotation 11: there is no image {}"),
        (box(12), "annotation id used twice", "annotation 12: "),
        (["box"], "entry unreadable", "annotation number 1 is no object"),
        (box(None, [0, 0, 0, 0]), "box without area", "annotation number 1 of 'a.jpg'"),
    ],
)
def test_a_wrong_annotation_is_left_out_and_named(root: Path, wrong, kind, where) -> None:
    photos = read_coco(write(root, annotations=[box(12), wrong]))
    assert photos.objects[0].boxes.tolist() == [[4, 6, 14, 26]]
    sentence = the_problem(photos)
    assert sentence.startswith(f"{kind}: {root}")
    assert re.search(where, sentence)


def test_a_lone_annotation_without_an_id_is_kept(root: Path) -> None:
    photos = read_coco(write(root, annotations=[box(None), box(None)]))
    assert photos.problems == []
    assert len(photos.objects[0]) == 2


@pytest.mark.parametrize("excess", [0.25, 1.0, 1.5])
def test_a_box_that_sticks_out_is_cut_off_and_mentioned_beyond_a_pixel(root, excess) -> None:
    bbox = [-excess, 5, 10, 50]
    photos = read_coco(write(root, annotations=[box(8, bbox), box(9, [60, 10, 4 + excess, 10])]))
    assert photos.objects[0].boxes.tolist() == [[0, 5, 10 - excess, 48], [60, 10, 64, 20]]
    assert len(photos.problems) == (2 if excess > 1 else 1)
    assert all(p.startswith("box cut off: ") for p in photos.problems)
    assert "annotation 8 of 'a.jpg'" in photos.problems[0]
    assert "by 7 pixels" in photos.problems[0]


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../a.jpg", "sub/../../a.jpg", "C:\\a.jpg", "\\\\host\\a.jpg", "..\\a.jpg"],
)
def test_a_file_name_that_leaves_the_folder_is_refused(root: Path, name: str) -> None:
    photo(root / "a.jpg")
    photos = read_coco(write(root, images=[image(), image(2, name)]))
    assert photos.paths == [root / "images" / "a.jpg"]
    sentence = the_problem(photos)
    assert sentence.startswith(f"photo outside the images folder: {root}")
    assert "image 2" in sentence


@pytest.mark.parametrize("name", ["sub/b.jpg", "sub\\b.jpg", "./sub/b.jpg"])
def test_photos_in_sub_folders_are_found(root: Path, name: str) -> None:
    there = photo(root / "images" / "sub" / "b.jpg")
    assert read_coco(write(root, images=[image(1, name)])).paths == [there]


@pytest.mark.parametrize("name", ["gone.jpg", "x" * 5000, "nul\0.jpg", "\ud800.jpg", "sub"])
def test_a_missing_photo_goes_with_its_boxes(root: Path, name: str) -> None:
    (root / "images" / "sub").mkdir()
    boxes = [box(1), box(2, image_id=2), box(3, image_id=2)]
    photos = read_coco(write(root, images=[image(), image(2, name)], annotations=boxes))
    assert photos.paths == [root / "images" / "a.jpg"]
    assert the_problem(photos).startswith(f"photo missing: {root}")
    assert "image 2" in the_problem(photos)
    the_problem(photos).encode()  # can be printed


@pytest.mark.parametrize("content", [b"", b"no photo", b"\xff\xd8\xff\xe0 cut off"])
def test_an_unreadable_photo_is_left_out(root: Path, content: bytes) -> None:
    (root / "images" / "bad.jpg").write_bytes(content)
    photos = read_coco(write(root, images=[image(), image(2, "bad.jpg")]))
    assert len(photos) == 1
    assert the_problem(photos).startswith("photo unreadable: ")
    assert "bad.jpg" in the_problem(photos)


def test_a_photo_larger_than_can_be_opened_is_left_out(root: Path) -> None:
    Image.new("1", (10_001, 10_000)).save(root / "images" / "huge.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photos = read_coco(write(root, images=[image(), {"id": 2, "file_name": "huge.png"}]))
    assert len(photos) == 1
    assert "more than the limit of 100 megapixels" in the_problem(photos)


@pytest.mark.parametrize("name", [None, 5, "", ["a.jpg"]])
def test_an_image_without_a_file_name_is_left_out(root: Path, name: Any) -> None:
    photos = read_coco(write(root, images=[image(), image(2, name)]))
    assert len(photos) == 1
    assert the_problem(photos).startswith("photo without a file name: ")


def test_images_that_are_no_entries_are_left_out(root: Path) -> None:
    photos = read_coco(write(root, images=[image(), "b.jpg", image(None, "b.jpg")]))
    assert len(photos) == 1
    kinds = [sentence.partition(": ")[0] for sentence in photos.problems]
    assert kinds == ["entry unreadable", "image without an id"]


def test_two_photos_of_one_id_are_both_left_out_with_their_boxes(root: Path) -> None:
    photo(root / "images" / "b.jpg")
    photo(root / "images" / "c.jpg")
    images = [image(), image(1, "b.jpg"), image(2, "c.jpg")]
    photos = read_coco(write(root, images=images))
    assert [path.name for path in photos.paths] == ["c.jpg"]
    assert len(photos.objects[0]) == 0
    assert the_problem(photos).startswith("image id used twice: ")
    assert "image 1: 2 file(s) carry this id: 'a.jpg', 'b.jpg'" in the_problem(photos)


def test_one_photo_entered_twice_is_kept_once(root: Path) -> None:
    photos = read_coco(write(root, images=[image(), image()]))
    assert len(photos) == len(photos.objects[0]) == 1
    assert the_problem(photos).startswith("image id used twice: ")


def test_a_stated_size_that_differs_drops_the_photo(root: Path) -> None:
    photo(root / "images" / "b.jpg", (32, 24))
    photos = read_coco(write(root, images=[image(), image(2, "b.jpg")]))
    assert len(photos) == 1
    assert the_problem(photos).startswith("photo size differs: ")
    assert "b.jpg is 32 x 24 when upright" in the_problem(photos)


def test_a_file_with_several_ids_is_one_photo(root: Path) -> None:
    images = [image(1), image(2), image(3, "b.jpg")]
    photo(root / "images" / "b.jpg")
    boxes = [box(n, [n, 0, 5, 5], image_id=n) for n in (1, 2, 3)]
    photos = read_coco(write(root, images=images, annotations=boxes))
    assert [path.name for path in photos.paths] == ["a.jpg", "b.jpg"]
    assert photos.objects[0].boxes[:, 0].tolist() == [1, 2]
    assert photos.objects[1].boxes[:, 0].tolist() == [3]
    assert "a.jpg has another id as well" in the_problem(photos)


@pytest.mark.parametrize("stated", [{"width": "64 px"}, {"height": -48}, {"height": [48]}])
def test_a_stated_size_that_is_no_size_drops_the_photo(root: Path, stated: dict) -> None:
    photos = read_coco(write(root, images=[image(**stated)]))
    assert len(photos) == 0
    assert the_problem(photos).startswith("photo size differs: ")


@pytest.mark.parametrize(
    "unknown",
    [
        {},
        {"width": None, "height": None},
        {"width": 0, "height": 0},
        {"width": "64", "height": "48"},
    ],
)
def test_without_a_stated_size_the_header_counts(root: Path, unknown: dict) -> None:
    entry = {"id": 1, "file_name": "a.jpg", **unknown}
    photos = read_coco(write(root, images=[entry], annotations=[box(1, [60, 0, 5, 5])]))
    assert photos.objects[0].boxes.tolist() == [[60, 0, 64, 5]]
    assert photos.problems == []


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_upright_photo(tmp_path, suffix: str, orientation: int) -> None:
    path = photo(tmp_path / f"a.{suffix}", exif=turned(orientation))
    expected = (HEIGHT, WIDTH) if orientation >= 5 else (WIDTH, HEIGHT)
    assert open_photo(path).size == expected
    assert upright_size(path) == expected
    entry = {"id": 1, "file_name": path.name, "width": expected[0], "height": expected[1]}
    assert read_coco(write(tmp_path, images=[entry])).problems == []


def test_a_png_may_say_after_its_pixels_how_it_is_turned(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png", exif=turned(6))
    whole = path.read_bytes()
    start = whole.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(whole[start : start + 4], "big")
    last = whole.index(b"IEND") - 4
    path.write_bytes(whole[:start] + whole[end:last] + whole[start:end] + whole[last:])
    assert open_photo(path).size == upright_size(path) == (HEIGHT, WIDTH)


def test_a_png_is_not_decoded_to_learn_its_size(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png")
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"IDAT") + 6])
    with pytest.raises(DataError, match="not a readable photo"):
        open_photo(path)
    assert upright_size(path) == (WIDTH, HEIGHT)


coordinate = st.floats(-1e3, 1e3, width=32) | st.floats(allow_nan=False, allow_infinity=False)


@given(st.tuples(coordinate, coordinate, coordinate, coordinate), st.integers(1, 5000))
def test_what_is_kept_of_a_box_has_area_and_lies_inside(corners, width: int) -> None:
    problems: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = check_box(corners, (width, HEIGHT), "here", problems)
    if kept is None:
        assert problems
        return
    x1, y1, x2, y2 = torch.tensor(kept, dtype=torch.float32).tolist()
    assert 0 <= x1 < x2 <= width
    assert 0 <= y1 < y2 <= HEIGHT


inner = st.tuples(st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1)).flatmap(
    lambda xy: st.tuples(
        st.just(xy[0]),
        st.just(xy[1]),
        st.integers(1, WIDTH - xy[0]),
        st.integers(1, HEIGHT - xy[1]),
    )
)


@given(st.lists(inner, min_size=1, max_size=20))
def test_boxes_inside_the_photo_come_back_unchanged(tmp_path_factory, boxes) -> None:
    root = tmp_path_factory.mktemp("coco")
    photo(root / "images" / "a.jpg")
    photos = read_coco(write(root, annotations=[box(i, b) for i, b in enumerate(boxes)]))
    assert photos.problems == []
    xywh = box_convert(photos.objects[0].boxes, "xyxy", "xywh")
    assert xywh.tolist() == [list(b) for b in boxes]


@given(st.lists(st.sampled_from(["a", "..", ".", "b.jpg", "", "C:"]), max_size=5), st.booleans())
def test_no_file_name_that_is_taken_leaves_the_folder(parts: list[str], windows: bool) -> None:
    name = ("\\" if windows else "/").join(parts)
    if not leaves_folder(name):
        inside = os.path.normpath(os.path.join("/data/images", name.replace("\\", "/")))
        assert inside == "/data/images" or inside.startswith("/data/images/")


def test_time_grows_with_the_number_of_boxes_not_its_square(root: Path) -> None:
    for i in range(40):
        os.link(root / "images" / "a.jpg", root / "images" / f"{i}.jpg")
    images = [image(i, f"{i}.jpg") for i in range(40)]

    def seconds(count: int) -> float:
        boxes = [box(i, image_id=i % 40) for i in range(count)]
        path = write(root, images=images, annotations=boxes)
        begin = time.process_time()
        assert sum(read_coco(path).counts().values()) == count
        return time.process_time() - begin

    # Eight times as many: a square would take 64 times as long.
    assert seconds(40_000) < 30 * max(seconds(5_000), 0.01)


@pytest.mark.photos
@pytest.mark.parametrize(
    ("name", "photos", "boxes", "crowds", "classes"),
    [
        ("natural5/annotations/train.json", 524, 851, 0, 5),
        ("natural5/annotations/val.json", 131, 203, 0, 5),
        ("fod_a/annotations/train.json", 900, 900, 0, 10),
        ("fod_a/annotations/val.json", 200, 200, 0, 10),
        ("bccd/annotations/train.json", 205, 2804, 0, 3),
        ("bccd/annotations/val.json", 87, 1137, 0, 3),
        ("bccd/annotations/test.json", 72, 945, 0, 3),
        ("ood_fod_a/annotations/ood.json", 238, 238, 0, 7),
        ("ood_coco/annotations/ood.json", 105, 792, 10, 80),
    ],
)
def test_the_shared_sets_are_read_whole(shared_data, name, photos, boxes, crowds, classes) -> None:
    read = read_coco(shared_data / "detection" / name)
    assert read.problems == []
    assert len(read) == photos
    assert sum(len(objects) for objects in read.objects) == boxes
    assert sum(int(objects.ignore.sum()) for objects in read.objects) == crowds
    assert len(read.classes) == classes
    assert sum(read.counts().values()) == boxes - crowds
