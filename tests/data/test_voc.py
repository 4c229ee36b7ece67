"""Pascal VOC folders as tools write them, and what is said about the wrong ones."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from knownot.data.detection_folder import looks_like_detection
from knownot.data.detection_set import DetectionSet
from knownot.data.voc import read_voc
from knownot.errors import DataError

WIDTH, HEIGHT = 64, 48


def photo(root: Path, name: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    path = root / "JPEGImages" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "grey").save(path)
    return path


def thing(name: str = "cat", sides: tuple = (1, 1, 10, 20), difficult: object = 0) -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=False)
    bndbox = "".join(f"<{side}>{escape(str(value))}</{side}>" for side, value in corners)
    return (
        f"<object><name>{escape(name)}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{bndbox}</bndbox></object>"
    )


def xml(objects: str = "", filename: str = "a.jpg", size: tuple = (WIDTH, HEIGHT)) -> str:
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{stated}{objects}</annotation>"


def write(root: Path, stem: str, content: str | bytes) -> Path:
    path = root / "Annotations" / f"{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(root: Path, **options) -> DetectionSet:
    return read_voc(root / "Annotations", root / "JPEGImages", **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    photo(tmp_path, "a.jpg")
    return tmp_path


def the_problem(photos: DetectionSet) -> str:
    assert len(photos.problems) == 1, photos.problems
    return photos.problems[0]


def test_pixel_numbers_become_corners_and_difficult_objects_are_ignored(root: Path) -> None:
    write(root, "a", xml(thing("dog", (1, 1, WIDTH, HEIGHT)) + thing("cat", (3, 4, 3, 9), 1)))
    photos = read(root)
    assert photos.problems == []
    assert photos.classes == ["cat", "dog"]
    assert photos.paths == [root / "JPEGImages" / "a.jpg"]
    objects = photos.objects[0]
    assert objects.boxes.tolist() == [[0, 0, WIDTH, HEIGHT], [2, 3, 3, 9]]
    assert objects.labels.tolist() == [1, 0]
    assert objects.ignore.tolist() == [False, True]
    assert photos.counts() == {"cat": 0, "dog": 1}


def test_photos_without_objects_are_kept_in_order_of_their_names(root: Path) -> None:
    photo(root, "b.PNG")
    write(root, "b", xml())
    write(root, "a", xml(thing()))
    photos = read(root)
    assert [path.name for path in photos.paths] == ["a.jpg", "b.PNG"]
    assert [len(objects) for objects in photos.objects] == [1, 0]


def test_what_a_mac_puts_beside_annotations_is_none(root: Path) -> None:
    write(root, "a", xml(thing()))
    write(root, "._a", b"\0\5\x16\7")
    photos = read(root)
    assert (len(photos), photos.problems) == (1, [])


def test_only_the_photos_of_the_split_are_read(root: Path) -> None:
    for stem in "bc":
        photo(root, f"{stem}.jpg")
    for stem in "abc":
        write(root, stem, xml(thing(stem)))
    photos = read(root, names=["c", "a", "c", "gone"])
    assert [path.stem for path in photos.paths] == ["c", "a"]
    assert photos.classes == ["a", "c"]
    assert the_problem(photos).startswith("annotation file missing: ")
    assert "'gone'" in the_problem(photos)


def test_classes_give_the_order_and_strange_ones_are_refused(root: Path) -> None:
    write(root, "a", xml(thing("cat")))
    photos = read(root, classes=["dog", "cat"])
    assert photos.classes == ["dog", "cat"]
    assert photos.objects[0].labels.tolist() == [1]
    with pytest.raises(DataError, match=r"Annotations: the annotated categories cat are not among"):
        read(root, classes=["dog"])


def test_the_photo_of_the_same_name_goes_before_the_one_named(root: Path) -> None:
    photo(root, "b.jpg")
    write(root, "a", xml(filename="b.jpg"))
    write(root, "other", xml(filename="b.jpg"))
    assert [path.name for path in read(root).paths] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("filename", "kind"),
    [
        ("../a.jpg", "photo outside the images folder"),
        ("/etc/a.jpg", "photo outside the images folder"),
        ("gone.jpg", "photo missing"),
        ("", "photo missing"),
    ],
)
def test_an_annotation_whose_photo_is_not_there_is_left_out(root, filename, kind) -> None:
    write(root, "a", xml())
    write(root, "other", xml(filename=filename))
    photos = read(root)
    assert [path.name for path in photos.paths] == ["a.jpg"]
    assert the_problem(photos).startswith(f"{kind}: {root / 'Annotations' / 'other.xml'}: ")


@pytest.mark.parametrize("flag", ["1", " 1 ", "true", "True"])
def test_difficult_may_be_written_in_words(root: Path, flag: str) -> None:
    write(root, "a", xml(thing(difficult=flag) + thing(difficult="false")))
    assert read(root).objects[0].ignore.tolist() == [True, False]


def test_a_photo_with_a_file_for_each_box_is_one_photo(root: Path) -> None:
    write(root, "box1", xml(thing()))
    write(root, "box2", xml(thing("dog", (20, 1, 30, 20))))
    photos = read(root)
    assert len(photos) == 1
    assert photos.objects[0].labels.tolist() == [0, 1]
    assert "photo with several annotation files" in the_problem(photos)


def test_of_several_photos_of_one_name_the_one_named_is_taken(root: Path) -> None:
    photo(root, "a.png")
    write(root, "a", xml(thing()))
    photos = read(root)
    assert ([path.name for path in photos.paths], photos.problems) == (["a.jpg"], [])
    write(root, "a", xml(thing(), filename="old.jpg"))
    assert "several photos of one name" in the_problem(read(root))


def test_annotations_may_end_in_capitals(root: Path) -> None:
    write(root, "a", xml(thing())).rename(root / "Annotations" / "a.XML")
    assert len(read(root)) == 1
    assert looks_like_detection(root)


def test_a_size_that_differs_drops_the_photo(root: Path) -> None:
    write(root, "a", xml(size=(HEIGHT, WIDTH)))
    photos = read(root)
    assert len(photos) == 0
    assert the_problem(photos).startswith("photo size differs: ")


@pytest.mark.parametrize("size", [(0, 0), (WIDTH, 0), ("64.0", " 48 ")])
def test_a_size_of_nothing_or_with_blanks_is_no_problem(root: Path, size: tuple) -> None:
    write(root, "a", xml(thing(), size=size))
    assert read(root).problems == []


def test_without_a_size_the_header_counts(root: Path) -> None:
    write(root, "a", f"<annotation>{thing(sides=(60, 40, 65, 49))}</annotation>")
    photos = read(root)
    assert photos.objects[0].boxes.tolist() == [[59, 39, WIDTH, HEIGHT]]
    assert photos.problems == []


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (thing(sides=(70, 1, 80, 9)), "box outside the photo"),
        (thing(sides=(9, 1, 8, 9)), "box without area"),
        (thing(sides=(9, 9, 5, 5)), "box without area"),
        (thing(sides=("nan", 1, 8, 9)), "box with a coordinate that is no finite number"),
        (thing(sides=("left", 1, 8, 9)), "box with a coordinate that is no finite number"),
        (thing(sides=(1, 1, 8)), "box with a coordinate that is no finite number"),
        ("<object><name>cat</name></object>", "box with a coordinate that is no finite number"),
        (thing(name=" "), "object without a class"),
        ("<object/>", "object without a class"),
    ],
)
def test_a_wrong_object_is_left_out_and_named(root: Path, wrong: str, kind: str) -> None:
    path = write(root, "a", xml(wrong + thing()))
    photos = read(root)
    assert photos.objects[0].boxes.tolist() == [[0, 0, 10, 20]]
    assert the_problem(photos).startswith(f"{kind}: {path}, object 1: ")


def test_a_box_that_sticks_out_far_is_cut_off_and_mentioned(root: Path) -> None:
    write(root, "a", xml(thing(sides=(0, 0, 65, 48)) + thing(sides=(1, 1, 70, 48))))
    photos = read(root)
    assert photos.objects[0].boxes.tolist() == [[0, 0, WIDTH, HEIGHT]] * 2
    assert the_problem(photos).startswith("box cut off: ")
    assert "object 2" in the_problem(photos)


def test_boxes_of_parts_are_not_boxes_of_the_object(root: Path) -> None:
    head = "<part><name>head</name><bndbox><xmin>5</xmin></bndbox></part>"
    write(root, "a", xml(thing().replace("<object>", f"<object>{head}")))
    photos = read(root)
    assert photos.classes == ["cat"]
    assert photos.objects[0].boxes.tolist() == [[0, 0, 10, 20]]


ENTITY = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not well-formed XML"),
        ("<annotation>", "not well-formed XML"),
        (b"\xff\xfe\xfa", "not well-formed XML"),
        ('<?xml version="1.0" encoding="klingon"?><a/>', "not well-formed XML"),
        (f"{ENTITY}<annotation><filename>&x;</filename></annotation>", "unsafe"),
        ('<!DOCTYPE a SYSTEM "a.dtd"><annotation/>', "unsafe"),
        (f'<?xml version="1.0" encoding="utf-16"?>{ENTITY}<a/>'.encode("utf-16"), "unsafe"),
        (b"<annotation>" + b" " * 10_000_000 + b"</annotation>", "larger than 10 MB"),
    ],
)
def test_a_broken_or_unsafe_file_is_left_out_and_named(root: Path, content, reason: str) -> None:
    photo(root, "bad.jpg")
    write(root, "a", xml(thing()))
    path = write(root, "bad", content)
    photos = read(root)
    assert [p.name for p in photos.paths] == ["a.jpg"]
    assert the_problem(photos).startswith(f"annotation file unreadable: {path}: ")
    assert reason in the_problem(photos)


def test_a_folder_called_like_an_annotation_file_is_named(root: Path) -> None:
    write(root, "a", xml())
    (root / "Annotations" / "b.xml").mkdir()
    photos = read(root)
    assert [p.name for p in photos.paths] == ["a.jpg"]
    assert "b.xml: cannot be read" in the_problem(photos)


def test_other_encodings_are_understood(root: Path) -> None:
    text = f'<?xml version="1.0" encoding="utf-16"?>{xml(thing("猫"))}'
    write(root, "a", text.encode("utf-16"))
    assert read(root).classes == ["猫"]


def test_missing_folders_are_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"Annotations: no such folder; expected Annotations/"):
        read(root)
    (root / "Annotations").mkdir()
    with pytest.raises(DataError, match=r"Annotations: holds no annotations"):
        read(root)
    write(root, "a", xml())
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        read_voc(root / "Annotations", root / "nowhere")


pixel = st.tuples(st.integers(1, WIDTH), st.integers(1, HEIGHT))


@given(st.lists(st.tuples(pixel, pixel), min_size=1, max_size=10))
def test_every_box_of_whole_pixels_covers_exactly_these(tmp_path_factory, corners) -> None:
    root = tmp_path_factory.mktemp("voc")
    photo(root, "a.jpg")
    boxes = [
        (min(a[0], b[0]), min(a[1], b[1]), max(a[0], b[0]), max(a[1], b[1])) for a, b in corners
    ]
    write(root, "a", xml("".join(thing(sides=box) for box in boxes)))
    photos = read(root)
    assert photos.problems == []
    for (xmin, ymin, xmax, ymax), box in zip(boxes, photos.objects[0].boxes, strict=True):
        x1, y1, x2, y2 = box.tolist()
        # A pixel numbered n from 1 lies between n - 1 and n.
        assert [n for n in range(1, WIDTH + 1) if x1 < n - 0.5 < x2] == [*range(xmin, xmax + 1)]
        assert [n for n in range(1, HEIGHT + 1) if y1 < n - 0.5 < y2] == [*range(ymin, ymax + 1)]
