"""torchvision's Faster R-CNN as a `RegionModel`.

torchvision's own code samples proposals, computes losses and post-processes boxes; here it is only
asked which features and logits it used. Penultimate feature: output of the box head. What the feature
scores read: the backbone's own maps, averaged over the box, as a classifier's read its backbone's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, takewhile
from threading import Lock
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, clip_boxes_to_image
from torchvision.ops.poolers import initLevelMapper

from knownot.data.thin import refuse_thin
from knownot.errors import ConfigError
from knownot.models.backbones import pixel_statistics
from knownot.models.modes import evaluating
from knownot.models.pooled_maps import by_image, pooled_maps
from knownot.models.pyramid import TimmPyramid
from knownot.models.regions import Detections, MatchedRegions, RegionModel, Targets

SHIPPED = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)
STRIDES = (8, 16, 32)
_SIDE = 256


class FasterRCNNSettings(BaseModel):
    """What a Faster R-CNN is built from; the paper's protocol where it gives a number."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str = "tf_efficientnet_lite0"
    image_size: int = Field(320, ge=32, le=4096, description="shorter side in pixels")
    feature_dim: int = Field(128, ge=1, le=65_536, description="width of the box features")
    frozen_stages: int = Field(2, ge=0, le=5)
    frozen_norm: bool = True
    train_proposals: int = Field(500, ge=1, le=100_000)
    proposals: int = Field(200, ge=1, le=100_000)
    regions_per_image: int = Field(64, ge=1, le=100_000, description="sampled for training")
    score_threshold: float = Field(0.05, ge=0, lt=1)
    nms_threshold: float = Field(0.5, gt=0, le=1)
    detections: int = Field(100, ge=1, le=100_000)
    # Found where torchvision builds around pretrained weights; to build the same around others.
    fixed_norm_eps: float | None = Field(None, ge=0, lt=1, description="of fixed batch norms")
    fixed_parameters: int = Field(0, ge=0, description="of the backbone's body, the first ones")
    scored_strides: tuple[int, ...] = Field(
        STRIDES,
        max_length=len(STRIDES) + 1,
        description="backbone maps that feature scores read; none: the box features",
    )


class FasterRCNNRegions(RegionModel):
    """Faster R-CNN on a torchvision or timm backbone.

    Args:
        num_classes: Number of classes K, without the background.
        settings: How it is built.
        weights: "auto", "pypi", "hub", "none" or a file, as in `create_backbone`; for the
            architectures that torchvision ships, "auto" and "hub" load its COCO weights.

    Raises:
        ConfigError: If the architecture or the weights cannot be had.
    """

    background_index = 0

    def __init__(
        self, num_classes: int, settings: FasterRCNNSettings, weights: str = "auto"
    ) -> None:
        super().__init__()
        limits = {
            "min_size": settings.image_size,
            "max_size": settings.image_size * 5 // 3,  # torchvision's 800 x 1333
            "rpn_pre_nms_top_n_train": 2 * settings.train_proposals,
            "rpn_post_nms_top_n_train": settings.train_proposals,
            "rpn_pre_nms_top_n_test": 2 * settings.proposals,
            "rpn_post_nms_top_n_test": settings.proposals,
            "box_batch_size_per_image": settings.regions_per_image,
            "box_score_thresh": settings.score_threshold,
            "box_nms_thresh": settings.nms_threshold,
            "box_detections_per_img": settings.detections,
        }
        if settings.architecture in SHIPPED:
            model = _shipped(num_classes, settings, weights, limits)
            settings = settings.model_copy(update=what_is_fixed(model))
        else:
            model = _on_timm(num_classes, settings, weights, limits)
        self.settings = settings
        self.architecture = f"Faster R-CNN on {settings.architecture}"
        self.image_size = settings.image_size
        self.adapt(model, settings.scored_strides)

    def adapt(self, model: FasterRCNN, strides: Sequence[int]) -> None:
        """Take a detector of torchvision's; feature scores read its backbone's maps of these strides."""
        model.roi_heads = RememberingRoIHeads.of(model.roi_heads)
        model.rpn = RememberingProposals.of(model.rpn)
        _fix_scales(model)
        self.model = model
        self._alone = _Alone()
        head = model.roi_heads.box_predictor.cls_score
        self.num_classes = head.out_features - 1
        self.feature_dim = self.scored_dim = head.in_features
        if strides:
            self.scored_dim = _read_maps(model, strides)

    def refuse_size(self, size: tuple[int, int], name: str) -> None:
        """Raise `DataError` if the shorter side would be resized to nothing."""
        refuse_thin(size, self.model.transform.max_size, name)

    def class_head(self, features: Tensor) -> Tensor:
        """Class logits (M, K + 1), background first, of box features (M, D)."""
        logits: Tensor = self.model.roi_heads.box_predictor.cls_score(features)
        return logits

    def losses(
        self, images: list[Tensor], targets: Targets
    ) -> tuple[dict[str, Tensor], MatchedRegions]:
        """torchvision's four losses, and the foreground proposals of its sample."""
        if not self.training:  # to look through all modules for nothing takes a while
            self.train()
        shifted = [{"boxes": t["boxes"], "labels": t["labels"] + 1} for t in targets]
        losses: dict[str, Tensor] = self.model(images, shifted)
        features, logits, labels = self.model.roi_heads.take_sample()
        foreground = torch.where(labels > 0)[0]
        return losses, MatchedRegions(
            features[foreground], logits[foreground], labels[foreground] - 1
        )

    def detect(self, images: list[Tensor], proposals: bool = False) -> list[Detections]:
        """torchvision's detections, each with its logits and feature; region proposals if asked for.

        Threads that share the model wait for one another.
        """
        if self.training:
            self.eval()
        with self._alone.lock:  # the parts of the model remember what the others ask for
            found: list[Detections] = self.model(images)
            looked_at = self.model.rpn.take_proposals()
        for detections, image, (boxes, objectness, size) in zip(
            found, images, looked_at, strict=True
        ):
            detections["labels"] = detections["labels"] - 1
            if proposals:
                detections["proposals"] = resize_boxes(boxes, size, image.shape[-2:])
                detections["objectness"] = objectness
        return found

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters of the backbone's body, and of the rest; frozen ones left out."""
        body = list(body_of(self.model).parameters())
        inside = {id(p) for p in body}
        rest = [p for p in self.parameters() if id(p) not in inside]
        return [p for p in body if p.requires_grad], [p for p in rest if p.requires_grad]

    def describe(self) -> dict[str, Any]:
        """The settings."""
        return self.settings.model_dump()

    @classmethod
    def rebuild(cls, num_classes: int, description: dict[str, Any]) -> FasterRCNNRegions:
        """A Faster R-CNN of these settings, with random weights."""
        # Folders from before there was a choice hold scores of the box features.
        description = {"scored_strides": (), **description}
        return cls(num_classes, FasterRCNNSettings(**description), weights="none")


class _Alone:
    """A lock of a model's own: a copy of the model, or a model read from a file, gets another."""

    def __init__(self) -> None:
        self.lock = Lock()

    def __reduce__(self) -> tuple[type[_Alone], tuple[()]]:
        return _Alone, ()


class RememberingRoIHeads(RoIHeads):  # type: ignore[misc]
    """torchvision's `RoIHeads`, which also tells what features and logits its boxes came from."""

    @classmethod
    def of(cls, heads: RoIHeads) -> RememberingRoIHeads:
        """The same heads, with the same modules and settings."""
        new = cls.__new__(cls)
        new.__dict__ = heads.__dict__.copy()
        new.reads_maps = False
        new.replace_predictor(heads.box_predictor)
        return new

    def replace_predictor(self, predictor: nn.Module) -> None:
        """Take this last layer, whose inputs and outputs are remembered."""
        predictor.register_forward_hook(self._remember_rows)
        self.box_predictor = predictor

    def _remember_rows(self, module: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
        self._features, self._logits = inputs[0], output[0]

    def read_maps(self, body: nn.Module, levels: list[int], strides: list[int]) -> None:
        """Give detections what these maps of the backbone's body show in their boxes.

        Args:
            body: Gives several maps, as a list or by name.
            levels: Which of them, by place.
            strides: Pixels between neighbouring cells, of each.
        """
        self.reads_maps = True
        self._levels, self._strides = levels, strides
        body.register_forward_hook(self._remember_maps)

    def _remember_maps(self, module: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
        if not self.training:
            maps = _in_order(output)
            self._maps = [maps[level] for level in self._levels]

    def seen_in(self, boxes: list[Tensor]) -> list[Tensor]:
        """Pooled maps (B, S) of each photo's boxes (B, 4), in the resized photo; then forgotten."""
        seen = pooled_maps(self._maps, boxes, self._strides)
        del self._maps
        return list(by_image(seen, boxes))

    def select_training_samples(self, proposals: Any, targets: Any) -> Any:
        """torchvision's sample, its labels remembered."""
        sample = super().select_training_samples(proposals, targets)
        self._labels = torch.cat(sample[2])
        return sample

    def take_sample(self) -> tuple[Tensor, Tensor, Tensor]:
        """Features (N, D), logits (N, K + 1), labels (N,), 0 for background; then forgotten."""
        sample = self._features, self._logits, self._labels
        del self._features, self._logits, self._labels  # they hold the graph
        return sample

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """torchvision's boxes, scores and labels; the row that each came from is remembered.

        It does not say which, but score and box are copies of the row's: the row is found by
        equality, of the score alone where that tells. Rows that share both are equal in all that
        is read of them.
        """
        kept: tuple[list[Tensor], list[Tensor], list[Tensor]] = super().postprocess_detections(
            class_logits, box_regression, proposals, image_shapes
        )
        counts = [len(p) for p in proposals]
        probabilities = torch.split(class_logits.softmax(-1), counts)
        self._rows: list[Tensor] = []
        first = 0
        for i, (boxes, scores, labels) in enumerate(zip(*kept, strict=True)):
            same = probabilities[i].T[labels] == scores.unsqueeze(1)  # (B, N)
            places = same.nonzero()
            rows = places[:, 1]
            if len(places) > len(labels):  # some score is that of several rows
                decoded = self.box_coder.decode(box_regression, proposals).split(counts)[i]
                candidates = clip_boxes_to_image(decoded, image_shapes[i])[:, labels]  # (N, B, 4)
                same &= (candidates == boxes).all(-1).T
                rows = same.byte().argmax(1)
            self._rows.append(first + rows)
            first += counts[i]
        return kept

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[list[Detections], dict[str, Tensor]]:
        """torchvision's result; in evaluation each detection gets its `logits` and `features`.

        With `read_maps`, `scored_features` too.
        """
        found, losses = super().forward(features, proposals, image_shapes, targets)
        if not self.training:
            for detections, rows in zip(found, self._rows, strict=True):
                detections["logits"] = self._logits[rows]
                detections["features"] = self._features[rows]
            del self._features, self._logits, self._rows
            if self.reads_maps:
                seen = self.seen_in([detections["boxes"] for detections in found])
                for detections, rows_seen in zip(found, seen, strict=True):
                    detections["scored_features"] = rows_seen
        return found, losses


class RememberingProposals(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's `RegionProposalNetwork`, which also tells how sure it is of its proposals."""

    @classmethod
    def of(cls, network: RegionProposalNetwork) -> RememberingProposals:
        """The same network, with the same modules and settings."""
        new = cls.__new__(cls)
        new.__dict__ = network.__dict__.copy()
        return new

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """torchvision's choice; in evaluation it is remembered."""
        kept: tuple[list[Tensor], list[Tensor]] = super().filter_proposals(
            proposals, objectness, image_shapes, num_anchors_per_level
        )
        if not self.training:
            self._kept = (*kept, image_shapes)
        return kept

    def take_proposals(self) -> list[tuple[Tensor, Tensor, tuple[int, int]]]:
        """For each photo boxes (P, 4), objectness (P,) and the size they refer to; then forgotten."""
        kept = list(zip(*self._kept, strict=True))
        del self._kept
        return kept


def body_of(model: FasterRCNN) -> nn.Module:
    """The backbone without its pyramid; all of it where it has none."""
    body: nn.Module = getattr(model.backbone, "body", model.backbone)
    return body


@torch.no_grad()
def _maps_of_a_square(model: FasterRCNN, network: nn.Module) -> Any:
    """Maps that a network within the model gives for a square of `_SIDE` pixels."""
    device = next(model.parameters()).device  # also where a default device is set
    with evaluating(model):
        return network(torch.zeros(1, 3, _SIDE, _SIDE, device=device))


def _fix_scales(model: FasterRCNN) -> None:
    """Set the scales of the feature maps, which torchvision would take from the first photo.

    A narrow one, mostly padding, would set them wrong for all that follow.
    """
    maps = _maps_of_a_square(model, model.backbone)
    maps = {"0": maps} if isinstance(maps, Tensor) else maps  # as torchvision names a single one
    pool = model.roi_heads.box_roi_pool
    strides = [_SIDE // maps[name].shape[-1] for name in pool.featmap_names if name in maps]
    pool.scales = [1 / stride for stride in strides]
    first, last = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
    pool.map_levels = initLevelMapper(
        first, last, canonical_scale=pool.canonical_scale, canonical_level=pool.canonical_level
    )


def levels_by_stride(model: FasterRCNN) -> dict[int, int]:
    """Which of the backbone's maps has which stride; of several of a stride the deepest."""
    maps = _in_order(_maps_of_a_square(model, body_of(model)))
    return {_SIDE // values.shape[-1]: level for level, values in enumerate(maps)}


def _read_maps(model: FasterRCNN, strides: Sequence[int]) -> int:
    """Have feature scores read the maps of these strides; returns how many channels they have.

    Strides that the backbone lacks are left out.
    """
    by_stride = levels_by_stride(model)
    used = [stride for stride in strides if stride in by_stride]
    if not used:
        raise ConfigError(
            f"scored_strides: the backbone has maps of {list(by_stride)}, none of {list(strides)}"
        )
    levels = [by_stride[stride] for stride in used]
    body = body_of(model)
    model.roi_heads.read_maps(body, levels, used)
    maps = _in_order(_maps_of_a_square(model, body))
    return sum(maps[level].shape[1] for level in levels)


def _in_order(maps: Any) -> list[Tensor]:
    """A body's maps: timm gives a list, torchvision a dictionary; a plain network gives one."""
    if isinstance(maps, Tensor):
        return [maps]
    return list(maps.values()) if isinstance(maps, dict) else list(maps)


def _on_timm(
    num_classes: int, settings: FasterRCNNSettings, weights: str, limits: dict[str, Any]
) -> FasterRCNN:
    pyramid = TimmPyramid(
        settings.architecture,
        weights,
        strides=STRIDES,
        frozen_stages=settings.frozen_stages,
        frozen_norm=settings.frozen_norm,
    )
    mean, std = pixel_statistics(settings.architecture)
    # Two sizes a level, half an octave apart, from three times its stride on.
    sizes = tuple((3 * s, round(3 * s * 2**0.5)) for s in (*STRIDES, 2 * STRIDES[-1]))
    pool = MultiScaleRoIAlign([str(i) for i in range(len(STRIDES))], 7, sampling_ratio=2)
    return FasterRCNN(
        pyramid,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        box_roi_pool=pool,
        box_head=TwoMLPHead(pyramid.out_channels * 7**2, settings.feature_dim),
        box_predictor=FastRCNNPredictor(settings.feature_dim, num_classes + 1),
        image_mean=mean,
        image_std=std,
        **limits,
    )


def _shipped(
    num_classes: int, settings: FasterRCNNSettings, weights: str, limits: dict[str, Any]
) -> FasterRCNN:
    if weights not in ("auto", "hub", "none"):
        raise ConfigError(
            f"weights: {settings.architecture} takes hub or none, got {weights!r}; offline use "
            "--arch tf_efficientnet_lite0"
        )
    build = getattr(detection, settings.architecture)
    try:
        model: FasterRCNN = build(
            weights=None if weights == "none" else "DEFAULT",
            weights_backbone=None,
            trainable_backbone_layers=None if weights == "none" else 5 - settings.frozen_stages,
            **limits,
        )
    except OSError as error:
        raise ConfigError(
            f"weights: {settings.architecture} could not be downloaded ({error}); without a network "
            "use --arch tf_efficientnet_lite0, or --weights none"
        ) from None
    if weights == "none" and settings.fixed_norm_eps is not None:
        fix_norms(model, settings.fixed_norm_eps, settings.fixed_parameters)
    width = model.roi_heads.box_head.fc7.out_features
    if settings.feature_dim != width:  # a bottleneck: virtual outliers need a narrow layer
        model.roi_heads.box_head = nn.Sequential(
            model.roi_heads.box_head, nn.Linear(width, settings.feature_dim), nn.ReLU()
        )
    model.roi_heads.box_predictor = FastRCNNPredictor(settings.feature_dim, num_classes + 1)
    return model


def what_is_fixed(model: FasterRCNN) -> dict[str, Any]:
    """Of a detector around pretrained weights, the settings that tell what is not trained."""
    norms = (m for m in model.modules() if isinstance(m, FrozenBatchNorm2d))
    frozen = takewhile(lambda p: not p.requires_grad, body_of(model).parameters())
    return {
        "fixed_norm_eps": next((norm.eps for norm in norms), None),
        "fixed_parameters": sum(1 for _ in frozen),
    }


def fix_norms(model: FasterRCNN, eps: float, parameters: int = 0) -> None:
    """Make of a detector what torchvision builds around pretrained weights, as `what_is_fixed` tells."""
    _put_fixed_norms(model, eps)
    for parameter in islice(model.backbone.body.parameters(), parameters):
        parameter.requires_grad_(False)


def _put_fixed_norms(network: nn.Module, eps: float) -> None:
    for name, module in network.named_children():
        if isinstance(module, nn.BatchNorm2d):
            setattr(network, name, FrozenBatchNorm2d(module.num_features, eps))
        else:
            _put_fixed_norms(module, eps)
