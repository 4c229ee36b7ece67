"""Training a detector on small real files: results, resume, VOS added to a finished one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import knownot
from knownot.core.metrics import fpr95
from knownot.data.detection_folder import read_detection_splits
from knownot.data.detection_set import DetectionSet, Objects
from knownot.errors import ConfigError, DataError, TrainingError
from knownot.evaluation.detect_set import detect_photos
from knownot.training.altered import altered_boxes
from knownot.training.config import DetectionConfig, make_config
from knownot.training.detection_batches import AugmentedScenes
from knownot.training.fit import Silent
from knownot.training.result import TrainResult
from knownot.training.train_detector import train_detector


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes enough for a run of a second or two."""
    from knownot.demo.scenes import write_scenes

    root = tmp_path_factory.mktemp("few") / "scenes"
    return write_scenes(root, train=12, val=6, test=0, ood=0, side=64)


def run(data: Path, output: Path, reporter: Silent | None = None, **changes: Any) -> TrainResult:
    settings = {
        "image_size": 64,
        "epochs": 3,
        "batch_size": 4,
        "workers": 0,
        "device": "cpu",
        "lr": 3e-3,
        "vos_start": 0.3,
    } | changes
    return train_detector(DetectionConfig(data=data, output=output, **settings), reporter)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def learned(scenes: Path, detector_folder: Path) -> dict[str, Any]:
    return json.loads((detector_folder / "training" / "metrics.json").read_text())


def test_a_detector_learns_and_its_folder_tells(
    learned: dict[str, Any], detector_folder: Path
) -> None:
    assert learned["val_map_50"] > 0.5
    assert learned["vos_started"]
    assert learned["calibration_boxes"] > 30
    assert 0 < learned["box_threshold"] < 1
    card = (detector_folder / "README.md").read_text()
    assert f"{learned['val_map']:.1%}" in card
    low, high = learned["val_found_interval"]
    assert f"| {learned['val_found']:.1%} | {low:.1%} to {high:.1%} |" in card
    assert 0.3 < learned["val_found"] <= 1
    config = yaml.safe_load((detector_folder / "training" / "config.yaml").read_text())
    assert config["task"] == "detect"
    logs = (detector_folder / "training" / "csv" / "metrics.csv").read_text()
    assert "loss_vos" in logs
    assert "val_map" in logs


def test_how_energy_tells_altered_photos_follows_from_the_folder(
    scenes: Path, detector_folder: Path, learned: dict[str, Any]
) -> None:
    model = knownot.load(detector_folder)
    paths = read_detection_splits(scenes).val.paths

    def energies(found: dict[str, torch.Tensor]) -> torch.Tensor:
        shown = found["scores"] >= model.box_threshold
        return -found["logits"][shown, 1:].logsumexp(1)  # the background comes first

    known = torch.cat([energies(found) for _, found in detect_photos(model, paths, {})])
    strange = torch.cat([energies(f) for f in altered_boxes(model, paths, Silent().stage)])
    assert learned["n_altered_boxes"] == len(strange) > 0
    assert learned["altered_fpr95"] == pytest.approx(fpr95(known, strange), abs=0.02)


def test_the_gaussians_saw_every_class(detector_folder: Path) -> None:
    model = knownot.load(detector_folder)
    assert (model.vos.gaussians.counts > 10).all()
    assert torch.linalg.cholesky(model.vos.gaussians.covariance()).isfinite().all()


class Interrupt(Silent):
    """Ctrl-C in the middle of the second epoch."""

    def callbacks(self) -> list[L.Callback]:
        class Press(L.Callback):
            def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
                if trainer.current_epoch == 1 and batch_idx == 1:
                    raise KeyboardInterrupt

        return [Press()]


@pytest.mark.parametrize("workers", [0, 1])
def test_resuming_after_ctrl_c_gives_the_same_detector(
    few: Path, tmp_path: Path, workers: int
) -> None:
    attempt = {"epochs": 8, "workers": workers}
    run(few, tmp_path / "whole", **attempt)
    with pytest.raises(KeyboardInterrupt):
        run(few, tmp_path / "broken", Interrupt(), **attempt)
    assert not (tmp_path / "broken").exists()
    run(few, tmp_path / "broken", resume=True, **attempt)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key


def test_a_run_does_not_go_on_with_other_annotations(few: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(few, tmp_path / "data"))
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "m", Interrupt(), epochs=3)
    (file,) = (data / "annotations").glob("*train*.json")
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    file.write_text(json.dumps(content))
    with pytest.raises(
        ConfigError, match=r"annotations in .* are not those that the run was begun"
    ):
        run(data, tmp_path / "m", resume=True, epochs=3)
    content["annotations"][0]["bbox"][2] += 1
    file.write_text(json.dumps(content))
    with pytest.raises(KeyboardInterrupt):  # it begins
        run(data.rename(tmp_path / "moved"), tmp_path / "m", Interrupt(), overwrite=True, epochs=3)


def test_vos_is_added_to_a_finished_detector(
    detector_folder: Path, scenes: Path, tmp_path: Path
) -> None:
    result = run(
        scenes,
        tmp_path / "more",
        image_size=None,
        start_from=detector_folder,
        epochs=1,
        lr=1e-5,
        backbone_lr=1e-6,
        map_tolerance=1.0,
        vos_weight=0.2,
    )
    metrics = result.metrics
    assert metrics["vos_started"]
    assert metrics["val_map_before"] > 0.2
    assert metrics["val_map_after"] == metrics["val_map"] != metrics["val_map_before"]
    assert not metrics["kept_old_weights"]
    changed = weights(result.folder)
    name = "regions.model.roi_heads.box_predictor.cls_score.weight"
    assert not torch.equal(changed[name], weights(detector_folder)[name])
    assert knownot.load(result.folder).vos_settings.weight == 0.2
    recorded = yaml.safe_load((result.folder / "training" / "config.yaml").read_text())
    settings = knownot.load(detector_folder).regions.settings
    assert recorded["arch"] == settings.architecture
    assert recorded["proposals"] == settings.proposals


def test_old_weights_are_kept_when_map_falls_too_far(
    detector_folder: Path, scenes: Path, tmp_path: Path, learned: dict[str, Any]
) -> None:
    result = run(
        scenes,
        tmp_path / "worse",
        image_size=None,
        start_from=detector_folder,
        epochs=1,
        lr=1e-2,
        backbone_lr=1e-2,
        map_tolerance=0.0,
        alpha=0.1,
    )
    assert knownot.load(result.folder).alpha == 0.1
    assert result.metrics["val_map_after"] < result.metrics["val_map_before"]
    assert result.metrics["kept_old_weights"]
    assert result.metrics["val_map"] == result.metrics["val_map_before"]
    assert result.metrics["val_found"] == learned["val_found"]
    assert knownot.load(result.folder).box_threshold == knownot.load(detector_folder).box_threshold
    old, new = weights(detector_folder), weights(result.folder)
    assert all(torch.equal(old[key], new[key]) for key in old)


def test_from_needs_a_detector_of_the_same_classes(
    detector_folder: Path, few: Path, tmp_path: Path
) -> None:
    annotations = json.loads((few / "annotations" / "train.json").read_text())
    for category in annotations["categories"]:
        category["name"] = f"other {category['name']}"
    other = tmp_path / "other"
    (other / "annotations").mkdir(parents=True)
    (other / "images").symlink_to(few / "images")
    (other / "annotations" / "train.json").write_text(json.dumps(annotations))
    with pytest.raises(ConfigError, match="train without --from"):
        run(other, tmp_path / "m", start_from=detector_folder)


@pytest.mark.parametrize(
    "setting", [{"arch": "resnet18"}, {"image_size": 64}, {"freeze": 5}, {"box_features": 64}]
)
def test_from_refuses_to_build_another_detector(
    detector_folder: Path, scenes: Path, tmp_path: Path, setting: dict[str, Any]
) -> None:
    (name,) = setting
    with pytest.raises(ConfigError, match=f"{name}: .* stays as it was built"):
        run(scenes, tmp_path / "m", start_from=detector_folder, **({"image_size": None} | setting))


def test_from_brings_its_own_weights(detector_folder: Path, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights: none was asked for, and .* has its own"):
        run(scenes, tmp_path / "m", start_from=detector_folder, weights="none", image_size=None)


def test_bad_annotations_are_left_out_or_stop_with_strict(few: Path, tmp_path: Path) -> None:
    annotations = json.loads((few / "annotations" / "train.json").read_text())
    annotations["annotations"][0]["bbox"] = [1, 1, 0, 5]
    annotations["images"][1]["file_name"] = "missing.jpg"
    bad = tmp_path / "bad"
    (bad / "annotations").mkdir(parents=True)
    (bad / "images").symlink_to(few / "images")
    (bad / "annotations" / "train.json").write_text(json.dumps(annotations))
    (bad / "annotations" / "val.json").write_text((few / "annotations" / "val.json").read_text())

    class Keep(Silent):
        def plan(self, plan) -> None:
            self.kept = plan

    keeper = Keep()
    with pytest.raises(DataError, match=r"missing\.jpg"):
        run(bad, tmp_path / "m", strict=True)
    run(bad, tmp_path / "m", keeper, epochs=8)
    assert " ".join(keeper.kept.notes).count("missing.jpg") == 1


def test_a_photo_that_does_not_decode_is_skipped_and_listed(few: Path, tmp_path: Path) -> None:
    import shutil

    data = shutil.copytree(few, tmp_path / "data")
    broken = data / "images" / "train_0003.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) * 3 // 4])  # the header is whole, the rest is not
    with pytest.raises(DataError, match=r"1 photo\(s\) cannot be used: .*train_0003"):
        run(data, tmp_path / "m", strict=True)
    result = run(data, tmp_path / "m", epochs=8)
    assert [path.name for path in result.skipped] == ["train_0003.jpg"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_photo_too_thin_for_the_network_is_skipped_and_listed(
    few: Path, tmp_path: Path, split: str
) -> None:
    import shutil

    data = shutil.copytree(few, tmp_path / "data")
    Image.new("RGB", (4000, 2)).save(data / "images" / "thin.png")
    file = data / "annotations" / f"{split}.json"
    annotations = json.loads(file.read_text())
    thin = {"id": 999, "file_name": "thin.png", "width": 4000, "height": 2}
    annotations["images"].append(thin)
    file.write_text(json.dumps(annotations))
    result = run(data, tmp_path / "m", epochs=8)
    assert [path.name for path in result.skipped] == ["thin.png"]


def test_a_detector_that_finds_nothing_is_no_model(few: Path, tmp_path: Path) -> None:
    """The validation objects are specks that no proposal overlaps by half."""
    data = tmp_path / "data"
    (data / "annotations").mkdir(parents=True)
    (data / "images").symlink_to(few / "images")
    for split in ("train", "val"):
        annotations = json.loads((few / "annotations" / f"{split}.json").read_text())
        for annotation in annotations["annotations"] if split == "val" else []:
            annotation["bbox"] = [0, 0, 0.01, 0.01]
        (data / "annotations" / f"{split}.json").write_text(json.dumps(annotations))
    with pytest.raises(TrainingError, match="train longer"):
        run(data, tmp_path / "m", epochs=1)
    assert not (tmp_path / "m").exists()


def test_an_exploding_loss_stops_with_its_cause(few: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not finite in epoch"):
        run(few, tmp_path / "m", lr=1e6, backbone_lr=1e6, clip=1e12)


def test_the_task_follows_from_the_data(few: Path, tmp_path: Path) -> None:
    assert isinstance(make_config({"data": few}), DetectionConfig)
    assert make_config({"data": few}).n_epochs == 12
    with pytest.raises(ConfigError, match="one of classifiers"):
        make_config({"data": few, "bottleneck": 64})
    with pytest.raises(ConfigError, match="one of detectors"):
        make_config({"data": tmp_path, "freeze": 1})
    with pytest.raises(ConfigError, match="expected auto, classify or detect"):
        make_config({"data": few, "task": "segment"})
    assert isinstance(make_config({"data": tmp_path, "task": "detect"}), DetectionConfig)


def test_augmented_boxes_stay_on_their_objects(few: Path) -> None:
    """The mean colour inside a disc's box is that of the disc wherever augmentation moved it."""
    photos = read_detection_splits(few).train
    dataset = AugmentedScenes(photos)
    for index in range(len(dataset)):
        for seed in range(5):
            image, target = dataset[index, seed]
            boxes = target["boxes"]
            assert image.dtype == torch.uint8
            assert len(boxes) == len(target["labels"]) <= len(photos.objects[index])
            height, width = image.shape[-2:]
            assert (boxes[:, :2] >= 0).all()
            assert (boxes[:, 2] <= width).all()
            assert (boxes[:, 3] <= height).all()
            again, _ = dataset[index, seed]
            assert torch.equal(image, again)


def test_small_objects_are_learned(tmp_path: Path) -> None:
    Image.new("RGB", (200, 200)).save(tmp_path / "a.png")
    boxes = torch.tensor([[10.0, 10, 13, 110], [50, 50, 52.5, 52.5], [100, 100, 130, 130]])
    objects = Objects(boxes, torch.arange(3), torch.zeros(3).bool())
    scenes = AugmentedScenes(DetectionSet([tmp_path / "a.png"], [objects], ["a", "b", "c"]))
    drawn = [scenes[0, seed][1]["labels"].tolist() for seed in range(40)]
    assert sum(labels == [0, 1, 2] for labels in drawn) > 20


def test_a_mirrored_box_covers_the_same_pixels(tmp_path: Path) -> None:
    from knownot.data.detection_set import DetectionSet, Objects

    pixels = Image.new("RGB", (64, 64), "black")
    pixels.paste((255, 255, 255), (5, 20, 25, 50))
    pixels.save(tmp_path / "p.png")
    objects = Objects(torch.tensor([[5.0, 20, 25, 50]]), torch.tensor([0]), torch.tensor([False]))
    dataset = AugmentedScenes(DetectionSet([tmp_path / "p.png"], [objects], ["white"]))
    moved = 0
    for seed in range(30):
        image, target = dataset[0, seed]
        for x1, y1, x2, y2 in target["boxes"].round().int().tolist():
            inside = image[:, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].float().amax(0)
            assert (inside > 60).float().mean() > 0.95
            moved += x1 != 5
    assert moved > 5
