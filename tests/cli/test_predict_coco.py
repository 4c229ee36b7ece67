"""`knownot predict --format coco`: what pycocotools reads and measures is what knownot measures."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from knownot.evaluation.box_metrics import mean_average_precision
from knownot.evaluation.detect_set import as_boxes
from knownot.evaluation.evaluate_detector import evaluate_detector
from knownot.models.model_folder import load
from tests.cli.conftest import Run


def pycocotools_map(annotations: Path, results: Path) -> float:
    truth = COCO(str(annotations))
    measured = COCOeval(truth, truth.loadRes(str(results)), "bbox")
    measured.evaluate()
    measured.accumulate()
    measured.summarize()
    return measured.stats[0]


@pytest.mark.parametrize("alpha", [0.05, 1e-9])
def test_pycocotools_measures_the_same(
    knownot_command: Run, detector_folder: Path, scenes: Path, tmp_path: Path, alpha: float
) -> None:
    annotations = scenes / "annotations" / "test.json"
    target = tmp_path / "results.json"
    code, _, err = knownot_command(
        "predict", detector_folder, scenes / "images", "--format", "coco", "-o", target,
        "--annotations", annotations, "--alpha", alpha,
    )  # fmt: skip
    assert code == 0, err
    assert "left out 160 photos" in err  # those of the other splits, in the same folder
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    rows = json.loads(target.read_text())
    names = {c["id"]: c["name"] for c in json.loads(annotations.read_text())["categories"]}
    unknown_id = max(names) + 1
    report = evaluate_detector(load(detector_folder), annotations, alpha=alpha, box_threshold=0.0)
    # All boxes, but an unknown object once.
    shown = report.id_set.shown
    found = [
        {name: values[kept] for name, values in photo.items()}
        for photo, kept in zip(report.id_set.found, shown, strict=True)
    ]
    unknown_of = [u[kept] for u, kept in zip(report.id_set.unknown, shown, strict=True)]
    assert len(rows) == sum(len(photo["labels"]) for photo in found)
    called = torch.cat(unknown_of)
    assert sum(row["category_id"] == unknown_id for row in rows) == int(called.sum())
    assert called.any() == (alpha == 0.05)
    for row in rows:
        assert row["is_unknown"] == (row["category_id"] == unknown_id) == (row["p_value"] < alpha)
        assert names[row["nearest_category_id"]] in report.classes
    # A box called unknown is none of a known class: the same boxes with a class more.
    unknown = len(report.classes)
    boxes = [
        replace(as_boxes(photo), labels=photo["labels"].masked_fill(u, unknown))
        for photo, u in zip(found, unknown_of, strict=True)
    ]
    own = mean_average_precision(boxes, report.id_set.truth, [*report.classes, "unknown"])["map"]
    measured = pycocotools_map(annotations, target)
    assert measured == pytest.approx(own, abs=1e-6)
    assert 0.1 < measured <= report.summary["map"] + 1e-6
    if alpha < 0.05:
        assert measured == pytest.approx(report.summary["map"], abs=1e-6)


def test_without_annotations_the_ids_are_told_beside(
    knownot_command: Run, detector_folder: Path, scenes: Path, tmp_path: Path
) -> None:
    photos = [tmp_path / name for name in ("b.jpg", "a.jpg")]
    for number, photo in enumerate(photos):
        shutil.copy(scenes / "images" / f"test_000{number}.jpg", photo)
    (tmp_path / "broken.jpg").write_text("no photo")
    target = tmp_path / "new" / "results.json"
    code, _, err = knownot_command(
        "predict", detector_folder, tmp_path / "broken.jpg", *photos, "--format", "coco",
        "-o", target,
    )  # fmt: skip
    assert code == 1  # one photo could not be read
    assert "broken.jpg" in err
    assert f"category_id of unknown boxes: {len(load(detector_folder).classes) + 1}" in err
    assert {path.name for path in target.parent.iterdir()} == {
        "results.json",
        "results.images.json",
    }
    ids = COCO(str(target.parent / "results.images.json"))
    assert {i: image["file_name"] for i, image in ids.imgs.items()} == {
        2: str(photos[0]),
        3: str(photos[1]),
    }
    model = load(detector_folder)
    categories = {number: c["name"] for number, c in ids.cats.items()}
    assert categories == dict(enumerate([*model.classes, "unknown"], 1))
    results = ids.loadRes(str(target))
    for number, answer in enumerate(model.predict_iter(photos, box_threshold=0.0), 2):
        rows = [results.anns[i] for i in results.getAnnIds(imgIds=[number])]
        assert [categories[row["category_id"]] for row in rows] == [b.label for b in answer.boxes]
        assert [row["score"] for row in rows] == [box.confidence for box in answer.boxes]
        for row, box in zip(rows, answer.boxes, strict=True):
            x, y, width, height = row["bbox"]
            assert (x, y, x + width, y + height) == pytest.approx(box.box)
            assert row["ood_score"] == box.ood_score


def test_a_box_threshold_leaves_boxes_out(
    knownot_command: Run, detector_folder: Path, scenes: Path, tmp_path: Path
) -> None:
    photo, target = scenes / "images" / "test_0001.jpg", tmp_path / "r.json"
    args = ("predict", detector_folder, photo, "--format", "coco", "-o", target)
    knownot_command(*args, "--box-threshold", 0.9)
    few = json.loads(target.read_text())
    knownot_command(*args)
    every = json.loads(target.read_text())
    assert few == [row for row in every if row["score"] >= 0.9]
    assert len(few) < len(every)
    knownot_command(*args, "--box-threshold", 1)
    assert json.loads(target.read_text()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--format", "coco"), "add -o"),
        (("--annotations", "{scenes}/annotations/test.json"), "--format coco"),
        (("--format", "coco", "-o", "{tmp}/r.json", "--annotations", "nowhere.json"), "nowhere"),
        (("--format", "coco", "-o", "{tmp}/r.json", "{tmp}/a.mp4"), "a.mp4: .*for photos"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    knownot_command: Run, detector_folder: Path, scenes: Path, tmp_path: Path, args, message: str
) -> None:
    (tmp_path / "a.mp4").touch()
    given = [arg.format(scenes=scenes, tmp=tmp_path) for arg in args]
    photo = scenes / "images" / "test_0001.jpg"
    code, out, err = knownot_command("predict", detector_folder, photo, *given)
    assert (code, out) == (1, "")
    assert re.search(message, err)
    assert not (tmp_path / "r.json").exists()
