"""Finished Faster R-CNNs: every box as torchvision has it, whatever is built around it, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator

from knownot.errors import ConfigError, ModelFileError
from knownot.models.finished_faster_rcnn import (
    FinishedFasterRCNN,
    finished_faster_rcnn,
    outputs_of_classes,
)
from knownot.models.torchvision_faster_rcnn import FasterRCNNRegions, FasterRCNNSettings

SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
SIZES = {"min_size": 96, "max_size": 640}


def network(name: str = SMALL, columns: int = 4, **changes: Any) -> Any:
    torch.manual_seed(0)
    settings = {**SIZES, **changes, "num_classes": columns}
    return get_model(name, weights=None, weights_backbone=None, **settings).eval()


def photos() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) for size in ((96, 96), (70, 110))]


def same_boxes(own: FasterRCNN, regions: FinishedFasterRCNN) -> None:
    with torch.no_grad():
        # One by one, as knownot looks at photos: padding to another's size moves boxes.
        for image in photos():
            (expected,), (found,) = own.eval()([image]), regions.detect([image])
            assert len(expected["labels"])
            assert torch.equal(expected["boxes"], found["boxes"])
            assert torch.equal(expected["scores"], found["scores"])
            assert torch.equal(expected["labels"] - 1, found["labels"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", [SMALL, "fasterrcnn_resnet50_fpn_v2"])
def test_a_file_gives_torchvision_s_boxes(name: str, suffix: str, tmp_path: Path) -> None:
    own = network(name)
    path = tmp_path / f"mine{suffix}"
    state = own.state_dict()
    if suffix == ".pth":
        torch.save({"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    else:
        save_file(state, path)
    regions = finished_faster_rcnn(name, str(path))
    assert regions.num_classes == 3
    regions.set_up(image_size=96)
    if name == SMALL:
        assert regions.settings.max_size == 640  # its own, not torchvision's 1333
    own.transform.max_size = regions.settings.max_size
    same_boxes(own, regions)
    again = FinishedFasterRCNN.rebuild(3, regions.describe())
    again.load_state_dict(regions.state_dict())
    same_boxes(own, again)


def test_batch_norms_that_were_fixed_stay_fixed(tmp_path: Path) -> None:
    """Weights from torchvision's pretrained ones: no counters in the file, and for ResNet-50 no eps."""
    own = network("fasterrcnn_resnet50_fpn")
    state = {k: v for k, v in own.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "mine.pth")
    regions = finished_faster_rcnn("fasterrcnn_resnet50_fpn", str(tmp_path / "mine.pth"))
    assert regions.settings.fixed_norm_eps == 0.0
    assert not any(isinstance(m, nn.BatchNorm2d) for m in regions.modules())
    again = FinishedFasterRCNN.rebuild(3, regions.describe())
    again.load_state_dict(regions.state_dict())
    same_boxes(regions.model, again)


def test_torchvision_s_own_weights_are_of_coco(tmp_path: Path, monkeypatch: Any) -> None:
    from torchvision.models import get_model_weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    kept = tmp_path / "hub" / "checkpoints"
    kept.mkdir(parents=True)
    own = network(columns=91)
    url = get_model_weights(SMALL).DEFAULT.url
    torch.save(own.state_dict(), kept / url.rpartition("/")[2])
    regions = finished_faster_rcnn(SMALL, "hub")
    assert regions.num_classes == 90
    regions.keep([0, 2, 7])
    assert regions.num_classes == 3


def test_outputs_are_put_in_order_and_others_dropped() -> None:
    own = network(columns=6)
    regions = FinishedFasterRCNN(own)
    images = photos()[:1]
    with torch.no_grad():
        (before,) = regions.detect(images)
        regions.keep([4, 0, 2])
        (after,) = regions.detect(images)
    assert regions.num_classes == 3
    # The same features give the same logits and boxes, in other columns.
    predictor = own.roi_heads.box_predictor
    with torch.no_grad():
        logits = predictor.cls_score(after["features"])
        found = regions.class_head(after["features"])
        torch.testing.assert_close(found, logits[:, [0, 5, 1, 3]])
        torch.testing.assert_close(after["logits"], found)
        deltas = predictor.bbox_pred(after["features"]).view(-1, 6, 4)
        kept = regions.model.roi_heads.box_predictor.bbox_pred(after["features"]).view(-1, 4, 4)
    torch.testing.assert_close(kept, deltas[:, [0, 5, 1, 3]])
    assert before["logits"].shape[1] == 6
    with torch.no_grad():  # the caller's own is left as it was
        assert own(images)[0]["labels"].max() <= 5
        assert own.roi_heads.box_predictor.cls_score.out_features == 6


class Backbone(nn.Sequential):
    """As torchvision's tutorial has it: a plain network, one map."""

    out_channels = 16


def plain_backbone() -> Backbone:
    return Backbone(
        nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 4, 1), nn.ReLU()
    )  # fmt: skip


class TimmBackbone(nn.Module):
    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.body = timm.create_model("resnet10t", features_only=True, out_indices=(2, 3))
        self.fit = nn.ModuleList(nn.Conv2d(c, 16, 1) for c in self.body.feature_info.channels())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = zip(self.fit, self.body(images), strict=True)
        return {str(i): fit(values) for i, (fit, values) in enumerate(maps)}


@pytest.mark.parametrize(
    ("backbone", "levels", "width"), [(plain_backbone, 1, 16), (TimmBackbone, 2, 128 + 256)]
)
def test_detectors_of_one_s_own(backbone: Any, levels: int, width: int) -> None:
    torch.manual_seed(0)
    anchors = AnchorGenerator(((16, 32, 64),) * levels, ((0.5, 1.0, 2.0),) * levels)
    own = FasterRCNN(
        backbone(),
        num_classes=4,
        rpn_anchor_generator=anchors,
        box_detections_per_img=20,
        image_mean=[0.5] * 3,
        **SIZES,
    ).eval()
    regions = FinishedFasterRCNN(own)
    assert regions.scored_dim == width
    assert regions.settings.mean == (0.5, 0.5, 0.5)
    same_boxes(own, regions)
    regions.keep([2, 1])
    with pytest.raises(ConfigError, match="of your own, which Python alone"):
        FinishedFasterRCNN.rebuild(2, regions.describe())
    again = FinishedFasterRCNN.rebuild_around(own, 2, regions.describe())
    again.load_state_dict(regions.state_dict())
    same_boxes(regions.model, again)
    body, rest = again.parameter_groups()
    assert body
    assert rest


def test_a_backbone_without_such_maps_leaves_the_box_features() -> None:
    backbone = Backbone(nn.Conv2d(3, 16, 65, 64, 32), nn.ReLU())
    regions = FinishedFasterRCNN(
        FasterRCNN(backbone, 3, rpn_anchor_generator=AnchorGenerator(((64,),), ((1.0,),)), **SIZES)
    )
    assert regions.settings.scored_strides == ()
    assert regions.scored_dim == regions.feature_dim == 1024


def test_others_are_refused() -> None:
    class Heads(type(network().roi_heads)):  # type: ignore[misc]
        pass

    own = network()
    own.roi_heads.__class__ = Heads
    with pytest.raises(ConfigError, match="its roi_heads is a Heads"):
        FinishedFasterRCNN(own)
    with pytest.raises(ConfigError, match="FasterRCNN, got RetinaNet"):
        FinishedFasterRCNN(get_model("retinanet_resnet50_fpn", weights=None, weights_backbone=None))
    masks = get_model("maskrcnn_resnet50_fpn", weights=None, weights_backbone=None)
    with pytest.raises(ConfigError, match="MaskRCNN has masks"):
        FinishedFasterRCNN(masks)
    built = FasterRCNNRegions(2, FasterRCNNSettings(architecture=SMALL), "none")
    with pytest.raises(ConfigError, match="RememberingRoIHeads"):
        FinishedFasterRCNN(built.model)


def test_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    for architecture, weights, message in (
        ("tf_efficientnet_lite0", "auto", "fasterrcnn_resnet50_fpn_v2; any other"),
        (SMALL, "none", "none is no finished detector"),
        (SMALL, str(tmp_path / "nothing.pth"), "is no file"),
    ):
        with pytest.raises(ConfigError, match=message):
            finished_faster_rcnn(architecture, weights)
    torch.save(network("fasterrcnn_resnet50_fpn").state_dict(), tmp_path / "other.pth")
    with pytest.raises(ModelFileError, match="does not fit"):
        finished_faster_rcnn(SMALL, str(tmp_path / "other.pth"))
    broken = network()
    torch.nn.init.constant_(broken.roi_heads.box_head.fc6.bias, torch.nan)
    torch.save(broken.state_dict(), tmp_path / "broken.pth")
    with pytest.raises(ModelFileError, match=r"box_head\.fc6\.bias holds numbers"):
        finished_faster_rcnn(SMALL, str(tmp_path / "broken.pth"))
    torch.save(network().backbone.state_dict(), tmp_path / "part.pth")
    with pytest.raises(ModelFileError, match="lacks roi_heads"):
        finished_faster_rcnn(SMALL, str(tmp_path / "part.pth"))


@pytest.mark.parametrize(
    ("outputs", "ids", "named", "expected"),
    [
        (3, {}, None, [0, 1, 2]),
        (3, {}, ["c", "a", "b"], [1, 2, 0]),
        (3, {"a": 5, "b": 6, "c": 9}, None, [0, 1, 2]),  # as many: in their order
        (9, {"a": 5, "b": 6, "c": 9}, None, [4, 5, 8]),  # labels that are ids
    ],
)
def test_outputs_are_found(outputs: int, ids: Any, named: Any, expected: list[int]) -> None:
    assert outputs_of_classes(outputs, ["a", "b", "c"], ids, named) == expected


@pytest.mark.parametrize(
    ("outputs", "ids", "named", "message"),
    [
        (4, {}, None, "tells 4 classes apart, the annotations have 3"),
        (9, {"a": 0, "b": 6, "c": 9}, None, "tells 9 classes apart"),
        (3, {}, ["a", "b", "d"], "outputs: expected the 3 categories"),
        (4, {}, ["a", "b", "c"], "network's 4 outputs"),
        (3, {}, ["a", "b", "b"], "outputs: expected"),
    ],
)
def test_outputs_that_do_not_fit(outputs: int, ids: Any, named: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        outputs_of_classes(outputs, ["a", "b", "c"], ids, named)
