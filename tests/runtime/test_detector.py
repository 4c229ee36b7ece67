"""Exported detectors without torch, and files that are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from knownot.errors import ConfigError, ModelFileError
from knownot.models.detector import UnknownAwareDetector
from knownot.runtime import OnnxClassifier, OnnxDetector, open_onnx
from knownot.runtime.metadata import ExportMetadata
from knownot.runtime.onnx_file import sealed, unsealed
from tests.runtime.test_onnx_file import BLOCKED

Pair = tuple[UnknownAwareDetector, Path]


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Two photos of noise, and one that is none."""
    random = np.random.default_rng(3)
    paths = [tmp_path / "photos" / name for name in ("a.png", "b.png", "torn.png")]
    paths[0].parent.mkdir()
    for path in paths[:2]:
        Image.fromarray(random.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(path)
    paths[2].write_bytes(paths[0].read_bytes()[:80])
    return paths


def test_the_file_tells_its_task(exported_detector: Pair, exported_file: Path) -> None:
    path = exported_detector[1]
    assert isinstance(open_onnx(path, threads=1), OnnxDetector)
    assert isinstance(open_onnx(exported_file, threads=1), OnnxClassifier)
    with pytest.raises(ModelFileError, match=r"holds a detector, not a classifier.*open_onnx"):
        OnnxClassifier(path)
    with pytest.raises(ModelFileError, match=r"holds a classifier, not a detector.*open_onnx"):
        OnnxDetector(exported_file)


def test_files_are_answered_in_order(exported_detector: Pair, photos: list[Path]) -> None:
    model, path = exported_detector
    found, expected = OnnxDetector(path).predict(photos), model.predict(photos)
    assert [answer.path for answer in found] == [str(photo) for photo in photos]
    assert [answer.error for answer in found] == [answer.error for answer in expected]
    assert found[2].error is not None
    assert "torn.png" in found[2].error
    for one, other in zip(expected, found, strict=True):
        assert [box.label for box in one.boxes] == [box.label for box in other.boxes]


def test_prepared_pixels_are_answered_alike(exported_detector: Pair, photos: list[Path]) -> None:
    exported = OnnxDetector(exported_detector[1])
    pixels = [exported.prepare(Image.open(photo)) for photo in photos[:2]]
    found = exported.answer_prepared(pixels, alpha=0.4, score="vos")
    expected = exported.predict(photos[:2], alpha=0.4, score="vos")
    assert [answer.boxes for answer in found] == [answer.boxes for answer in expected]


def test_wrong_settings_are_refused(exported_detector: Pair, photos: list[Path]) -> None:
    exported = OnnxDetector(exported_detector[1])
    for options, message in (
        ({"proposals": True}, "proposals: an exported detector has none"),
        ({"score": "max"}, "score: expected one of"),
        ({"alpha": 0.0}, "alpha"),
        ({"box_threshold": 2.0}, "box_threshold"),
    ):
        with pytest.raises(ConfigError, match=message):
            list(exported.predict_iter(photos, **options))
    assert "photo: expected" in str(exported.predict([3])[0].error)


@pytest.mark.parametrize(
    "damage",
    [{"box_threshold": 3}, {"longest_side": "long"}, {"classes": []}, {"crop": 1.0}, {"alpha": 0}],
)
def test_damaged_descriptions_are_refused(exported_detector: Pair, damage: dict[str, Any]) -> None:
    text = OnnxDetector(exported_detector[1]).metadata.to_json()
    assert ExportMetadata.from_json(text).to_json() == text
    with pytest.raises(ModelFileError, match="damaged"):
        ExportMetadata.from_json(json.dumps(json.loads(text) | damage))


def test_damaged_files_are_refused(exported_detector: Pair, tmp_path: Path) -> None:
    whole = exported_detector[1].read_bytes()
    broken = tmp_path / "broken.onnx"
    for place in range(0, len(whole), len(whole) // 7):
        data = bytearray(whole)
        data[place] ^= 1
        broken.write_bytes(data)
        with pytest.raises(ModelFileError, match=r"broken\.onnx: "):
            open_onnx(broken)
    broken.write_bytes(whole[:-1])
    with pytest.raises(ModelFileError, match="is no model that knownot exported"):
        open_onnx(broken)


def test_a_classifiers_graph_is_no_detector(
    exported_detector: Pair, exported_file: Path, tmp_path: Path
) -> None:
    description = unsealed(exported_detector[1])[1]
    other = tmp_path / "other.onnx"
    other.write_bytes(sealed(unsealed(exported_file)[0], description))
    with pytest.raises(ModelFileError, match="has outputs logits"):
        open_onnx(other)


def test_the_command_finds_boxes_without_torch(
    exported_detector: Pair, photos: list[Path], tmp_path: Path
) -> None:
    model, path = exported_detector
    seen, results = tmp_path / "seen", tmp_path / "results.json"
    arguments = ["predict", path, *photos[:2], "--format", "coco", "-o", results]
    command = [sys.executable, "-c", BLOCKED, *arguments, "--save-images", seen]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(results.read_text())
    expected = list(model.predict_iter(photos[:2], box_threshold=0.0))
    assert len(rows) == sum(len(answer.boxes) for answer in expected) > 0
    assert sorted(file.name for file in seen.iterdir()) == ["a.jpg", "b.jpg"]


def test_thin_photos_are_answered_or_refused_by_name(
    exported_detector: Pair, tmp_path: Path
) -> None:
    model, path = exported_detector
    files = []
    for size in ((1, 100), (1, 2500), (1334, 1), (40, 40)):
        files.append(tmp_path / f"{size[0]}-{size[1]}.png")
        Image.new("RGB", size, "red").save(files[-1])
    for detector in (model, OnnxDetector(path)):
        errors = [answer.error for answer in detector.predict(files)]
        assert errors[0] is errors[3] is None
        assert all(
            f"{file}: " in error for file, error in zip(files[1:3], errors[1:3], strict=True)
        )
        assert all("too thin" in error for error in errors[1:3])
