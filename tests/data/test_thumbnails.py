"""Thumbnails of training photos: what is kept, and what of a stranger's folder is read."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from knownot.data.thumbnails import Thumbnails, write_thumbnails
from knownot.errors import ModelFileError
from tests.helpers import COLOURS, noisy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two thumbnails; the photo between them is gone."""
    exif = Image.Exif()
    exif[0x010F] = "maker of the camera"
    exif[0x0112] = 6  # lies on its side
    red, green = (noisy(colour, 0).resize((300, 150)) for colour in COLOURS.values())
    red.save(tmp_path / "red.jpg", exif=exif, comment="words")
    green.save(tmp_path / "green.png")
    photos = [tmp_path / name for name in ("red.jpg", "gone.png", "green.png")]
    write_thumbnails(tmp_path / "thumbnails", photos, [0, 1, 1])
    return tmp_path / "thumbnails"


def test_small_upright_pictures_and_nothing_else(folder: Path) -> None:
    thumbnails = Thumbnails(folder, 2)
    assert thumbnails.labels == [0, None, 1]
    red, gone, green = (thumbnails.jpeg(number) for number in range(3))
    assert red is not None
    assert green is not None
    assert gone is None
    assert [Image.open(io.BytesIO(data)).size for data in (red, green)] == [(48, 96), (96, 48)]
    assert Image.open(io.BytesIO(red)).getpixel((20, 40))[0] > 150
    assert b"maker" in (folder.parent / "red.jpg").read_bytes()
    assert not any(word in red for word in (b"maker", b"words", b"Exif"))
    assert thumbnails.jpeg(-1) is thumbnails.jpeg(3) is None
    thumbnails.close()


def test_a_strangers_folder_leads_nowhere(folder: Path) -> None:
    secret = folder.parent / "secret.jpg"
    (folder / "000000.jpg").rename(secret)
    names = [f"{number:06d}.jpg" for number in range(7)]
    (folder / names[0]).symlink_to(secret)
    os.mkfifo(folder / names[1])  # opened carelessly, it would keep the service waiting
    (folder / names[3]).mkdir()
    (folder / names[4]).write_bytes(secret.read_bytes() + bytes(2**16))
    noisy(COLOURS["red"], 0).resize((97, 20)).save(folder / names[5])
    (folder / names[6]).write_text("<html>")
    noisy(COLOURS["red"], 0).save(folder / "000007.png")
    (folder / "000007.png").rename(folder / "000007.jpg")
    (folder / "labels.json").write_text(json.dumps([0] * 8))
    thumbnails = Thumbnails(folder, 2)
    assert [n for n in range(8) if thumbnails.jpeg(n) is not None] == [2]
    # Another folder in its place is not looked at.
    folder.rename(folder.parent / "away")
    folder.symlink_to(folder.parent)
    assert thumbnails.jpeg(2) is not None
    thumbnails.close()
    with pytest.raises(ModelFileError, match="is no folder of thumbnails"):
        Thumbnails(folder, 2)


@pytest.mark.parametrize(
    "labels", ["", "{}", "[0, 2]", "[-1]", "[true]", "[0.5]", "[" * 100_000, "[" + "0," * 10**6]
)
def test_damaged_labels_are_refused(folder: Path, labels: str) -> None:
    (folder / "labels.json").write_text(labels)
    with pytest.raises(
        ModelFileError, match=r"labels\.json: is missing or damaged; expected the folder"
    ):
        Thumbnails(folder, 2)


def test_labels_of_a_million_photos_are_read(folder: Path) -> None:
    (folder / "labels.json").write_text("[" + ", ".join(["1"] * 10**6) + "]")
    thumbnails = Thumbnails(folder, 2)
    assert len(thumbnails.labels) == 10**6
    thumbnails.close()
