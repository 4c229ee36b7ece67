"""`knownot train --finetune none` on photos with boxes: a detector keeps its boxes and gets scores."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import get_model
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou
from torchvision.transforms.functional import pil_to_tensor
from typer.testing import CliRunner

import knownot
from knownot.cli.main import app
from knownot.data.detection_folder import read_detection_splits
from knownot.errors import ConfigError, TrainingError
from knownot.evaluation.evaluate_detector import evaluate_detector
from knownot.models.finished_faster_rcnn import FinishedFasterRCNN
from knownot.training.build_detector import finished_regions
from knownot.training.config import DetectionConfig, make_config
from knownot.training.fit import Silent
from knownot.training.train_detector import train_detector
from tests.pages import run_page

SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes like those that the network learned, fewer."""
    from knownot.demo.scenes import write_scenes

    root = tmp_path_factory.mktemp("half") / "scenes"
    return write_scenes(root, train=24, val=24, test=12, ood=12, side=96)


@pytest.fixture(scope="module")
def network(detector_folder: Path) -> FasterRCNN:
    """A trained detector in torchvision's own classes alone, of shapes."""
    model = knownot.load(detector_folder).regions.model
    plain = copy.copy(model)
    plain._modules = dict(model._modules)
    for name, kind in (("rpn", RegionProposalNetwork), ("roi_heads", RoIHeads)):
        part = kind.__new__(kind)
        part.__dict__ = getattr(model, name).__dict__.copy()
        for own in ("_levels", "_strides", "reads_maps"):
            part.__dict__.pop(own, None)
        plain._modules[name] = part
    plain.roi_heads.box_predictor._forward_hooks.clear()
    plain.backbone.body._forward_hooks.clear()
    return copy.deepcopy(plain).eval()


def finished(data: Path, output: Path, **changes: Any) -> Any:
    return make_config({"data": data, "output": output, "finetune": "none"} | changes)


def test_a_detector_of_one_s_own_keeps_its_boxes(
    half: Path, network: FasterRCNN, tmp_path: Path
) -> None:
    plans = []

    class Plans(Silent):
        def plan(self, plan: Any) -> None:
            plans.append(plan)

    result = train_detector(
        finished(half, tmp_path / "m"), Plans(), regions=FinishedFasterRCNN(network)
    )
    assert plans[0].steps == 0
    assert plans[0].summary.endswith("nothing trained")
    assert result.metrics["val_map_50"] > 0.5
    assert not result.metrics["vos_started"]
    card = (tmp_path / "m" / "README.md").read_text()
    assert "its weights are as they were" in card
    with pytest.raises(knownot.errors.ModelFileError, match="detector of your own"):
        knownot.load(tmp_path / "m")
    # Any weights will do: those of the folder are read.
    other = copy.deepcopy(network)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    model = knownot.load(tmp_path / "m", backbone=other)
    splits = read_detection_splits(half)
    for path in splits.val.paths[:5]:
        pixels = pixels_of(path)
        with torch.no_grad():
            (own,) = network([pixels / 255])
        found = model([pixels])[0]
        assert torch.equal(own["boxes"], found["boxes"])
        torch.testing.assert_close(own["scores"], found["scores"])
        assert torch.equal(own["labels"] - 1, found["labels"])
    report = evaluate_detector(model, half, [half / "annotations" / "ood.json"])
    assert report.summary["flagged_id"] <= 0.2  # of the photos that calibrated it
    assert report.summary["mean_fpr95"] < 0.9


def test_outputs_in_another_order_are_told_and_can_be_named(
    half: Path, network: FasterRCNN, tmp_path: Path
) -> None:
    classes = read_detection_splits(half).train.classes
    turned = FinishedFasterRCNN(network)
    turned.keep([*range(len(classes))][::-1])
    names = ",".join(reversed(classes))
    with pytest.raises(ConfigError, match=f"objects found.*--outputs '{names}'"):
        train_detector(finished(half, tmp_path / "m"), regions=copy.deepcopy(turned))
    assert not (tmp_path / "m").exists()
    named = finished(half, tmp_path / "m", outputs=names, overwrite=True)
    assert train_detector(named, regions=turned).metrics["val_map_50"] > 0.5


def annotated_otherwise(data: Path, root: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The same photos, their annotations changed."""
    (root / "annotations").mkdir(parents=True)
    (root / "images").symlink_to(data / "images")
    for split in ("train", "val"):
        coco = json.loads((data / "annotations" / f"{split}.json").read_text())
        change(coco)
        (root / "annotations" / f"{split}.json").write_text(json.dumps(coco))
    return root


def test_categories_without_objects_need_no_output(
    half: Path, network: FasterRCNN, tmp_path: Path
) -> None:
    """As some tools export: category 0 stands above all others, and nothing is of it."""

    def group_all(coco: dict[str, Any]) -> None:
        coco["categories"].insert(0, {"id": 0, "name": "shapes"})

    data = annotated_otherwise(half, tmp_path / "data", group_all)
    result = train_detector(finished(data, tmp_path / "m"), regions=FinishedFasterRCNN(network))
    assert "shapes" not in result.metrics["n_train_per_class"]
    assert result.metrics["val_map_50"] > 0.5


def test_outputs_that_no_category_has_are_left_out_of_the_folder_too(
    half: Path, network: FasterRCNN, tmp_path: Path
) -> None:
    """Labels that are category ids with gaps, in a detector that Python alone can build."""

    def double_ids(coco: dict[str, Any]) -> None:
        ids = sorted(category["id"] for category in coco["categories"])
        apart = {number: 2 * place + 2 for place, number in enumerate(ids)}  # 2, 4, 6, 8
        for category in coco["categories"]:
            category["id"] = apart[category["id"]]
        for annotation in coco["annotations"]:
            annotation["category_id"] = apart[annotation["category_id"]]

    data = annotated_otherwise(half, tmp_path / "data", double_ids)
    wide = copy.deepcopy(network)
    few = wide.roi_heads.box_predictor
    many = wide.roi_heads.box_predictor = FastRCNNPredictor(few.cls_score.in_features, 9)
    with torch.no_grad():
        many.cls_score.bias.fill_(-30.0)
        for own in range(5):
            many.cls_score.weight[2 * own] = few.cls_score.weight[own]
            many.cls_score.bias[2 * own] = few.cls_score.bias[own]
            rows, of = slice(8 * own, 8 * own + 4), slice(4 * own, 4 * own + 4)
            many.bbox_pred.weight[rows] = few.bbox_pred.weight[of]
            many.bbox_pred.bias[rows] = few.bbox_pred.bias[of]
    wide.roi_heads.nms_thresh = 0.3
    result = train_detector(finished(data, tmp_path / "m"), regions=FinishedFasterRCNN(wide))
    assert result.metrics["val_map_50"] > 0.5
    # What the folder records decides, however the network is that is given.
    wide.roi_heads.nms_thresh = 0.9
    for given in (wide, network):  # the last layer is the folder's
        model = knownot.load(tmp_path / "m", backbone=given)
        assert model.regions.model.roi_heads.nms_thresh == 0.3
        evaluated = evaluate_detector(model, data / "annotations" / "val.json").summary["map"]
        assert evaluated == pytest.approx(result.metrics["val_map"], abs=1e-6)


def few_scenes(root: Path) -> Path:
    from knownot.demo.scenes import write_scenes

    return write_scenes(root / "few", train=8, val=6, test=0, ood=0, side=64)


def pixels_of(path: Path) -> torch.Tensor:
    return pil_to_tensor(Image.open(path).convert("RGB"))


@torch.no_grad()
def annotate_as_found(data: Path, network: FasterRCNN, categories: list[dict[str, Any]]) -> None:
    """Make the surest boxes of a detector that has learned nothing the objects of all photos."""
    for split in ("train", "val"):
        file = data / "annotations" / f"{split}.json"
        coco = json.loads(file.read_text()) | {"annotations": [], "categories": categories}
        for image in coco["images"]:
            (found,) = network([pixels_of(data / "images" / image["file_name"]) / 255])
            for (x1, y1, x2, y2), label in zip(
                found["boxes"][:3].tolist(), found["labels"][:3].tolist(), strict=True
            ):
                box = {"id": len(coco["annotations"]) + 1, "image_id": image["id"], "iscrowd": 0}
                box |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": label}
                coco["annotations"].append(box | {"area": (x2 - x1) * (y2 - y1)})
        file.write_text(json.dumps(coco))


def test_a_weights_file_by_the_command(tmp_path: Path) -> None:
    data = few_scenes(tmp_path)
    torch.manual_seed(1)
    own = get_model(SMALL, weights=None, weights_backbone=None, num_classes=91, min_size=64).eval()
    own.transform.max_size = 640
    # Labels that are category ids, as torchvision's detectors of COCO have: not all are used.
    names = [{"id": i, "name": f"{i}"} for i in range(1, 91) if i % 7]
    last = own.roi_heads.box_predictor.cls_score
    with torch.no_grad():
        last.weight.mul_(3000.0)  # sure of something
        last.bias[0::7] = -30.0
    annotate_as_found(data, own, names)
    torch.save(own.state_dict(), tmp_path / "mine.pth")
    command = ["train", str(data), "-o", str(tmp_path / "m"), "--finetune", "none"]
    command += ["--arch", SMALL, "--weights", str(tmp_path / "mine.pth"), "--image-size", "64"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "nothing trained" in done.output
    assert "12 that no category has are left out" in done.output
    model = knownot.load(tmp_path / "m")
    pixels = pixels_of(read_detection_splits(data).val.paths[0])
    with torch.no_grad():
        (expected,) = own([pixels / 255])
    (found,) = model([pixels])
    # All boxes are as sure as one another: which of two that overlap is kept is left to rounding.
    assert box_iou(expected["boxes"], found["boxes"]).amax(1).min() > 0.5
    torch.testing.assert_close(expected["scores"][0], found["scores"][0])
    told = {model.classes[label] for label in found["labels"]}
    assert told == {str(label) for label in expected["labels"].tolist()}
    recorded = make_config({}, tmp_path / "m" / "training" / "config.yaml")
    assert recorded.finetune == "none"
    # VOS can be added to it later.
    again = ["train", str(data), "-o", str(tmp_path / "n"), "--from", str(tmp_path / "m")]
    done = CliRunner().invoke(app, [*again, "--epochs", "1", "--workers", "0", "--json"])
    assert done.exit_code == 0, done.output
    kept = make_config({}, tmp_path / "n" / "training" / "config.yaml")
    assert (kept.arch, kept.image_size) == (SMALL, 64)


def test_a_detector_of_one_s_own_can_go_on_learning(
    half: Path, network: FasterRCNN, tmp_path: Path
) -> None:
    config = DetectionConfig(
        data=half, output=tmp_path / "m", epochs=1, vos_start=0.0, workers=0, lr=1e-4, image_size=72
    )
    assert not network.training
    regions = FinishedFasterRCNN(network)
    result = train_detector(config, regions=regions)
    assert regions.image_size == regions.model.transform.min_size[0] == 72
    assert result.metrics["val_map_50"] > 0.4
    assert result.metrics["vos_started"]
    model = knownot.load(tmp_path / "m", backbone=network)
    before, after = (m.roi_heads.box_head.fc7.weight for m in (network, model.regions.model))
    assert not torch.equal(before, after)


def test_the_page_runs(
    half: Path, network: FasterRCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco").symlink_to(half)
    page = run_page("finished_detector.md", network=network)
    (answer,) = page["model"].predict(half / "images" / "val_0000.jpg")
    assert any(box.p_value for box in answer.boxes)


def test_a_network_of_other_classes_is_refused(tmp_path: Path, network: FasterRCNN) -> None:
    data = few_scenes(tmp_path)
    regions = FinishedFasterRCNN(network)
    regions.keep([0, 1])
    with pytest.raises(ConfigError, match="tells 2 classes apart, the annotations have 4"):
        train_detector(finished(data, tmp_path / "m"), regions=regions)


def test_a_detector_that_finds_nothing_is_told(tmp_path: Path, network: FasterRCNN) -> None:
    data = few_scenes(tmp_path)
    blind = copy.deepcopy(network)
    blind.roi_heads.score_thresh = 1.0
    with pytest.raises(TrainingError, match="are weights, outputs and pixels those"):
        train_detector(finished(data, tmp_path / "m"), regions=FinishedFasterRCNN(blind))


def test_detectors_of_transformers_stay_as_they_are_too(half: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.models.tiny_detr import tiny_regions

    config = finished(half, tmp_path / "m", image_size=100)
    with pytest.raises(ConfigError, match="image_size: DetrRegions stays as it is"):
        train_detector(config, regions=tiny_regions(num_labels=4))
    config = DetectionConfig(
        data=half, output=tmp_path / "m", image_size=96, freeze=1, weights="hub"
    )
    with pytest.raises(
        ConfigError, match="freeze, image_size, weights: DetrRegions stays as it is"
    ):
        train_detector(config, regions=tiny_regions(num_labels=4))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epochs": 3}, "epochs"),
        ({"freeze": 3, "clip": 1.0}, "clip, freeze"),
        ({"vos_weight": 0.1}, "vos_weight"),
        ({"start_from": "m"}, "start_from"),
        ({"devices": 2}, "devices"),
        ({"box_features": 64}, "box_features"),
    ],
)
def test_settings_of_training_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"{named}: does nothing with finetune none"):
        make_config({"data": "p", "task": "detect", "finetune": "none"} | changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"outputs": "a,b"}, "outputs"), ({"mean": "0,0,0", "std": "1,1,1"}, "mean, std")],
)
def test_settings_of_finished_detectors_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"{named}: does nothing with finetune all"):
        make_config({"data": "p", "task": "detect"} | changes)


def test_pixels_can_be_read_as_the_network_did(tmp_path: Path, network: FasterRCNN) -> None:
    splits = read_detection_splits(few_scenes(tmp_path))
    config = finished(tmp_path / "few", tmp_path / "m", mean="0,0,0", std="1,1,1", image_size=64)
    regions, _ = finished_regions(config, splits, FinishedFasterRCNN(network))
    transform = regions.model.transform
    assert transform.image_mean == [0, 0, 0]
    assert transform.image_std == [1, 1, 1]
    assert transform.min_size == (64,)
    assert FinishedFasterRCNN.rebuild_around(network, 4, regions.describe()).image_size == 64
