"""The demo as a user runs it: real digits, real patches, both trainings, its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from knownot.demo import digits, print_demo, run_demo
from knownot.errors import DataError


def test_the_demo_writes_its_numbers_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    said: list[str] = []
    results = run_demo(tmp_path / "demo", progress=said.append)
    assert json.loads((tmp_path / "demo" / "demo.json").read_text()) == results
    for name in ("toy.png", "histograms.png"):
        with Image.open(tmp_path / "demo" / name) as picture:
            assert picture.width > 600
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {
        "demo.json",
        "histograms.png",
        "toy.png",
    }
    assert len(said) == 4

    assert results["accuracy"]["vos"]["mean"] > 0.97
    assert results["accuracy"]["vos"]["mean"] >= results["accuracy"]["plain"]["mean"] - 0.01
    assert results["flagged_id"]["mean"] < 0.1
    patches = results["ood"]["photo patches"]
    assert patches["VOS, combined (default)"]["auroc"]["mean"] > 0.98
    far = results["toy_confidence_far_from_data"]
    assert far["plain"] > 0.95
    assert far["vos"] < 0.05

    print_demo(results)
    printed = capsys.readouterr().out
    assert "digits 8 and 9" in printed
    assert "photo patches" in printed


def test_the_held_out_digits_are_in_no_split() -> None:
    sets = digits.load_sets(0)
    for images, labels in (sets.train, sets.val, sets.test):
        assert len(images) == len(labels) > 300
        assert set(labels.tolist()) == set(range(8))
    assert {len(images) for images in sets.ood.values()} == {354, 1000}


def test_a_place_that_cannot_be_written_is_named_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    with pytest.raises(DataError, match="file"):
        run_demo(tmp_path / "file" / "demo", progress=said.append)
    assert said == []


def test_the_detection_demo_compares_draws_and_prints(
    detector_folder: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """All of it but the minutes of training: a detector of the tests takes both places."""
    from knownot.demo.detection import ROWS, _compare, _draw, print_detection_demo
    from knownot.evaluation.evaluate_detector import evaluate_detector
    from knownot.models.detector import UnknownAwareDetector
    from knownot.models.model_folder import load

    model = load(detector_folder)
    assert isinstance(model, UnknownAwareDetector)
    report = evaluate_detector(model, scenes, [scenes / "annotations" / "ood.json"])
    results = {**_compare({"plain": report, "vos": report}), "seconds": 1.0}
    measured = report.summary["ood"]["ood.json"]["scores"]
    assert results["fpr95"]["VOS, energy"] == measured["vos"]["fpr95"]
    print_detection_demo(results)
    printed = capsys.readouterr().out
    assert all(title in printed for title, _, _ in ROWS)
    _draw(model, report, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (1440, 960)
        assert len(sheet.getcolors(10**6) or [1] * 1000) > 500
