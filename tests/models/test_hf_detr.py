"""A tiny real DETR of transformers as a `RegionModel`, alone and inside `UnknownAwareDetector`."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, box_iou, generalized_box_iou
from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection

from knownot.errors import ConfigError
from knownot.models.detector import UnknownAwareDetector
from knownot.models.hf_detr import DetrRegions, DetrSettings
from knownot.models.prediction import Detection
from knownot.models.regions import Targets
from tests.models.tiny_detr import (
    CLASSES,
    DIM,
    QUERIES,
    assert_odd_sizes_are_taken,
    calibrated_detector,
    scene,
    scenes,
    tiny_detector,
    tiny_regions,
)

# ImageNet's, written out: the adapter takes them from transformers.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def no_objects() -> dict[str, Tensor]:
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def padded(images: list[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """What DETR reads, for photos that need no resizing: normalised, padded right and below."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    pixels = torch.zeros(len(images), 3, *size)
    mask = torch.zeros(len(images), *size)
    for i, image in enumerate(images):
        pixels[i, :, : image.shape[1], : image.shape[2]] = (image - mean) / std
        mask[i, : image.shape[1], : image.shape[2]] = 1
    return {"pixel_values": pixels, "pixel_mask": mask}


def relative(targets: Targets, images: list[Tensor]) -> list[dict[str, Tensor]]:
    found = []
    for target, image in zip(targets, images, strict=True):
        height, width = image.shape[1:]
        boxes = box_convert(target["boxes"] / torch.tensor([width, height] * 2), "xyxy", "cxcywh")
        found.append({"boxes": boxes, "class_labels": target["labels"]})
    return found


# --- losses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("auxiliary", [False, True])
def test_the_losses_sum_to_the_models_own(auxiliary: bool) -> None:
    # Coefficients unlike the defaults: they must be read from the configuration.
    config = {"bbox_loss_coefficient": 3, "giou_loss_coefficient": 7, "auxiliary_loss": auxiliary}
    regions = tiny_regions(**config)
    images = [scene(0)[0], scene(1, 64, 96)[0], scene(2)[0]]
    targets = [scene(0)[1], scene(1, 64, 96)[1], no_objects()]
    losses, _ = regions.losses(images, targets)
    own = regions.model(**padded(images, (64, 96)), labels=relative(targets, images))
    torch.testing.assert_close(sum(losses.values()), own.loss, rtol=1e-5, atol=1e-5)
    assert len(losses) == (6 if auxiliary else 3)


def test_targets_are_fractions_of_the_photo_not_of_the_padded_batch() -> None:
    """What the model learns must be what `detect` decodes."""
    regions = tiny_regions()
    small, large = scene(0), scene(1, 64, 96)
    alone, _ = regions.losses([small[0]], [small[1]])
    images, targets = [small[0], large[0]], [small[1], no_objects()]
    beside, _ = regions.losses(images, targets)
    own = regions.model(**padded(images, (64, 96)), labels=relative(targets, images))
    torch.testing.assert_close(beside["loss_bbox"], 5 * own.loss_dict["loss_bbox"])
    # Padding changes the features a little and the target boxes not at all.
    torch.testing.assert_close(beside["loss_bbox"], alone["loss_bbox"], rtol=0.05, atol=0.05)


def matched_by_hand(regions: DetrRegions, images: list[Tensor], targets: Targets) -> list[Tensor]:
    """Features of the matched queries, one photo after another, from a plain matcher."""
    features = []
    for i, target in enumerate(relative(targets, images)):
        with torch.no_grad():
            out = regions.model(**padded(images, (64, 96)))
        probabilities, boxes = out.logits[i].softmax(-1), out.pred_boxes[i]
        overlap = generalized_box_iou(
            box_convert(boxes, "cxcywh", "xyxy"), box_convert(target["boxes"], "cxcywh", "xyxy")
        )
        distance = (boxes[:, None] - target["boxes"]).abs().sum(-1)
        cost = 5 * distance - probabilities[:, target["class_labels"]] - 2 * overlap
        rows, _ = linear_sum_assignment(cost)
        features.append(out.last_hidden_state[i, rows])
    return features


def test_the_matched_regions_are_those_of_the_matcher() -> None:
    regions = tiny_regions()
    images = [scene(0)[0], scene(1, 64, 96)[0], scene(2)[0]]
    targets = [scene(0)[1], no_objects(), scene(2)[1]]
    _, matched = regions.losses(images, targets)
    assert matched.features.shape == (4, DIM)
    assert matched.logits.shape == (4, 3)
    assert matched.features.requires_grad
    torch.testing.assert_close(matched.logits, regions.class_head(matched.features))
    for start in (0, 2):  # each photo's classes, in some order
        assert sorted(matched.labels[start : start + 2].tolist()) == [0, 1]
    expected = torch.cat(matched_by_hand(regions, images, targets))
    assert torch.pdist(expected).min() > 1e-3  # else any query would pass for any other
    torch.testing.assert_close(matched.features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_each_label_is_that_of_its_own_query(order: list[int]) -> None:
    """Class cost alone: the matched queries' own probabilities have the largest sum there is."""
    regions = tiny_regions(bbox_cost=0, giou_cost=0, class_cost=1)
    images, targets = scenes(1)
    targets = [{name: values[order] for name, values in targets[0].items()}]
    with torch.no_grad():
        out = regions.model(**padded(images, (64, 64)))
    probabilities = out.logits[0].softmax(-1)
    _, matched = regions.losses(images, targets)
    of_label = matched.logits.softmax(-1).gather(1, matched.labels[:, None]).sum()
    pairs = [
        probabilities[a, 0] + probabilities[b, 1]
        for a in range(QUERIES)
        for b in range(QUERIES)
        if a != b
    ]
    torch.testing.assert_close(of_label, torch.stack(pairs).max())


def test_a_step_without_any_object_has_losses_and_no_region() -> None:
    detector = tiny_detector()
    losses = detector.losses(scenes(2)[0], [no_objects(), no_objects()])
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert losses["loss_vos"] == losses["loss_bbox"] == losses["loss_giou"] == 0


def test_more_objects_than_queries_match_every_query() -> None:
    regions = tiny_regions()
    corners = torch.rand(QUERIES + 3, 2) * 30
    boxes = torch.cat([corners, corners + 10], 1)
    labels = torch.arange(QUERIES + 3) % 2
    losses, matched = regions.losses(scenes(1)[0], [{"boxes": boxes, "labels": labels}])
    assert len(matched.labels) == QUERIES
    assert all(torch.isfinite(value) for value in losses.values())


# --- the virtual outlier loss ----------------------------------------------------------------


def warmed_up(detector: UnknownAwareDetector) -> tuple[list[Tensor], Targets]:
    """Fill the windows, so that there are outliers; returns the batch."""
    batch = scenes(3)
    with torch.no_grad():
        for _ in range(2):
            detector.losses(*batch)
    assert detector.vos.ready().all()
    return batch


def test_the_virtual_outlier_loss_reaches_decoder_and_backbone() -> None:
    detector = tiny_detector()
    images, targets = warmed_up(detector)
    detector.losses(images, targets)["loss_vos"].backward()
    model = detector.regions.model
    for part in (model.model.decoder, model.model.encoder, model.model.backbone):
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        assert gradients
        assert all(torch.isfinite(g).all() for g in gradients)
        assert any(g.abs().max() > 0 for g in gradients)
    head = model.class_labels_classifier.weight.grad
    assert head[:2].abs().min() > 0
    assert head[2].abs().max() == 0  # the row of "no object"
    assert all(p.grad is None for p in model.bbox_predictor.parameters())


def test_the_gradient_of_a_class_head_weight_is_the_finite_difference() -> None:
    detector = tiny_detector()
    images, targets = warmed_up(detector)
    detector.vos.eval()  # nothing is remembered: the loss is a function of the weights
    weight = detector.regions.model.class_labels_classifier.weight

    def loss() -> Tensor:
        torch.manual_seed(0)  # the same outliers
        losses = detector.losses(images, targets)
        return losses["loss_vos"] + losses["loss_ce"]

    loss().backward()
    step = 1e-2  # transformers' loss is float32 only
    for row, column in ((0, 3), (1, 5), (2, 1)):
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                weight[row, column] += sign * step
                values.append(loss())
                weight[row, column] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        assert abs(slope) > 5e-3
        torch.testing.assert_close(weight.grad[row, column], slope, rtol=1e-2, atol=5e-5)


def test_the_no_object_logit_takes_no_part_in_the_energy() -> None:
    detector = tiny_detector()
    assert detector.regions.background_index == 2
    images, _ = scenes(2)
    before = detector(images)
    logits = before[0]["logits"].clone()
    energy = detector.vos.energy(logits)
    logits[:, 2] += 100
    torch.testing.assert_close(detector.vos.energy(logits), energy, rtol=0, atol=0)
    torch.testing.assert_close(-before[0]["logits"][:, :2].logsumexp(1), before[0]["ood.energy"])
    logits[:, 1] += 1
    assert (detector.vos.energy(logits) < energy).all()


# --- detect ----------------------------------------------------------------------------------


def test_boxes_equal_a_plain_recomputation() -> None:
    """Two sizes in one batch; every kept box must carry its own query's feature."""
    regions = tiny_regions(score_threshold=0.0)
    images = [scene(0)[0], scene(1, 64, 96)[0]]
    with torch.no_grad():
        regions.model.bbox_predictor.layers[-1].bias[2:] += 2  # boxes that leave the photo
        found = regions.detect(images)
        out = regions.model(**padded(images, (64, 96)))
    for i, (detections, image) in enumerate(zip(found, images, strict=True)):
        height, width = image.shape[1:]
        probabilities = out.logits[i].softmax(-1)[:, :2]
        order = probabilities.max(1).values.argsort(descending=True)
        x, y, w, h = (out.pred_boxes[i][order] * torch.tensor([width, height] * 2)).T
        boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
        assert (boxes[:, 2] > width).any()
        boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height] * 2))
        close = {"rtol": 1e-5, "atol": 1e-4}
        torch.testing.assert_close(detections["boxes"], boxes, **close)
        torch.testing.assert_close(detections["scores"], probabilities[order].max(1).values)
        torch.testing.assert_close(detections["labels"], probabilities[order].argmax(1))
        torch.testing.assert_close(detections["features"], out.last_hidden_state[i][order], **close)


def test_logits_and_scores_follow_from_the_features() -> None:
    detector = tiny_detector()
    for found in detector(scenes(3)[0]):
        assert len(found["labels"]) > 0
        logits = detector.regions.class_head(found["features"])
        best = logits.softmax(-1)[:, :2].max(1)
        close = {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(found["logits"], logits, **close)
        torch.testing.assert_close(found["scores"], best.values, **close)
        torch.testing.assert_close(found["labels"], best.indices)
        assert (found["scores"].diff() <= 0).all()


def test_threshold_and_number_of_detections_are_kept() -> None:
    images, _ = scenes(1)
    with torch.no_grad():
        (every,) = tiny_regions(score_threshold=0.0).detect(images)
        assert len(every["scores"]) == QUERIES
        (few,) = tiny_regions(score_threshold=0.0, detections=3).detect(images)
        middle = every["scores"][3].item()
        (certain,) = tiny_regions(score_threshold=middle).detect(images)
        (none,) = tiny_regions(score_threshold=0.999).detect(images)
    for name, values in every.items():
        torch.testing.assert_close(few[name], values[:3])
        torch.testing.assert_close(certain[name], values[:3])
    assert none["boxes"].shape == (0, 4)
    assert none["features"].shape == (0, DIM)
    assert none["logits"].shape == (0, 3)


@pytest.mark.parametrize("together", [False, True])
def test_photos_of_odd_sizes(together: bool) -> None:
    assert_odd_sizes_are_taken(tiny_detector(), together)


def test_a_large_photo_is_made_smaller_and_its_boxes_are_in_its_own_pixels() -> None:
    regions = tiny_regions(score_threshold=0.0)
    large, _ = scene(0, 640, 960)
    small = F.interpolate(large[None], (64, 96), mode="bilinear", antialias=True)[0]
    with torch.no_grad():
        (from_small,), (from_large,) = regions.detect([small]), regions.detect([large])
    torch.testing.assert_close(from_large["boxes"], 10 * from_small["boxes"], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(from_large["logits"], from_small["logits"], rtol=1e-4, atol=1e-4)


# --- training and use ------------------------------------------------------------------------


def test_steps_on_one_photo_lower_the_loss_until_its_objects_are_found() -> None:
    detector = tiny_detector()
    images, targets = scenes(1)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    totals = []
    for _ in range(120):
        loss = sum(detector.losses(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 0.1)  # the paper's
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.2 * totals[0]
    (found,) = detector(images)
    for label in (0, 1):
        best = found["boxes"][found["labels"] == label][:1]  # the most certain of the class
        assert box_iou(best, targets[0]["boxes"][label : label + 1]).item() > 0.5


def test_scores_are_fitted_calibrated_and_predicted() -> None:
    detector = calibrated_detector()
    photos = [scene(200, 50, 90)[0], (scene(201)[0] * 255).to(torch.uint8)]
    answers = detector.predict(photos, alpha=0.1)
    assert [(a.width, a.height) for a in answers] == [(90, 50), (64, 64)]
    for answer in answers:
        assert answer.boxes
        for box in answer.boxes:
            assert isinstance(box, Detection)
            assert box.label == ("unknown" if box.is_unknown else box.nearest_class)
            assert box.nearest_class in CLASSES
            assert 0 < box.p_value <= 1
            assert {"energy", "vos", "msp", "mahalanobis", "knn", "combined"} <= set(box.scores)


def test_losses_train_and_detect_evaluates() -> None:
    regions = tiny_regions(dropout=0.5)
    images, targets = scenes(1)
    regions.eval().losses(images, targets)
    assert regions.model.training
    with torch.no_grad():
        (once,), (twice,) = regions.train().detect(images), regions.train().detect(images)
    assert not regions.model.training
    torch.testing.assert_close(once, twice, rtol=0, atol=0)


def test_parameter_groups_split_the_trainable_parameters() -> None:
    regions = tiny_regions()
    frozen = next(regions.model.model.backbone.parameters()).requires_grad_(False)
    regions.model.bbox_predictor.requires_grad_(False)
    backbone, rest = regions.parameter_groups()
    ours = {id(p) for p in regions.model.model.backbone.parameters()} - {id(frozen)}
    assert {id(p) for p in backbone} == ours
    trainable = [p for p in regions.parameters() if p.requires_grad]
    assert len(backbone) + len(rest) == len(trainable)
    assert {id(p) for p in backbone + rest} == {id(p) for p in trainable}


def test_float_steps_under_autocast_are_finite() -> None:
    detector = tiny_detector()
    images, targets = warmed_up(detector)
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector.losses(images, targets)
    assert losses["loss_vos"] > 0
    sum(value.float() for value in losses.values()).backward()
    weight = detector.regions.model.class_labels_classifier.weight
    assert torch.isfinite(weight.grad).all()


# --- what is refused -------------------------------------------------------------------------


def test_a_relative_without_a_no_object_logit_is_refused() -> None:
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_labels": 2}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = ConditionalDetrConfig(backbone="test_resnet", num_queries=3, **small, **heads)
    model = ConditionalDetrForObjectDetection(config)
    with pytest.raises(ConfigError, match=r"2 \+ 1 logits.* got ConditionalDetr.* with 2"):
        DetrRegions(model)


def test_another_number_of_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="regions was built for 2, got 3"):
        UnknownAwareDetector(tiny_regions(), ["red", "green", "blue"])


@pytest.mark.parametrize("setting", [{"image_size": 0}, {"score_threshold": 1.0}, {"size": 3}])
def test_settings_are_checked(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        DetrSettings(**setting)


def in_a_fresh_interpreter(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_module_is_imported_without_transformers() -> None:
    code = "import sys, knownot.models.hf_detr; print('transformers' in sys.modules)"
    assert in_a_fresh_interpreter(code).strip() == "False"


def test_a_missing_transformers_names_the_command() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None  # what Python does for a missing one\n"
        "import torch; from knownot.models.hf_detr import DetrRegions\n"
        "from knownot.errors import MissingExtraError\n"
        "try: DetrRegions(torch.nn.Identity())\n"
        "except MissingExtraError as error: print(error)\n"
    )
    assert "needs transformers: pip install 'knownot[hf]'" in in_a_fresh_interpreter(code)
