"""Exported detectors: the same boxes, whole files or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator

from knownot.data.detection_folder import read_detection_splits
from knownot.data.detection_set import DetectionSet
from knownot.errors import ConfigError, DataError, ExportError
from knownot.export.detector_graph import DetectorGraph
from knownot.export.detector_parity import DetectorParity, check_detector_parity
from knownot.export.export import export_model
from knownot.export.faster_rcnn import TraceableFasterRCNN
from knownot.export.parity import generated_photos
from knownot.models.detector import UnknownAwareDetector
from knownot.models.faster_rcnn import AdaptedFasterRCNN
from knownot.models.finished_faster_rcnn import FinishedFasterRCNN
from knownot.models.regions import RegionModel
from knownot.models.torchvision_faster_rcnn import FasterRCNNRegions, FasterRCNNSettings
from knownot.runtime import OnnxDetector
from knownot.training.config import DetectionConfig
from knownot.training.recorded_photos import detector_photos, with_objects
from tests.helpers import tiny_detector

Pair = tuple[UnknownAwareDetector, Path]


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


PHOTOS = [
    noise(90, 70),
    noise(1, 1),
    noise(800, 20),
    noise(20, 800),
    noise(64, 64),
    noise(333, 500),
]


def test_boxes_are_the_models_own(exported_detector: Pair) -> None:
    model, path = exported_detector
    exported = OnnxDetector(path)
    unknown, repeated = set(), 0
    for options in ({}, {"score": "knn"}, {"alpha": 0.5}, {"box_threshold": 0.9}):
        for photo in PHOTOS:
            (expected,) = model.predict_iter([photo], **options)
            (found,) = exported.predict_iter([photo], **options)
            assert (found.width, found.height) == photo.size
            assert len(expected.boxes) == len(found.boxes)
            for one, other in zip(expected.boxes, found.boxes, strict=True):
                assert (one.label, one.is_unknown, one.nearest_class, one.p_value) == (
                    other.label,
                    other.is_unknown,
                    other.nearest_class,
                    other.p_value,
                )
                assert other.box == pytest.approx(one.box, abs=1e-4 * max(photo.size))
                assert other.confidence == pytest.approx(one.confidence, abs=1e-5)
                # Of random weights, with steps of few calibration boxes: steeper than any trained one.
                assert other.ood_score == pytest.approx(one.ood_score, abs=1e-3, rel=1e-3)
                assert other.scores == pytest.approx(one.scores, abs=1e-3, rel=1e-3)
                unknown.add(one.is_unknown)
        # An unknown object is shown once, by its most certain box.
        repeated += len(next(exported.predict_iter([photo], alpha=1e-9)).boxes) - len(found.boxes)
    assert unknown == {True, False}
    assert repeated > 0


def test_the_graph_alone_answers_for_pixels(exported_detector: Pair) -> None:
    model, path = exported_detector
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    found = dict(zip(outputs, session.run(None, {"photo": np.array(PHOTOS[0])}), strict=True))
    (expected,) = model.predict(PHOTOS[0])
    rows = len(expected.boxes)
    assert found["boxes"].shape == (rows, 4)
    assert found["logits"].shape == (rows, len(model.classes) + 1)
    assert found["scores"].shape == (rows, len(model.calibrations))
    assert found["is_unknown"].tolist() == [box.is_unknown for box in expected.boxes]
    assert found["confidence"].min() >= model.box_threshold


def test_the_file_tells_what_it_holds(exported_detector: Pair) -> None:
    model, path = exported_detector
    metadata = OnnxDetector(path).metadata
    assert (metadata.task, metadata.classes) == ("detect", model.classes)
    assert metadata.scores == list(model.calibrations)
    assert metadata.threshold == model.threshold()
    assert metadata.box_threshold == model.box_threshold
    assert (metadata.image_size, metadata.longest_side) == (64, 106)
    assert metadata.parity["answers"] > metadata.parity["photos"]
    assert metadata.parity["without_boxes"] > 0
    assert metadata.calibration is not None
    assert len(metadata.calibration.sizes) == 3 * len(model.classes)


def test_grey_photos_and_arrays(exported_detector: Pair) -> None:
    model, path = exported_detector
    grey = PHOTOS[0].convert("L")
    exported = OnnxDetector(path)
    (expected,) = model.predict(grey)
    for kind in (grey, np.array(grey), torch.from_numpy(np.array(grey))[None], [grey]):
        (found,) = exported.predict(kind)
        assert [box.label for box in found.boxes] == [box.label for box in expected.boxes]


def test_a_change_of_the_model_is_told(exported_detector: Pair) -> None:
    _, path = exported_detector
    exported = OnnxDetector(path)
    shifted = tiny_detector()
    assert shifted.feature_scores is not None
    shifted.feature_scores.bank += 0.02
    with pytest.raises(ExportError, match=r"differently in \d+ of \d+ cases.*knn"):
        check_detector_parity(shifted, exported)
    moved = tiny_detector()
    moved.regions.model.roi_heads.box_predictor.bbox_pred.bias.data += 0.05
    with pytest.raises(ExportError, match=r"noise 0, 1 x 1: \w+ 0\.\d+ at [\d ]+ is missing"):
        check_detector_parity(moved, exported)


def test_one_box_less_or_more_is_told(exported_detector: Pair) -> None:
    (answer,) = exported_detector[0].predict(PHOTOS[0])
    fewer = type(answer)(answer.boxes[1:], answer.width, answer.height)
    parity = DetectorParity()
    parity.compare_boxes("a", answer, answer)
    assert not parity.differences
    parity.compare_boxes("a", answer, fewer)
    parity.compare_boxes("b", fewer, answer)
    assert [text.split()[-1] for text in parity.differences] == ["missing", "new"]
    with pytest.raises(ExportError, match=r"a: .* is missing; b: .* is new"):
        parity.refuse_differences()


def test_given_photos_are_compared(exported_detector: Pair, tmp_path: Path) -> None:
    model, path = exported_detector
    PHOTOS[0].save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no photo")
    exported = OnnxDetector(path)
    parity = check_detector_parity(model, exported, [tmp_path / "a.png", tmp_path / "b.png"])
    assert (parity.given, parity.photos) == (1, len(list(generated_photos(64))) + 1)
    with pytest.raises(DataError, match="none of the 1 can be read"):
        check_detector_parity(model, exported, [tmp_path / "b.png"])


class Elsewhere(RegionModel):
    """Regions of another library."""

    num_classes, feature_dim, background_index = 2, 4, None

    def class_head(self, features: torch.Tensor) -> torch.Tensor:
        return features[:, :2]


def test_other_detectors_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Faster R-CNN detectors can be exported.*Elsewhere"):
        DetectorGraph(UnknownAwareDetector(Elsewhere(), ["a", "b"]))


def test_other_formats_of_a_detector_are_refused(exported_detector: Pair, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="as onnx only"):
        export_model(exported_detector[0], tmp_path / "d.pt2", form="torch")


@torch.no_grad()
def assert_same_when_traced(regions: AdaptedFasterRCNN) -> None:
    # Random weights find equal scores everywhere, and of equal ones any may come first.
    for module in regions.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    regions.train().model.backbone(torch.rand(8, 3, 128, 128))
    nn.init.normal_(regions.model.rpn.head.cls_logits.weight, std=0.03)
    nn.init.normal_(regions.model.roi_heads.box_predictor.cls_score.weight, std=0.5)
    photos = [torch.from_numpy(np.array(photo)) for photo in PHOTOS[:5]]
    expected = [regions.detect([photo.permute(2, 0, 1) / 255])[0] for photo in photos]
    graph = TraceableFasterRCNN(regions)
    for photo, one in zip(photos, expected, strict=True):
        boxes, labels, scores, logits, seen = graph(photo)
        assert labels.tolist() == one["labels"].tolist()
        apart = (boxes - one["boxes"]).abs() / max(photo.shape)
        assert (apart < 1e-4).all()
        read = one.get("scored_features", one["features"])
        for value, own in ((scores, one["scores"]), (logits, one["logits"]), (seen, read)):
            torch.testing.assert_close(value, own, atol=5e-3, rtol=1e-3)
    assert sum(len(one["labels"]) for one in expected) > 20


@pytest.mark.parametrize(
    "architecture", ["fasterrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn"]
)
def test_what_is_traced_finds_what_torchvision_finds(architecture: str) -> None:
    torch.manual_seed(0)
    settings = FasterRCNNSettings(architecture=architecture, image_size=64, feature_dim=16)
    assert_same_when_traced(FasterRCNNRegions(2, settings, weights="none"))


def one_map() -> FasterRCNN:
    """As torchvision's tutorial has it: a plain backbone, no pyramid."""
    layers = [nn.Conv2d(3, 32, 5, 4, 2), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 5, 4, 2)]
    backbone = nn.Sequential(*layers, nn.BatchNorm2d(64), nn.ReLU())
    backbone.out_channels = 64
    anchors = AnchorGenerator(((16, 32, 64),), ((0.5, 1.0, 2.0),))
    return FasterRCNN(backbone, 3, min_size=64, max_size=200, rpn_anchor_generator=anchors)


def second_version() -> FasterRCNN:
    network = fasterrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, num_classes=3, min_size=64
    )
    # Its box head has norms that saw nothing, so that its features would be in the thousands.
    network.roi_heads.box_head[-2].weight.data *= 1e-3
    return network


@pytest.mark.parametrize("build", [one_map, second_version])
def test_what_is_traced_finds_what_a_finished_detector_finds(build: Any) -> None:
    torch.manual_seed(0)
    assert_same_when_traced(FinishedFasterRCNN(build()))


def test_the_record_tells_what_photos_a_detector_saw(scenes: Path, tmp_path: Path) -> None:
    assert detector_photos(tmp_path, ["disc"]) == ([], DetectionSet([], [], ["disc"]))
    (tmp_path / "training").mkdir()
    config = DetectionConfig(data=scenes, output=tmp_path)
    (tmp_path / "training" / "config.yaml").write_text(config.to_yaml())
    splits = read_detection_splits(scenes, config.val_fraction, config.seed)
    some, held_out = detector_photos(tmp_path, splits.val.classes)
    assert 32 <= len(some) <= 64
    assert set(some) < set(splits.train.paths)
    assert held_out.paths == splits.val.paths
    assert len(held_out.objects) == len(held_out.paths) >= len(with_objects(held_out)) > 10
    assert detector_photos(tmp_path, ["cat", "dog"])[0] == []


def test_a_narrow_first_photo_changes_no_later_answer() -> None:
    photo = torch.from_numpy(np.array(PHOTOS[0])).permute(2, 0, 1)
    model = tiny_detector()
    (expected,) = model([photo])
    again = tiny_detector()
    again([torch.from_numpy(np.array(PHOTOS[3])).permute(2, 0, 1)])
    torch.testing.assert_close(again([photo])[0]["scores"], expected["scores"])
