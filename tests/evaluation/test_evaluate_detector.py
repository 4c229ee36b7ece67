"""A real detector against scenes: the numbers follow from the boxes that the report holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torchvision.ops import box_iou

import knownot
from knownot.core import metrics
from knownot.data.detection_folder import read_detection
from knownot.data.detection_set import Objects
from knownot.errors import DataError
from knownot.evaluation.box_matching import on_known_object
from knownot.evaluation.evaluate_detector import DetectionReport, evaluate_detector
from knownot.models.detector import UnknownAwareDetector


@pytest.fixture(scope="module")
def model(detector_folder: Path) -> UnknownAwareDetector:
    loaded = knownot.load(detector_folder)
    assert isinstance(loaded, UnknownAwareDetector)
    return loaded


@pytest.fixture(scope="module")
def report(model: UnknownAwareDetector, scenes: Path) -> DetectionReport:
    return evaluate_detector(model, scenes, [scenes / "annotations" / "ood.json"])


def test_the_detector_is_worth_measuring(report: DetectionReport) -> None:
    assert report.summary["map_50"] > 0.5
    assert report.summary["ood"]["ood.json"]["auroc"] > 0.5


def test_fpr95_is_that_of_all_boxes_above_the_threshold(
    report: DetectionReport, model: UnknownAwareDetector
) -> None:
    rows = {}
    for name, scored in (("id", report.id_set), ("ood", report.ood_sets[0])):
        kept = []
        for found, truth in zip(scored.found, scored.truth, strict=True):
            above = found["scores"] >= model.box_threshold
            if name == "ood":  # what lies on a known shape in an OOD scene is no unknown
                known = truth.boxes[truth.labels >= 0]
                above &= ~(box_iou(found["boxes"], known) >= 0.5).any(1)
            kept.append(found["ood.combined"][above])
        rows[name] = torch.cat(kept)
    summary = report.summary["ood"]["ood.json"]
    assert summary["fpr95"] == metrics.fpr95(rows["id"], rows["ood"])
    assert summary["auroc"] == metrics.auroc(rows["id"], rows["ood"])
    assert summary["n_boxes"] == len(rows["ood"])
    assert report.summary["n_id_boxes"] == len(rows["id"])


def test_fpr95_found_leaves_out_what_found_no_object(report: DetectionReport) -> None:
    known = torch.cat(
        [
            found["ood.combined"][right]
            for found, right in zip(report.id_set.found, report.id_set.right, strict=True)
        ]
    )
    unknown = report.ood_sets[0].scores["combined"]
    row = report.summary["ood"]["ood.json"]
    assert row["fpr95_found"] == metrics.fpr95(known, unknown)
    assert len(known) == report.summary["n_id_objects_found"]


def test_flagged_id_is_the_share_of_found_known_objects(report: DetectionReport) -> None:
    flagged = torch.cat(
        [u[r] for u, r in zip(report.id_set.unknown, report.id_set.right, strict=True)]
    )
    summary = report.summary
    assert summary["n_id_objects_found"] == len(flagged) > 20
    assert summary["flagged_id"] == float(flagged.double().mean())
    low, high = summary["flagged_id_interval"]
    assert low <= summary["flagged_id"] <= high


def test_boxes_on_known_objects_of_an_ood_photo_count_for_neither() -> None:
    square, far = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]
    crowd, strange = [20.0, 20.0, 40.0, 40.0], [70.0, 70.0, 80.0, 80.0]
    truth = Objects(
        torch.tensor([square, crowd, strange]),
        torch.tensor([1, 0, -1]),
        torch.tensor([False, True, False]),
    )
    inside_crowd = [22.0, 22.0, 26.0, 26.0]
    boxes = torch.tensor([square, [0.0, 0.0, 10.0, 9.0], inside_crowd, strange, far])
    assert on_known_object(boxes, truth).tolist() == [True, True, True, False, False]
    assert on_known_object(boxes, Objects.none()).tolist() == [False] * 5


def test_unknown_objects_are_those_of_no_known_class(
    report: DetectionReport, scenes: Path, model: UnknownAwareDetector
) -> None:
    photos = read_detection(scenes / "annotations" / "ood.json")
    counts = photos.counts()
    unknown = sum(n for name, n in counts.items() if name not in model.classes)
    measured = report.summary["ood"]["ood.json"]["open_set"]
    assert measured["n_unknown"] == unknown > 0
    assert 0 <= measured["unknown_recall"] <= 1
    assert 0 <= measured["aose"] <= unknown


def test_proposals_add_unknown_objects_and_never_take_one_away(
    model: UnknownAwareDetector, report: DetectionReport, scenes: Path, tmp_path: Path
) -> None:
    ood = scenes / "annotations" / "ood.json"
    more = evaluate_detector(model, scenes, [ood], alpha=0.3, proposals=True)
    row = more.summary["ood"]["ood.json"]
    with_them, without = row["open_set_with_proposals"], row["open_set"]
    assert with_them["unknown_recall"] >= without["unknown_recall"]
    assert with_them["aose"] == without["aose"]
    added = more.ood_sets[0].proposals
    assert row["photos_with_proposals"] == sum(len(a["boxes"]) > 0 for a in added) / len(added) > 0
    assert "no known class claims" in more.save(tmp_path).read_text()
    assert "open_set_with_proposals" not in report.summary["ood"]["ood.json"]


def test_every_score_is_reported(report: DetectionReport) -> None:
    scores = report.summary["ood"]["ood.json"]["scores"]
    assert set(scores) == {"energy", "vos", "msp", "mahalanobis", "knn", "combined"}
    assert scores["combined"]["fpr95"] == report.summary["ood"]["ood.json"]["fpr95"]


def test_further_scores_stand_beside_the_model_s_own(
    model: UnknownAwareDetector, scenes: Path
) -> None:
    ood = scenes / "annotations" / "ood.json"
    report = evaluate_detector(
        model, scenes, [ood], further=lambda found: {"again": found["ood.knn"] * 2}
    )
    measured = report.summary["ood"]["ood.json"]["scores"]
    assert measured["again"] == measured["knn"]
    assert report.score in measured


def test_the_report_is_a_page_with_pictures(report: DetectionReport, tmp_path: Path) -> None:
    page = report.save(tmp_path / "r").read_text()
    assert "mAP" in page
    assert page.count("data:image/jpeg;base64,") >= 1
    assert json.loads((tmp_path / "r" / "metrics.json").read_text()) == report.summary


def test_a_plain_folder_is_an_ood_set(
    model: UnknownAwareDetector, scenes: Path, tmp_path: Path
) -> None:
    import shutil

    (tmp_path / "plain").mkdir()
    for i in range(4):
        shutil.copy(scenes / "images" / f"ood_000{i}.jpg", tmp_path / "plain")
    (tmp_path / "plain" / "broken.jpg").write_text("no photo")
    result = evaluate_detector(model, scenes, [tmp_path / "plain"], box_threshold=0.3).summary
    assert result["ood"]["plain"]["n"] == 4
    assert result["ood"]["plain"]["open_set"]["n_unknown"] == 0
    assert any("broken.jpg" in path for path in result["skipped"])
    assert result["box_threshold"] == 0.3


def write_ood(annotations: dict, scenes: Path, folder: Path) -> Path:
    """A COCO file of these annotations beside the scenes' photos."""
    (folder / "annotations").mkdir()
    (folder / "images").symlink_to(scenes / "images")
    ood = folder / "annotations" / "odd.json"
    ood.write_text(json.dumps(annotations))
    return ood


def test_what_is_wrong_with_the_annotations_of_an_ood_set_is_told(
    model: UnknownAwareDetector, scenes: Path, tmp_path: Path
) -> None:
    annotations = json.loads((scenes / "annotations" / "ood.json").read_text())
    annotations["annotations"][0]["bbox"] = [1, 1, 0, 5]
    ood = write_ood(annotations, scenes, tmp_path)
    (problem,) = evaluate_detector(model, scenes, [ood]).summary["problems"]
    assert "odd.json" in problem


def test_a_category_spelt_all_but_as_a_class_is_told(
    model: UnknownAwareDetector, scenes: Path, tmp_path: Path
) -> None:
    annotations = json.loads((scenes / "annotations" / "ood.json").read_text())
    known = model.classes[0]
    annotations["categories"].append({"id": 99, "name": f" {known.title()}"})
    annotations["annotations"][0]["category_id"] = 99
    ood = write_ood(annotations, scenes, tmp_path)
    (problem,) = evaluate_detector(model, scenes, [ood]).summary["problems"]
    assert problem.startswith("category nearly a class: ")
    assert f"' {known.title()}' counts as unknown, the detector's class is '{known}'" in problem


def test_no_box_at_all_leaves_numbers_out(model: UnknownAwareDetector, scenes: Path) -> None:
    ood = scenes / "annotations" / "ood.json"
    report = evaluate_detector(model, scenes, [ood], box_threshold=1.01)
    assert report.summary["flagged_id"] is None
    assert report.summary["ood"]["ood.json"]["fpr95"] is None
    assert "mean_fpr95" not in report.summary


def test_a_wrong_path_is_told_before_any_photo_is_read(
    model: UnknownAwareDetector, scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="nowhere"):
        evaluate_detector(model, scenes, [tmp_path / "nowhere"])
    with pytest.raises(DataError):
        evaluate_detector(model, tmp_path / "nowhere")
