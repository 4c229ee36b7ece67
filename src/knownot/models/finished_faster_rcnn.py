"""Faster R-CNNs that are trained already, taken as torchvision has them: every box stays what it was.

`torchvision_faster_rcnn` builds detectors to be trained; here one comes with its weights, last
layer included.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from knownot.errors import ConfigError, ModelFileError
from knownot.models.faster_rcnn import AdaptedFasterRCNN, levels_by_stride
from knownot.models.finished import unwrapped
from knownot.models.torchvision_faster_rcnn import SHIPPED, STRIDES, fix_norms, what_is_fixed
from knownot.models.weights_file import load_weights, read_weights

CUSTOM = "custom"
NAMES = (*SHIPPED, "fasterrcnn_resnet50_fpn_v2")
_PREDICTOR = "roi_heads.box_predictor.cls_score.weight"
_Share = Annotated[float, Field(ge=0, le=1)]
_Spread = Annotated[float, Field(gt=0, le=1)]


class FinishedSettings(BaseModel):
    """What a finished detector is rebuilt from, beside its weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str = Field(CUSTOM, description="torchvision's name; custom: the caller's module")
    image_size: int = Field(ge=32, le=4096, description="shorter side in pixels")
    max_size: int = Field(ge=32, le=8192, description="longer side at most")
    mean: tuple[_Share, _Share, _Share]
    std: tuple[_Spread, _Spread, _Spread]
    score_threshold: float | None = Field(None, ge=0, le=1, description="none: the network's")
    nms_threshold: float | None = Field(None, gt=0, le=1, description="none: the network's")
    detections: int | None = Field(None, ge=1, le=100_000, description="none: the network's")
    fixed_norm_eps: float | None = Field(None, ge=0, lt=1)
    fixed_parameters: int = Field(0, ge=0)
    scored_strides: tuple[int, ...] = Field(STRIDES, max_length=len(STRIDES) + 1)


class FinishedFasterRCNN(AdaptedFasterRCNN):
    """A Faster R-CNN of torchvision's, with its weights and its own settings.

    Args:
        network: The detector, which is copied: any `FasterRCNN` that ends as torchvision's own do, in a
            `FastRCNNPredictor`.
        architecture: torchvision's name of it, where that builds the same.
        scored_strides: Backbone maps that feature scores read, where it has them; without any the box
            features.

    Raises:
        ConfigError: If it is another kind of network, or has parts of its own in place of torchvision's.
    """

    def __init__(
        self,
        network: nn.Module,
        architecture: str = CUSTOM,
        scored_strides: Sequence[int] = STRIDES,
    ) -> None:
        network = unwrapped(network)
        _refuse_others(network)
        model: Any = copy.deepcopy(network).float()
        there = levels_by_stride(model)
        strides = tuple(stride for stride in scored_strides if stride in there)
        super().__init__(model, strides)
        self.train()  # all of it is in the mode that this module says
        transform = model.transform
        self.settings = FinishedSettings(
            architecture=architecture,
            image_size=transform.min_size[-1],
            max_size=transform.max_size,
            mean=tuple(transform.image_mean),
            std=tuple(transform.image_std),
            score_threshold=model.roi_heads.score_thresh,
            nms_threshold=model.roi_heads.nms_thresh,
            detections=model.roi_heads.detections_per_img,
            scored_strides=strides,
            **what_is_fixed(model),
        )
        self.image_size = self.settings.image_size
        self.architecture = f"Faster R-CNN, {architecture}"

    def keep(self, outputs: Sequence[int]) -> None:
        """Let class k be what output `outputs[k]` was, from 0 without the background; drop the others."""
        predictor = self.model.roi_heads.box_predictor
        rows = torch.tensor([0, *(1 + o for o in outputs)])
        kept = FastRCNNPredictor(self.feature_dim, len(rows))
        fours = (4 * rows.unsqueeze(1) + torch.arange(4)).flatten()
        with torch.no_grad():
            for layer, chosen in (("cls_score", rows), ("bbox_pred", fours)):
                for name, values in getattr(predictor, layer).named_parameters():
                    getattr(getattr(kept, layer), name).copy_(values[chosen.to(values.device)])
        self._end_in(kept.to(predictor.cls_score.weight.device))

    def _end_in(self, predictor: FastRCNNPredictor) -> None:
        self.model.roi_heads.replace_predictor(predictor)
        self.num_classes = predictor.cls_score.out_features - 1

    def set_up(self, **said: Any) -> None:
        """Read photos and choose boxes by these settings, not by the network's own."""
        self.settings = self.settings.model_copy(update=said)
        self.image_size = self.settings.image_size
        transform, heads = self.model.transform, self.model.roi_heads
        transform.min_size, transform.max_size = (self.image_size,), self.settings.max_size
        transform.image_mean, transform.image_std = [*self.settings.mean], [*self.settings.std]
        heads.score_thresh = self.settings.score_threshold
        heads.nms_thresh = self.settings.nms_threshold
        heads.detections_per_img = self.settings.detections

    def describe(self) -> dict[str, Any]:
        """The settings."""
        return self.settings.model_dump()

    @classmethod
    def rebuild(cls, num_classes: int, description: dict[str, Any]) -> FinishedFasterRCNN:
        """torchvision's detector of that name, with random weights."""
        settings = FinishedSettings(**description)
        if settings.architecture == CUSTOM:
            raise ConfigError(
                "was made of a detector of your own, which Python alone can give: knownot.load(..., "
                "backbone=detector); commands take its exported file, see docs/finished_detector.md"
            )
        network = _built(settings.architecture, num_classes + 1)
        if settings.fixed_norm_eps is not None:
            fix_norms(network, settings.fixed_norm_eps, settings.fixed_parameters)
        return cls._as_described(network, num_classes, settings)

    @classmethod
    def rebuild_around(
        cls, network: nn.Module, num_classes: int, description: dict[str, Any]
    ) -> FinishedFasterRCNN:
        """The detector of the caller's, whose weights may be any."""
        settings = FinishedSettings(**description)
        if settings.architecture != CUSTOM:
            raise ConfigError(
                f"is torchvision's {settings.architecture}; load it without backbone="
            )
        return cls._as_described(network, num_classes, settings)

    @classmethod
    def _as_described(
        cls, network: nn.Module, num_classes: int, settings: FinishedSettings
    ) -> FinishedFasterRCNN:
        regions = cls(network, settings.architecture, settings.scored_strides)
        if regions.num_classes != num_classes:  # outputs were left out; the weights are to come
            regions._end_in(FastRCNNPredictor(regions.feature_dim, num_classes + 1))
        regions.set_up(**settings.model_dump(exclude_none=True))
        return regions


def finished_faster_rcnn(architecture: str, weights: str) -> FinishedFasterRCNN:
    """One of torchvision's Faster R-CNNs with all its weights, the last layer's too.

    Args:
        architecture: torchvision's name.
        weights: A .safetensors or .pth file; "hub" (or "auto"): torchvision's own, of COCO's categories.

    Raises:
        ConfigError: If there is no such detector, or the weights cannot be had.
        ModelFileError: If a file does not hold such weights.
    """
    if architecture not in NAMES:
        raise ConfigError(
            f"arch: {architecture} is none of the detectors that are taken as they are; say with --arch "
            f"which your weights are of, {', '.join(NAMES)}; any other Faster R-CNN goes by Python, see "
            "docs/finished_detector.md"
        )
    if weights in ("none", "pypi"):
        raise ConfigError(
            f"weights: {weights} is no finished detector; give its weights file, or hub for torchvision's own"
        )
    if weights in ("auto", "hub"):
        try:
            network: FasterRCNN = getattr(detection, architecture)(weights="DEFAULT")
        except OSError as error:
            raise ConfigError(
                f"weights: {architecture} could not be downloaded ({error}); without a network give a "
                "weights file"
            ) from None
        return FinishedFasterRCNN(network, architecture)
    path = Path(weights)
    network = _built(architecture, 2)
    state = read_weights(path, network.state_dict())
    if _PREDICTOR not in state:
        raise ModelFileError(
            f"{path}: lacks {_PREDICTOR}, the last layer; expected the state_dict of torchvision's "
            f"{architecture}"
        )
    network = _built(architecture, len(state[_PREDICTOR]))
    if architecture in SHIPPED and not any("num_batches" in name for name in state):
        # Trained from pretrained weights, with batch norms that were fixed. A file does not hold their
        # eps: torchvision's COCO weights, from which such detectors usually come, have 0 for this one.
        fix_norms(network, 0.0 if architecture == "fasterrcnn_resnet50_fpn" else 1e-5)
    load_weights(network, state, path)
    return FinishedFasterRCNN(network, architecture)


def outputs_of_classes(
    outputs: int,
    classes: Sequence[str],
    ids: Mapping[str, int],
    named: Sequence[str] | None = None,
    whose: str = "the network",
) -> list[int]:
    """Which output of a detector, from 0 without the background, stands for each class.

    Args:
        outputs: How many it has.
        classes: Names of the classes.
        ids: Their ids in COCO annotations, if there are any.
        named: Names of the outputs in their order, where that is said.
        whose: What an error calls the detector.

    Raises:
        ConfigError: If they cannot be brought together.
    """
    if named:
        if sorted(named) != sorted(classes) or len(named) != outputs:
            raise ConfigError(
                f"outputs: expected the {len(classes)} categories, {', '.join(classes)}, in the order of the "
                f"network's {outputs} outputs; got {', '.join(named)}"
            )
        return [named.index(name) for name in classes]
    if outputs == len(classes):
        return [*range(outputs)]
    numbers = [ids.get(name, 0) for name in classes]
    # Labels that are category ids, as torchvision's own detectors of COCO have: ids leave gaps.
    if outputs == max(numbers) and min(numbers) >= 1:
        return [number - 1 for number in numbers]
    raise ConfigError(
        f"weights: {whose} tells {outputs} classes apart, the annotations have {len(classes)}, "
        f"{', '.join(classes)}; each of its classes needs a category"
    )


def _built(architecture: str, columns: int) -> FasterRCNN:
    if architecture not in NAMES:
        raise ConfigError(f"arch: torchvision has no detector {architecture!r} that is known here")
    network: FasterRCNN = getattr(detection, architecture)(
        weights=None, weights_backbone=None, num_classes=columns
    )
    return network


def _refuse_others(network: nn.Module) -> None:
    kind = type(network).__name__
    if not isinstance(network, FasterRCNN):
        raise ConfigError(f"network: expected torchvision's FasterRCNN, got {kind}")
    heads = network.roi_heads
    parts = {
        "roi_heads": (heads, RoIHeads),
        "rpn": (network.rpn, RegionProposalNetwork),
        "roi_heads.box_predictor": (heads.box_predictor, FastRCNNPredictor),
    }
    for name, (part, expected) in parts.items():
        if type(part) is not expected:
            raise ConfigError(
                f"network: its {name} is a {type(part).__name__}; features and scores are read from "
                f"torchvision's {expected.__name__}"
            )
    if heads.has_mask() or heads.has_keypoint():
        raise ConfigError(
            f"network: {kind} has masks or key points, which answers of knownot have no place for"
        )
