"""Copies of photos with the answer below them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from knownot.errors import DataError
from knownot.evaluation.annotate import free_name, save_annotated
from knownot.models.prediction import Prediction
from tests.helpers import noisy


def answer(path: Path, unknown: bool) -> Prediction:
    label = "unknown" if unknown else "red"
    return Prediction(label, unknown, 3.2, 0.01 if unknown else 0.6, "red", 0.9, path=str(path))


def test_unknown_photos_have_a_strip_of_another_colour(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noisy((200, 40, 40), 1).save(path)
    strips = []
    for unknown in (True, False):
        copy = save_annotated(answer(path, unknown), tmp_path / "out")
        with Image.open(copy) as image:
            assert image.height > 32
            assert image.width >= 32
            strips.append(image.convert("RGB").getpixel((1, image.height - 2)))
    (r0, _, b0), (r1, _, b1) = strips
    assert r0 > b0 + 50  # vermilion
    assert b1 > r1 + 50  # blue


def test_equal_names_do_not_overwrite_each_other(tmp_path: Path) -> None:
    copies = []
    for folder in "ab":
        (tmp_path / folder).mkdir()
        noisy((200, 40, 40), 1).save(tmp_path / folder / "same.png")
        copies.append(
            save_annotated(answer(tmp_path / folder / "same.png", False), tmp_path / "out")
        )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "same-1.jpg",
        "same.jpg",
    ]
    assert copies[0] != copies[1]


def test_a_large_photo_is_scaled_down(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 2000)).save(tmp_path / "big.jpg")
    with Image.open(save_annotated(answer(tmp_path / "big.jpg", True), tmp_path / "out")) as image:
        assert image.width == 1024


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    noisy((200, 40, 40), 1).save(tmp_path / "a.png")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file.*cannot be written"):
        save_annotated(answer(tmp_path / "a.png", True), tmp_path / "file")


def test_a_free_name_is_found_without_trying_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    exists = Path.exists

    def counted(path: Path) -> bool:
        nonlocal asked
        asked += 1
        return exists(path)

    monkeypatch.setattr(Path, "exists", counted)
    for _ in range(300):
        target = free_name(tmp_path, "in/a.png", ".jpg")
        assert not exists(target)
        target.touch()
    assert asked < 300 * 20  # not 300 * 300 / 2
    (tmp_path / "a-7.jpg").unlink()
    assert not exists(free_name(tmp_path, "in/a.png", ".jpg"))
