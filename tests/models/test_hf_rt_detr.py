"""Tiny real RT-DETRs of transformers as `RegionModel`s, alone and inside `UnknownAwareDetector`."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, box_iou, generalized_box_iou
from transformers import ConditionalDetrConfig, RTDetrImageProcessor, RTDetrModel

import knownot
from knownot.errors import ConfigError, KnownotError
from knownot.models.detector import UnknownAwareDetector
from knownot.models.hf_rt_detr import RTDetrRegions, RTDetrSettings
from knownot.models.model_folder import save
from knownot.models.prediction import Detection
from tests.models.tiny_detr import CLASSES, assert_odd_sizes_are_taken, scene, scenes
from tests.models.tiny_rt_detr import (
    DIM,
    KINDS,
    QUERIES,
    SIDE,
    calibrated_detector,
    tiny_detector,
    tiny_network,
    tiny_regions,
)

every_kind = pytest.mark.parametrize("kind", KINDS)


def no_objects() -> dict[str, Tensor]:
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def relative(target: dict[str, Tensor], image: Tensor) -> dict[str, Tensor]:
    height, width = image.shape[1:]
    boxes = box_convert(target["boxes"] / torch.tensor([width, height] * 2), "xyxy", "cxcywh")
    return {"boxes": boxes, "class_labels": target["labels"]}


# --- losses ----------------------------------------------------------------------------------


@every_kind
def test_the_losses_sum_to_the_models_own(kind: str) -> None:
    regions = tiny_regions(kind, weight_loss_bbox=3.0, weight_loss_vfl=2.0)
    images = [scene(seed)[0] for seed in range(3)]
    targets = [scene(0)[1], no_objects(), scene(2)[1]]
    torch.manual_seed(1)  # the denoising queries are drawn
    losses, _ = regions.losses(images, targets)
    annotations = [relative(*pair) for pair in zip(targets, images, strict=True)]
    torch.manual_seed(1)
    own = regions.model(torch.stack(images), labels=annotations)
    torch.testing.assert_close(sum(losses.values()), own.loss, rtol=1e-5, atol=1e-5)
    assert any("dn" in name for name in losses)


@every_kind
@pytest.mark.parametrize("denoising", [0, 4])
def test_the_matched_regions_are_those_of_the_matcher(kind: str, denoising: int) -> None:
    """By class, distance and overlap, written out; denoising queries are none of them."""
    regions = tiny_regions(kind, num_denoising=denoising)
    images, targets = [scene(0)[0], scene(1)[0]], [scene(0)[1], no_objects()]
    _, matched = regions.losses(images, targets)
    assert sorted(matched.labels.tolist()) == [0, 1]
    assert matched.features.requires_grad
    torch.testing.assert_close(matched.logits, regions.class_head(matched.features))
    # Once more with the same statistics of the batch, without labels and so without denoising.
    with torch.no_grad():
        out = regions.model(torch.stack(images))
    annotation = relative(targets[0], images[0])
    probability, boxes = out.logits[0].sigmoid()[:, annotation["class_labels"]], out.pred_boxes[0]
    overlap = generalized_box_iou(
        box_convert(boxes, "cxcywh", "xyxy"), box_convert(annotation["boxes"], "cxcywh", "xyxy")
    )
    right = 0.25 * (1 - probability) ** 2 * -(probability + 1e-8).log()
    wrong = 0.75 * probability**2 * -(1 - probability + 1e-8).log()
    distance = (boxes[:, None] - annotation["boxes"]).abs().sum(-1)
    rows, objects = linear_sum_assignment(2 * (right - wrong) + 5 * distance - 2 * overlap)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(matched.features, out.last_hidden_state[0, rows], **close)
    assert matched.labels.tolist() == annotation["class_labels"][objects].tolist()


def test_targets_are_fractions_of_the_photo() -> None:
    """Photos of any shape are squeezed; boxes with them."""
    regions = tiny_regions()
    wide, target = scene(3, 32, 128)
    squeezed = torch.nn.functional.interpolate(
        wide[None], (SIDE, SIDE), mode="bilinear", antialias=True
    )[0]
    boxes = target["boxes"] * torch.tensor([0.5, 2, 0.5, 2])
    values = []
    for image, described in ((wide, target), (squeezed, {**target, "boxes": boxes})):
        torch.manual_seed(0)
        values.append(regions.losses([image], [described])[0])
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-4)


@every_kind
def test_a_step_without_any_object_has_losses_and_no_region(kind: str) -> None:
    detector = tiny_detector(kind)
    losses = detector.losses(scenes(2)[0], [no_objects(), no_objects()])
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert losses["loss_vos"] == losses["loss_bbox"] == losses["loss_giou"] == 0


def test_more_objects_than_queries_match_every_query() -> None:
    corners = torch.rand(QUERIES + 3, 2) * 30
    boxes = torch.cat([corners, corners + 10], 1)
    labels = torch.arange(QUERIES + 3) % 2
    losses, matched = tiny_regions().losses(scenes(1)[0], [{"boxes": boxes, "labels": labels}])
    assert len(matched.labels) == QUERIES
    assert all(torch.isfinite(value) for value in losses.values())


# --- the virtual outlier loss ----------------------------------------------------------------


@every_kind
def test_the_virtual_outlier_loss_reaches_decoder_and_backbone(kind: str) -> None:
    detector = tiny_detector(kind)
    batch = scenes(3)
    with torch.no_grad():
        for _ in range(2):
            detector.losses(*batch)
    assert detector.vos.ready().all()
    detector.losses(*batch)["loss_vos"].backward()
    network = detector.regions.model
    for part in (network.model.decoder.layers, network.model.encoder, network.model.backbone):
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        assert gradients
        assert all(torch.isfinite(g).all() for g in gradients)
        assert any(g.abs().max() > 0 for g in gradients)
    head = network.model.decoder.class_embed[-1].weight.grad
    assert head.abs().min() > 0  # of every class: there is no column of the background
    assert all(p.grad is None for p in network.model.decoder.bbox_embed[-1].parameters())


def test_the_energy_is_of_all_logits() -> None:
    (found,) = tiny_detector()(scenes(1)[0])
    torch.testing.assert_close(-found["logits"].logsumexp(1), found["ood.energy"])


# --- detect ----------------------------------------------------------------------------------


@every_kind
def test_boxes_are_those_that_transformers_decodes(kind: str) -> None:
    """Of its own processor, photos of two sizes; each with its own query's logits and feature."""
    regions = tiny_regions(kind)
    images = [scene(0)[0], scene(1, 48, 96)[0]]
    processor = RTDetrImageProcessor(size={"height": SIDE, "width": SIDE})
    pixels = [(image * 255).byte() for image in images]
    images = [image.float() / 255 for image in pixels]
    with torch.no_grad():
        found = regions.detect(images)
        out = regions.model(**processor(pixels, return_tensors="pt"))
    sizes = [tuple(image.shape[1:]) for image in images]
    decoded = processor.post_process_object_detection(out, threshold=-1.0, target_sizes=sizes)
    for i, (ours, theirs) in enumerate(zip(found, decoded, strict=True)):
        assert len(ours["scores"]) == 2 * QUERIES  # they stop at as many as there are queries
        height, width = sizes[i]
        boxes = torch.minimum(theirs["boxes"].clamp(min=0), torch.tensor([width, height] * 2))
        close = {"rtol": 1e-4, "atol": 1e-3}
        torch.testing.assert_close(ours["boxes"][:QUERIES], boxes, **close)
        torch.testing.assert_close(ours["scores"][:QUERIES], theirs["scores"], **close)
        assert ours["labels"][:QUERIES].tolist() == theirs["labels"].tolist()
        torch.testing.assert_close(regions.class_head(ours["features"]), ours["logits"], **close)
        own = ours["logits"].sigmoid().gather(1, ours["labels"][:, None])[:, 0]
        torch.testing.assert_close(ours["scores"], own)


def test_threshold_and_number_of_detections_are_kept() -> None:
    images, _ = scenes(1)
    with torch.no_grad():
        (every,) = tiny_regions().detect(images)
        (few,) = tiny_regions(detections=3).detect(images)
        (certain,) = tiny_regions(score_threshold=every["scores"][3].item()).detect(images)
        (none,) = tiny_regions(score_threshold=0.999).detect(images)
    for name, values in every.items():
        torch.testing.assert_close(few[name], values[:3])
        torch.testing.assert_close(certain[name], values[:3])
    assert none["boxes"].shape == (0, 4)
    assert none["features"].shape == (0, DIM)
    assert none["logits"].shape == (0, len(CLASSES))


@pytest.mark.parametrize("together", [False, True])
def test_photos_of_odd_sizes(together: bool) -> None:
    assert_odd_sizes_are_taken(tiny_detector(), together)


# --- training and use ------------------------------------------------------------------------


def test_steps_on_one_photo_find_its_objects() -> None:
    detector = tiny_detector()
    images, (target,) = scenes(1)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=5e-3)
    for _ in range(150):
        loss = sum(detector.losses(images, [target]).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
    (found,) = detector(images)
    for label in (0, 1):
        best = found["boxes"][found["labels"] == label][:1]  # the most certain of the class
        assert box_iou(best, target["boxes"][label : label + 1]).item() > 0.5


@every_kind
def test_a_model_folder_gives_the_same_answers(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("a model folder needs no network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    model = calibrated_detector(kind).to(memory_format=torch.channels_last)
    folder = save(model, tmp_path / "model")
    again = knownot.load(folder)
    assert isinstance(again, UnknownAwareDetector)
    assert again.regions.architecture == f"{kind} on rt_detr_resnet"
    photos = [scene(200, 50, 90)[0], scene(201)[0]]
    answers = model.predict(photos, alpha=0.1)
    assert again.predict(photos, alpha=0.1) == answers
    for answer in answers:
        assert answer.boxes
        for box in answer.boxes:
            assert isinstance(box, Detection)
            assert box.label == ("unknown" if box.is_unknown else box.nearest_class)
            assert {"energy", "vos", "msp", "mahalanobis", "knn", "combined"} <= set(box.scores)
    text = (folder / "config.json").read_text()  # a stranger's may say anything
    for old, new, message in (
        ('"hf_rt_detr"', '"hf_regions"', "no 'hf_regions' in this version"),
        ('"model_type": "rt_detr', '"model_type": "their', "expected model_type rt_detr or"),
        ('"decoder_layers": 2', '"decoder_layers": 200', "at most 100 layers"),
        ('"image_size": 64', '"image_size": 65', "image_size"),
    ):
        assert old in text
        (folder / "config.json").write_text(text.replace(old, new))
        with pytest.raises(KnownotError, match=message):
            knownot.load(folder)


def test_parameter_groups_split_the_trainable_parameters() -> None:
    regions = tiny_regions()
    backbone, rest = regions.parameter_groups()
    assert {id(p) for p in backbone} == {id(p) for p in regions.model.model.backbone.parameters()}
    assert {id(p) for p in backbone + rest} == {id(p) for p in regions.parameters()}


def test_float_steps_under_autocast_are_finite() -> None:
    detector = tiny_detector()
    batch = scenes(3)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            losses = detector.losses(*batch)
    assert losses["loss_vos"] > 0
    sum(value.float() for value in losses.values()).backward()


# --- what is refused -------------------------------------------------------------------------


def test_another_network_is_refused() -> None:
    config = tiny_network().config
    for network in (torch.nn.Linear(2, 2), RTDetrModel(config)):
        with pytest.raises(ConfigError, match=f"got {type(network).__name__}"):
            RTDetrRegions(network)
    assert ConditionalDetrConfig().model_type not in KINDS


def test_anchors_of_another_size_are_refused() -> None:
    network = tiny_network(anchor_image_size=[SIDE, SIDE])
    with pytest.raises(ConfigError, match=r"anchors are of \[64, 64\], the settings say 640"):
        RTDetrRegions(network)
    regions = RTDetrRegions(network, RTDetrSettings(image_size=SIDE, score_threshold=0))
    with torch.no_grad():
        assert len(regions.detect([scene(0, 30, 50)[0]])[0]["boxes"])


@pytest.mark.parametrize("setting", [{"image_size": 100}, {"score_threshold": 1.0}, {"size": 3}])
def test_settings_are_checked(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        RTDetrSettings(**setting)


def test_a_missing_transformers_names_the_command() -> None:
    code = (
        "import sys, json, knownot.models.hf_rt_detr as adapter\n"
        "loaded = 'transformers' in sys.modules\n"
        "sys.modules['transformers'] = None  # what Python does for a missing one\n"
        "import torch\n"
        "from knownot.errors import MissingExtraError\n"
        "try: adapter.RTDetrRegions(torch.nn.Identity())\n"
        "except MissingExtraError as error: print(json.dumps([loaded, str(error)]))\n"
    )
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loaded, error = json.loads(said)
    assert not loaded
    assert "needs transformers: pip install 'knownot[hf]'" in error
