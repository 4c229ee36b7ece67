"""Ids of COCO results, given by an annotation file or made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from knownot.errors import DataError
from knownot.evaluation.coco_results import ids_of, numbered

CLASSES = ["cat", "dog"]


def annotation_file(folder: Path, names: dict[int, str], categories: dict[int, str]) -> Path:
    path = folder / "coco.json"
    content = {
        "images": [{"id": number, "file_name": name} for number, name in names.items()],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    path.write_text(json.dumps(content))
    return path


def test_made_up_ids_count_from_one() -> None:
    ids = numbered([Path("b.jpg"), Path("a.jpg"), Path("b.jpg")], CLASSES)
    assert ids.images == {"b.jpg": 1, "a.jpg": 2}
    assert ids.categories == {"cat": 1, "dog": 2, "unknown": 3}


def test_photos_are_found_by_folder_and_name(tmp_path: Path) -> None:
    names = {7: "x/a.jpg", 8: "y/a.jpg", 9: "a.jpg", 4: "deep\\b.jpg", 5: "c.jpg"}
    path = annotation_file(tmp_path, names, {3: "dog", 18: "cat", 90: "bird"})
    photos = [Path("in/x/a.jpg"), Path("in/y/a.jpg"), Path("in/z/a.jpg"), Path("b.jpg")]
    ids = ids_of(path, [*photos, Path("d.jpg")], CLASSES)
    assert [ids.images[str(photo)] for photo in photos] == [7, 8, 9, 4]
    assert ids.left_out == [Path("d.jpg")]
    assert ids.categories == {"cat": 18, "dog": 3, "unknown": 91}
    assert any("91" in note for note in ids.notes)
    assert any("1 images" in note for note in ids.notes)


def test_an_unknown_category_of_the_file_is_used(tmp_path: Path) -> None:
    path = annotation_file(tmp_path, {1: "a.jpg"}, {1: "unknown", 2: "cat"})
    ids = ids_of(path, [Path("a.jpg")], CLASSES)
    assert ids.categories == {"cat": 2, "dog": 3, "unknown": 1}
    assert any("dog is 3" in note for note in ids.notes)


@pytest.mark.parametrize(
    ("photos", "categories", "message"),
    [
        (["in/z/a.jpg"], {1: "cat"}, r"z/a\.jpg: .*2 images of this name"),
        (["u/b.jpg", "v/b.jpg"], {1: "cat"}, r"v/b\.jpg: is the same image .* as u/b\.jpg"),
        (["c.jpg"], {1: "cat"}, r"none of the photos, for example 'c\.jpg'"),
        (["b.jpg"], {1: "bird"}, r"none of the model's classes cat, dog; .* bird"),
    ],
)
def test_what_cannot_be_told_apart_is_an_error(
    tmp_path: Path, photos: list[str], categories: dict[int, str], message: str
) -> None:
    names = {1: "x/a.jpg", 2: "y/a.jpg", 3: "deep/b.jpg"}
    path = annotation_file(tmp_path, names, categories)
    with pytest.raises(DataError, match=message):
        ids_of(path, [Path(photo) for photo in photos], CLASSES)
