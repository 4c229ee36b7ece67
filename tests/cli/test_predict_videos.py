"""`knownot predict` on real video files made from the rendered scenes."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from knownot.data.video import VideoReader
from knownot.models.model_folder import load
from tests.cli.conftest import Run
from tests.helpers import write_video

FRAMES = 24


@pytest.fixture(scope="module")
def street(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes, for three frames each, at ten frames a second."""
    pictures = []
    for number in range(FRAMES):
        with Image.open(scenes / "images" / f"test_000{number // 3}.jpg") as scene:
            pictures.append(scene.convert("RGB"))
    return write_video(tmp_path_factory.mktemp("videos") / "street.mp4", pictures)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_nth_frame_has_an_answer_and_is_drawn(
    knownot_command: Run, detector_folder: Path, street: Path, tmp_path: Path
) -> None:
    seen, target = tmp_path / "seen", tmp_path / "answers.jsonl"
    code, _, err = knownot_command(
        "predict", detector_folder, street, "--every", 5, "--save-images", seen, "-o", target
    )
    assert code == 0, err
    rows = rows_of(target)
    assert [row["frame"] for row in rows] == [0, 5, 10, 15, 20]
    assert [row["time"] for row in rows] == [0, 0.5, 1, 1.5, 2]
    assert {row["path"] for row in rows} == {str(street)}
    with VideoReader(street) as reader:
        frames = [frame.image for frame in reader.frames(every=5)]
    expected = load(detector_folder).predict(frames)
    for row, answer in zip(rows, expected, strict=True):
        assert [box["label"] for box in row["boxes"]] == [box.label for box in answer.boxes]
        assert [box["p_value"] for box in row["boxes"]] == [box.p_value for box in answer.boxes]
    assert [path.name for path in seen.iterdir()] == ["street.mp4"]
    with VideoReader(seen / "street.mp4") as copy:
        assert copy.rate == 2
        drawn = [frame.image for frame in copy.frames()]
    assert len(drawn) == 5
    for before, after, answer in zip(frames, drawn, expected, strict=True):
        assert after.size == before.size
        changed = np.abs(np.asarray(before, dtype=float) - np.asarray(after)).max(2) > 60
        assert changed.any() == bool(answer.boxes)
    # A second run overwrites nothing.
    knownot_command("predict", detector_folder, street, "--every", 12, "--save-images", seen)
    assert {path.name for path in seen.iterdir()} == {"street.mp4", "street-1.mp4"}


def test_a_damaged_video_has_the_frames_before_and_exit_one(
    knownot_command: Run, detector_folder: Path, scenes: Path, street: Path, tmp_path: Path
) -> None:
    (tmp_path / "half.mp4").write_bytes(street.read_bytes()[: street.stat().st_size // 2])
    (tmp_path / "text.mp4").write_text("no video")
    photo = scenes / "images" / "test_0001.jpg"
    code, out, err = knownot_command(
        "predict", detector_folder, tmp_path / "half.mp4", tmp_path / "text.mp4", photo,
        "--every", 2, "--save-images", tmp_path / "seen", "--json",
    )  # fmt: skip
    assert code == 1
    *frames, cut, text, last = map(json.loads, out.splitlines())
    assert 1 < len(frames) < FRAMES // 2
    assert all(row["error"] is None for row in frames)
    assert "damaged or cut off" in cut["error"]
    assert "not a readable video" in text["error"]
    assert last["path"] == str(photo)
    assert "frame" not in last
    assert "half.mp4" in err
    assert "text.mp4" in err
    assert {p.name for p in (tmp_path / "seen").iterdir()} == {"half.mp4", "test_0001.jpg"}
    with VideoReader(tmp_path / "seen" / "half.mp4") as copy:
        assert len(list(copy.frames())) == len(frames)


def test_photos_and_videos_share_one_csv_file_and_one_table(
    knownot_command: Run, detector_folder: Path, scenes: Path, street: Path, tmp_path: Path
) -> None:
    photo = scenes / "images" / "test_0001.jpg"
    args = ("predict", detector_folder, photo, street, "--every", 8)
    assert knownot_command(*args, "-o", tmp_path / "a.csv")[0] == 0
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["frame"] == ""
    assert {row["frame"] for row in rows if row["path"] == str(street)} == {"0", "8", "16"}
    code, out, _ = knownot_command(*args)
    assert code == 0
    assert "1.60 s" in out
    boxes = sum(row["label"] != "" for row in rows)
    assert f"1 photo, 3 frames, {boxes} box" in out


def test_videos_are_read_when_they_are_named(
    knownot_command: Run, detector_folder: Path, scenes: Path, street: Path, tmp_path: Path
) -> None:
    shutil.copy(street, tmp_path / "a.mp4")
    code, _, err = knownot_command("predict", detector_folder, tmp_path)
    assert code == 1
    assert "*.mp4" in err
    shutil.copy(scenes / "images" / "test_0001.jpg", tmp_path / "b.jpg")
    for pattern, found in [
        (tmp_path, "b.jpg"),
        (tmp_path / "*", "b.jpg"),
        (tmp_path / "*.mp4", "a.mp4"),
    ]:
        _, out, _ = knownot_command("predict", detector_folder, pattern, "--every", 50, "--json")
        assert [Path(json.loads(line)["path"]).name for line in out.splitlines()] == [found]


def test_a_missing_pyav_names_the_command(
    knownot_command: Run, detector_folder: Path, street: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # what Python does for a missing one
    code, out, err = knownot_command("predict", detector_folder, street)
    assert (code, out) == (1, "")
    assert "pip install 'knownot[video]'" in err


def test_an_interrupted_run_leaves_no_file(
    detector_folder: Path, street: Path, tmp_path: Path
) -> None:
    from knownot.evaluation.predict_video import predict_video

    answers = predict_video(load(detector_folder), street, save_to=tmp_path)
    assert next(answers).frame == 0
    answers.close()
    assert list(tmp_path.iterdir()) == []
