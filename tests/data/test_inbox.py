"""What is kept of unknown photos, and what is not."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from knownot.data.inbox import Inbox, kept_facts
from knownot.errors import ConfigError
from knownot.models.prediction import Detection, DetectionPrediction
from tests.helpers import noisy

UNKNOWN = {
    "is_unknown": True,
    "ood_score": 9.5,
    "p_value": 0.01,
    "scores": {"knn": 0.7},
    "nearest_class": "dog",
}


def photos(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jpg"))


def test_an_unknown_photo_is_kept_once_with_its_scores_and_nothing_of_its_file(
    tmp_path: Path,
) -> None:
    image = noisy((40, 40, 220), 1)
    image.getexif()[0x010F] = "maker of the camera"
    image.info["comment"] = b"client's words"
    inbox = Inbox(tmp_path / "unknown")
    answer = {**UNKNOWN, "name": "../client.jpg", "path": "/home/client.jpg"}
    assert inbox.keep_unknown(answer, lambda: image) == 1
    assert inbox.keep_unknown(answer, lambda: image) == 0
    assert inbox.keep_unknown({**UNKNOWN, "is_unknown": False}, lambda: image) == 0
    (photo,) = photos(tmp_path / "unknown")
    assert kept_facts(photo) == {k: v for k, v in UNKNOWN.items() if k != "is_unknown"}
    line = photo.with_suffix(".json").read_text()
    assert line.count("\n") == 1
    assert not {b"client", b"maker"} & {w for w in (b"client", b"maker") if w in photo.read_bytes()}
    assert "client" not in line + photo.name
    with Image.open(photo) as kept:
        difference = np.asarray(kept, float) - np.asarray(image, float)
    assert abs(difference.mean()) < 3


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    for name, age in (("torn", 7200), ("in-work", 60)):
        scratch = tmp_path / f".writing-{name}"
        scratch.mkdir()
        (scratch / "file").write_bytes(b"half a photo")
        os.utime(scratch, (time.time() - age,) * 2)
    Inbox(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".writing-in-work"]


def detection(box: tuple[float, ...], unknown: bool = True) -> Detection:
    return Detection(box, "unknown" if unknown else "dog", unknown, 9.5, 0.01, "dog", 0.8)


def test_unknown_boxes_are_cut_out_with_a_margin(tmp_path: Path) -> None:
    image = Image.new("RGB", (200, 100), "black")
    image.paste("white", (50, 20, 90, 60))
    boxes = [
        detection((50, 20, 90, 60)),
        detection((0, 0, 10, 10), unknown=False),
        detection((190, 95, 260, 130)),  # beyond the rim
        detection((30, 30, 30, 30)),  # nothing inside
    ]
    answer = DetectionPrediction(boxes, 200, 100).to_dict()
    assert Inbox(tmp_path).keep_unknown(answer, lambda: image) == 3
    sizes = []
    for path in photos(tmp_path):
        with Image.open(path) as kept:
            sizes.append(kept.size)
            if kept.size == (48, 48):
                assert kept.getpixel((24, 24)) > (250, 250, 250)
                assert kept.getpixel((1, 1)) < (9, 9, 9)
    assert sorted(sizes) == [(1, 1), (17, 9), (48, 48)]
    assert kept_facts(photos(tmp_path)[0])["box"] == [50, 20, 90, 60]


@pytest.mark.parametrize("bound", ["photos", "bytes"])
def test_the_oldest_go_first_and_strange_files_stay(tmp_path: Path, bound: str) -> None:
    Inbox(tmp_path).keep_unknown(UNKNOWN, lambda: noisy((40, 40, 220), 0))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    others = [tmp_path / "20250101T000000000000Z-mine.jpg", tmp_path / "holiday.jpg"]
    for path in others:
        path.write_bytes(bytes(10_000))
    # Killed before the photo was there: such a line goes with the oldest.
    (tmp_path / f"20250101T000000000000Z-{'0' * 16}.json").write_text("{}")
    room = {"most": 3} if bound == "photos" else {"most_bytes": int(3.5 * size)}
    inbox = Inbox(tmp_path, **room)
    for seed in range(1, 6):
        assert inbox.keep_unknown(
            {**UNKNOWN, "ood_score": seed}, lambda s=seed: noisy((40, 40, 220), s)
        )
    kept = [path for path in photos(tmp_path) if path not in others]
    assert [kept_facts(path)["ood_score"] for path in kept] == [3, 4, 5]
    assert all(path.exists() for path in others)
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_a_folder_that_cannot_be_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot keep photos"):
        Inbox(tmp_path / "file")
    with pytest.raises(ConfigError, match="at least one"):
        Inbox(tmp_path, most=0)


def test_facts_of_a_damaged_line_are_none(tmp_path: Path) -> None:
    for text in ("{", "[1]", json.dumps("x")):
        (tmp_path / "a.json").write_text(text)
        assert kept_facts(tmp_path / "a.jpg") == {}


def test_equal_photos_at_the_same_time_are_kept_once(tmp_path: Path) -> None:
    inbox, answer = Inbox(tmp_path), {"is_unknown": True}
    with ThreadPoolExecutor(8) as pool:
        kept = list(
            pool.map(lambda _: inbox.keep_unknown(answer, lambda: noisy((9, 9, 9), 1)), range(16))
        )
    assert sum(kept) == len(list(tmp_path.glob("*.jpg"))) == 1
