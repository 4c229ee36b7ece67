"""The detector as its users meet it: boxes with scores and p-values, its folder, odd photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import knownot
from knownot.data.detection_folder import read_detection
from knownot.errors import ConfigError, ModelFileError
from knownot.evaluation.detect_set import detect_photos, finds_object
from knownot.models.detector import UnknownAwareDetector
from knownot.models.model_folder import save


@pytest.fixture(scope="module")
def model(detector_folder: Path) -> UnknownAwareDetector:
    loaded = knownot.load(detector_folder)
    assert isinstance(loaded, UnknownAwareDetector)
    return loaded


@pytest.fixture(scope="module")
def photo(scenes: Path) -> Path:
    return scenes / "images" / "test_0000.jpg"


def test_a_prediction_holds_what_the_tensors_hold(model: UnknownAwareDetector, photo: Path) -> None:
    (answer,) = model.predict(photo)
    pixels = torch.from_numpy(np.array(Image.open(photo))).permute(2, 0, 1)
    (found,) = model([pixels])
    kept = found["scores"] >= model.box_threshold
    assert len(answer.boxes) == int(kept.sum()) > 0
    for row, box in enumerate(answer.boxes):  # scores descend: what is kept comes first
        assert box.box == tuple(found["boxes"][row].tolist())
        assert box.p_value == float(found["p_value"][row])
        assert box.is_unknown == bool(found["is_unknown"][row]) == (box.p_value < model.alpha)
        assert box.ood_score == float(found["ood_score"][row]) == box.scores["combined"]
        assert box.nearest_class == model.classes[found["labels"][row]]
        assert box.label == ("unknown" if box.is_unknown else box.nearest_class)
    assert (answer.width, answer.height, answer.path) == (96, 96, str(photo))


def test_proposals_that_no_class_claims_are_shown_when_asked_for(
    model: UnknownAwareDetector, scenes: Path, tmp_path: Path
) -> None:
    photos = sorted((scenes / "images").glob("ood_*.jpg"))
    plain = model.predict(photos)
    more = model.predict(photos, proposals=True, alpha=0.5)
    same = model.predict(photos, alpha=0.5)
    added = 0
    for without, with_them in zip(same, more, strict=True):
        shown = with_them.boxes[: len(without.boxes)]
        assert shown == without.boxes
        for box in with_them.boxes[len(without.boxes) :]:
            assert (box.label, box.nearest_class, box.is_unknown) == ("unknown", "", True)
            assert box.p_value < 0.5
            added += 1
    assert added > 0
    assert all(box.nearest_class for answer in plain for box in answer.boxes)

    save(model, tmp_path / "again")
    again = knownot.load(tmp_path / "again")
    assert again.predict(photos, proposals=True, alpha=0.5) == more
    again.proposal_calibration = None
    with pytest.raises(ConfigError, match="proposals"):
        again.predict(photos, proposals=True)


def test_proposals_keep_to_alpha_on_the_photos_that_calibrated_them(
    model: UnknownAwareDetector, scenes: Path
) -> None:
    photos = [scenes / "images" / name for name in sorted(_names(scenes, "val"))]
    for alpha in (0.05, 0.3):
        shown = 0
        for _, found in detect_photos(model, photos, {}, proposals=True):
            rows, p_values = model.unclaimed_proposals(found, alpha)
            assert len(rows) == len(p_values)
            shown += len(rows) > 0
        assert shown / len(photos) <= alpha


def _names(scenes: Path, split: str) -> list[str]:
    annotations = json.loads((scenes / "annotations" / f"{split}.json").read_text())
    return [image["file_name"] for image in annotations["images"]]


def test_paths_images_arrays_and_tensors_give_the_same(
    model: UnknownAwareDetector, photo: Path
) -> None:
    image = Image.open(photo)
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    answers = model.predict([str(photo), photo, image, array, tensor, tensor / 255.0])
    assert len({tuple(box.box for box in answer.boxes) for answer in answers}) == 1
    (answer,) = model.predict(3.0)
    assert "expected a path" in str(answer.error)


@pytest.mark.parametrize("size", [(1, 1), (8000, 200), (3, 500)])
def test_odd_photos_have_an_answer(model: UnknownAwareDetector, size: tuple[int, int]) -> None:
    (answer,) = model.predict(Image.new("L", size, 128))
    assert (answer.width, answer.height) == size
    for box in answer.boxes:
        assert 0 <= box.box[0] <= box.box[2] <= size[0] * (1 + 1e-6)
        assert 0 <= box.box[1] <= box.box[3] <= size[1] * (1 + 1e-6)


def test_nothing_found_is_an_answer(model: UnknownAwareDetector) -> None:
    blank = torch.zeros(3, 96, 96)
    (answer,) = model.predict_iter([blank], box_threshold=1.0)
    with pytest.raises(ConfigError, match="box_threshold: expected a fraction"):
        next(model.predict_iter([blank], box_threshold=1.1))
    assert answer.boxes == []
    before = model.regions.model.roi_heads.score_thresh
    model.regions.model.roi_heads.score_thresh = 1.0
    try:
        found, _ = model([blank, blank])
    finally:
        model.regions.model.roi_heads.score_thresh = before
    assert found["boxes"].shape == (0, 4)
    assert found["p_value"].shape == found["is_unknown"].shape == (0,)


def test_photos_of_one_size_do_not_touch_each_other_in_a_batch(
    model: UnknownAwareDetector, scenes: Path
) -> None:
    names = [scenes / "images" / f"test_000{i}.jpg" for i in range(3)]
    images = [torch.from_numpy(np.array(Image.open(name))).permute(2, 0, 1) for name in names]
    for alone, together in zip((model([i])[0] for i in images), model(images), strict=True):
        assert torch.equal(alone["labels"][:2], together["labels"][:2])
        for key in ("boxes", "scores", "ood_score"):
            torch.testing.assert_close(alone[key][:2], together[key][:2], atol=1e-3, rtol=1e-3)


def test_a_batch_of_mixed_sizes_keeps_to_each_photo(model: UnknownAwareDetector) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = ((96, 96), (40, 120), (1, 1), (200, 30))
    found = model([torch.rand(3, *size, generator=generator) for size in sizes])
    for detections, (height, width) in zip(found, sizes, strict=True):
        boxes = detections["boxes"]
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= width * (1 + 1e-6)).all()
        assert (boxes[:, 3] <= height * (1 + 1e-6)).all()
        assert (detections["p_value"] > 0).all()


def test_a_photo_that_cannot_be_read_has_an_error(
    model: UnknownAwareDetector, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_text("no photo")
    first, second = model.predict([tmp_path / "broken.jpg", photo])
    assert "not a readable photo" in str(first.error)
    assert first.boxes == []
    assert second.boxes
    assert second.error is None


def test_groups_are_class_and_size() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 50, 50], [0, 0, 200, 100.0]])
    groups = UnknownAwareDetector.groups(boxes.repeat(2, 1), torch.tensor([0, 0, 0, 2, 2, 2]))
    assert groups.tolist() == [0, 1, 2, 6, 7, 8]


def test_calibration_is_by_group_where_there_are_boxes_enough(
    model: UnknownAwareDetector, scenes: Path
) -> None:
    calibration = model.calibration("combined")
    assert calibration.groups is not None
    counts = torch.bincount(calibration.groups)
    large = int(counts.argmax())
    assert int(counts[large]) >= calibration.min_group
    own = calibration.scores[calibration.groups == large]
    score = own.median()
    p_value = calibration.p_value(score[None], torch.tensor([large]))
    assert float(p_value) == (1 + int((own >= score).sum())) / (len(own) + 1)


def test_the_folder_gives_the_same_model(
    model: UnknownAwareDetector, detector_folder: Path, photo: Path, tmp_path: Path
) -> None:
    again = knownot.load(save(model, tmp_path / "again"))
    assert isinstance(again, UnknownAwareDetector)
    assert again.box_threshold == model.box_threshold
    assert again.classwise
    assert again.predict(photo) == model.predict(photo)
    state, other = (
        load_file(f / "model.safetensors") for f in (detector_folder, tmp_path / "again")
    )
    assert all(torch.equal(state[key], other[key]) for key in state)


def test_a_detector_folder_that_lies_is_refused(detector_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(detector_folder, tmp_path / "m")
    text = (folder / "config.json").read_text()
    for old, new, message in (
        ('"feature_dim": 128', '"feature_dim": 64', "has shape"),
        ('"tf_efficientnet_lite0"', '"/etc/passwd"', "timm has no model"),
        ('"box_threshold"', '"box_treshold"', "config.json"),
        ('"task": "detect"', '"task": "segment"', "config.json"),
    ):
        assert old in text
        (folder / "config.json").write_text(text.replace(old, new))
        with pytest.raises((ModelFileError, ConfigError), match=message):
            knownot.load(folder)


def test_wrong_settings_are_told_before_any_photo(model: UnknownAwareDetector) -> None:
    with pytest.raises(ConfigError, match="alpha"):
        model.predict("missing.jpg", alpha=2.0)
    with pytest.raises(ConfigError, match="expected one of"):
        model.predict("missing.jpg", score="entropy")


def test_it_learned_its_shapes(model: UnknownAwareDetector, scenes: Path) -> None:
    photos = read_detection(scenes, model.classes, split="test")
    found = sum(
        int(
            (
                finds_object(found, photos.objects[index])[found["scores"] >= model.box_threshold]
            ).sum()
        )
        for index, found in detect_photos(model, photos.paths, {})
    )
    assert found > 0.6 * sum(photos.counts().values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_boxes(detector_folder: Path, photo: Path) -> None:
    (there,) = knownot.load(detector_folder, device="cuda").predict(photo)
    (here,) = knownot.load(detector_folder).predict(photo)
    assert [box.label for box in there.boxes] == [box.label for box in here.boxes]
    for one, other in zip(there.boxes, here.boxes, strict=True):
        assert one.box == pytest.approx(other.box, abs=0.5)
