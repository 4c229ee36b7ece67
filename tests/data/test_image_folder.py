"""Folders as users have them, and what is said about the wrong ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from knownot.data.image_folder import (
    list_photos,
    read_labelled,
    read_splits,
    shared_photos,
    walk_photos,
)
from knownot.data.reading import read_batches
from knownot.errors import DataError


def add(folder: Path, count: int, start: int = 0, name: str = "p") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        seed = abs(hash((folder.name, i))) % 2**32
        pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}{i}.png")


def two_splits(root: Path) -> None:
    """Six cats and six dogs for training, as many others for validation."""
    for split, start in (("train", 0), ("val", 50)):
        for name in ("cat", "dog"):
            add(root / split / name, 6, start)


def test_train_and_val_folders_are_found(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("val", 5), ("test", 3)):
        for name in ("cat", "dog"):
            add(tmp_path / split / name, count)
    splits = read_splits(tmp_path)
    assert splits.train.counts() == {"cat": 12, "dog": 12}
    assert splits.val.counts() == {"cat": 5, "dog": 5}


def test_split_folders_may_have_capitals(tmp_path: Path) -> None:
    for split, count in (("Train", 12), ("VAL", 5)):
        for name in ("cat", "dog"):
            add(tmp_path / split / name, count)
    splits = read_splits(tmp_path)
    assert splits.train.counts() == {"cat": 12, "dog": 12}
    assert splits.val.counts() == {"cat": 5, "dog": 5}


@pytest.mark.parametrize("split", ["val", "Test"])
def test_a_split_among_the_classes_is_refused(tmp_path: Path, split: str) -> None:
    for folder in ("cat", "dog", f"{split}/cat", f"{split}/dog"):
        add(tmp_path / folder, 6)
    with pytest.raises(DataError, match=rf"{split}: stands among the classes of .*train"):
        read_splits(tmp_path)


def test_what_is_neither_split_nor_class_is_told(tmp_path: Path) -> None:
    two_splits(tmp_path)
    add(tmp_path / "bus", 3)
    (tmp_path / "papers").mkdir()
    splits = read_splits(tmp_path)
    assert [note for note in splits.warnings if "left out" in note] == [
        f"bus: left out, as the classes are those of {tmp_path / 'train'}; if it holds a class, move it "
        "there"
    ]


def test_a_model_among_the_classes_is_no_class(tmp_path: Path) -> None:
    for name in ("cat", "dog", "model/thumbnails"):
        add(tmp_path / name, 6)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).touch()
    splits = read_splits(tmp_path)
    assert splits.train.classes == ["cat", "dog"]
    assert any("model: a model folder, no class" in note for note in splits.warnings)


@pytest.mark.parametrize("wrapped", [False, True])
def test_without_a_val_folder_a_stratified_part_is_set_aside(tmp_path: Path, wrapped) -> None:
    root = tmp_path / "train" if wrapped else tmp_path
    add(root / "a", 40)
    add(root / "b", 20)
    one, again, other = (read_splits(tmp_path, 0.25, seed) for seed in (0, 0, 1))
    assert one.train.counts() == {"a": 30, "b": 15}
    assert one.val.counts() == {"a": 10, "b": 5}
    assert not set(one.train.paths) & set(one.val.paths)
    assert one.val.paths == again.val.paths != other.val.paths
    assert any("set aside" in note for note in one.warnings)


def test_deep_folders_strange_names_and_hidden_files(tmp_path: Path) -> None:
    add(tmp_path / "猫" / "deep" / "er", 1, name="ねこ🐈 %s'\"&<b>")
    add(tmp_path / "dog", 1, name="x" * 240)
    add(tmp_path / "dog" / ".hidden", 3)
    (tmp_path / "dog" / ".secret.jpg").touch()
    (tmp_path / "dog" / "notes.txt").touch()
    (tmp_path / ".git").mkdir()
    photos = read_labelled(tmp_path)
    assert photos.classes == ["dog", "猫"]
    assert photos.counts() == {"dog": 1, "猫": 1}


def test_suffixes_in_capitals_count(tmp_path: Path) -> None:
    (tmp_path / "A.JPG").touch()
    assert [p.name for p in list_photos(tmp_path)] == ["A.JPG"]


def test_missing_empty_and_mistaken_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        read_splits(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        list_photos(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"empty: has no sub-folders; expected .*<class name>"):
        read_splits(empty)
    with pytest.raises(DataError, match=r"empty: holds no photo"):
        list_photos(empty)
    (empty / "cat").mkdir()
    with pytest.raises(DataError, match=r"cat: class folder without a photo"):
        read_splits(empty)
    file = tmp_path / "file.jpg"
    file.touch()
    with pytest.raises(DataError, match=r"file\.jpg: is a file"):
        list_photos(file)
    with pytest.raises(DataError, match=r"file\.jpg: is a file"):
        read_splits(file)


def test_one_class_is_refused(tmp_path: Path) -> None:
    add(tmp_path / "cat", 30)
    with pytest.raises(DataError, match=r"one class only \(cat\)"):
        read_splits(tmp_path)


def test_a_class_called_unknown_is_refused(tmp_path: Path) -> None:
    for name in ("cat", "unknown"):
        add(tmp_path / name, 5)
    with pytest.raises(DataError, match="cannot be called 'unknown'"):
        read_splits(tmp_path)


def test_a_class_with_one_photo_stays_in_training(tmp_path: Path) -> None:
    add(tmp_path / "cat", 30)
    add(tmp_path / "okapi", 1)
    splits = read_splits(tmp_path)
    assert splits.train.counts()["okapi"] == 1
    assert splits.val.counts()["okapi"] == 0
    assert any("'okapi' has only 1 training photo" in note for note in splits.warnings)
    assert any("'okapi' has no validation photo" in note for note in splits.warnings)


def test_single_photos_everywhere_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        add(tmp_path / name, 1)
    with pytest.raises(DataError, match=f"{tmp_path}: every class has a single photo"):
        read_splits(tmp_path)


def test_a_photo_in_two_splits_is_reported(tmp_path: Path) -> None:
    two_splits(tmp_path)
    twin = tmp_path / "val" / "cat" / "renamed.png"
    twin.write_bytes((tmp_path / "train" / "cat" / "p0.png").read_bytes())
    notes = read_splits(tmp_path).warnings
    assert any("1 photo(s) stand in both train and val" in n and "renamed.png" in n for n in notes)


def test_a_photo_with_two_classes_is_reported(tmp_path: Path) -> None:
    two_splits(tmp_path)
    copy = tmp_path / "train" / "dog" / "copy.png"
    copy.write_bytes((tmp_path / "train" / "cat" / "p0.png").read_bytes())
    (note,) = [n for n in read_splits(tmp_path).warnings if "several classes" in n]
    assert "1 photo(s) of train" in note
    assert "copy.png" in note


def test_photos_beside_the_class_folders_are_reported(tmp_path: Path) -> None:
    two_splits(tmp_path)
    assert not any("beside" in note for note in read_splits(tmp_path).warnings)
    for split in ("train", "val"):
        photo = (tmp_path / "train" / "cat" / "p0.png").read_bytes()
        (tmp_path / split / "astray.png").write_bytes(photo)
        (tmp_path / split / "notes.txt").touch()
    notes = [n for n in read_splits(tmp_path).warnings if "beside the class folders" in n]
    assert [note.split()[0] for note in notes] == ["1", "1"]
    for note, split in zip(notes, ("train", "val"), strict=True):
        assert str(tmp_path / split / "astray.png") in note


def test_a_link_that_leads_back_is_not_followed(tmp_path: Path) -> None:
    cat = tmp_path / "train" / "cat"
    add(cat, 6)
    add(tmp_path / "train" / "dog", 6, 50)
    before = list_photos(tmp_path)
    (cat / "up").symlink_to(tmp_path / "train")
    (cat / "self").symlink_to(cat)
    assert list_photos(tmp_path) == before
    assert len(list_photos(cat)) == 6
    (cat / "gone.png").symlink_to(tmp_path / "nothing")  # listed where photos are read
    assert (
        sum(
            part.counts()["cat"]
            for part in (read_splits(tmp_path).train, read_splits(tmp_path).val)
        )
        == 7
    )


def test_a_folder_and_a_link_to_it_are_the_same_photos(tmp_path: Path) -> None:
    add(tmp_path / "real", 3)
    (tmp_path / "a-link").symlink_to(tmp_path / "real")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "another").symlink_to(tmp_path / "real")
    assert [path.parent.name for path in list_photos(tmp_path)] == ["real"] * 3


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    add(tmp_path, 1)
    add(tmp_path / "below", 2)
    walked = walk_photos(tmp_path)
    next(walked)
    shutil.rmtree(tmp_path / "below")  # as good as one without the right to look inside
    with pytest.raises(DataError, match=r"below: cannot be read \(No such file"):
        list(walked)
    (tmp_path / "lost+found").mkdir()
    add(tmp_path / "lost+found", 1)
    assert len(list_photos(tmp_path)) == 1


def test_twins_within_a_split_are_no_leak(tmp_path: Path) -> None:
    add(tmp_path / "a", 1)
    copy = tmp_path / "a" / "copy.png"
    copy.write_bytes((tmp_path / "a" / "p0.png").read_bytes())
    assert shared_photos({"train": list_photos(tmp_path / "a"), "val": []}) == []


def test_strange_class_folders_of_a_test_set_are_named(tmp_path: Path) -> None:
    for name in ("cat", "cow"):
        add(tmp_path / name, 2)
    with pytest.raises(DataError, match=r"cow are not among the classes cat, dog"):
        read_labelled(tmp_path, ["cat", "dog"])


def test_batches_come_in_order_and_bad_photos_are_listed() -> None:
    def read(number: int) -> torch.Tensor:
        if number % 7 == 3:
            raise DataError(f"{number}: bad")
        return torch.full((1,), float(number))

    skipped: dict[int, str] = {}
    batches = list(read_batches(range(50), read, 8, skipped, workers=3))
    seen = [i for indices, _ in batches for i in indices]
    assert seen == [i for i in range(50) if i % 7 != 3]
    assert [row.item() for _, rows in batches for row in rows] == seen
    assert sorted(skipped) == [i for i in range(50) if i % 7 == 3]
    assert all(len(indices) == 8 for indices, _ in batches[:-1])


def test_an_unexpected_error_of_the_reader_is_not_swallowed() -> None:
    def read(number: int) -> torch.Tensor:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(read_batches(range(5), read, 2, {}))
