"""torchvision's Faster R-CNN as a `RegionModel`.

Penultimate feature: output of the box head. What the feature scores read: the backbone's own maps,
averaged over the box, as a classifier's read its backbone's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops.poolers import initLevelMapper

from knownot.data.thin import refuse_thin
from knownot.errors import ConfigError
from knownot.models.modes import evaluating
from knownot.models.regions import Detections, MatchedRegions, RegionModel, Targets
from knownot.models.remembering_parts import RememberingProposals, RememberingRoIHeads, in_order

_SIDE = 256


class AdaptedFasterRCNN(RegionModel):
    """A Faster R-CNN of torchvision's that hands out what its boxes came from.

    Args:
        model: The detector; two of its parts are replaced, by ones that do the same.
        strides: Feature scores read the backbone's maps of these strides; none: the box features.

    Raises:
        ConfigError: If the backbone has none of these maps.
    """

    background_index = 0

    def __init__(self, model: FasterRCNN, strides: Sequence[int]) -> None:
        super().__init__()
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


class _Alone:
    """A lock of a model's own: a copy of the model, or a model read from a file, gets another."""

    def __init__(self) -> None:
        self.lock = Lock()

    def __reduce__(self) -> tuple[type[_Alone], tuple[()]]:
        return _Alone, ()


def body_of(model: FasterRCNN) -> nn.Module:
    """The backbone without its pyramid; all of it where it has none."""
    body: nn.Module = getattr(model.backbone, "body", model.backbone)
    return body


@torch.no_grad()
def _maps_of_a_square(model: FasterRCNN, network: nn.Module) -> Any:
    """Maps that a network within the model gives for a square of `_SIDE` pixels."""
    device = next(model.parameters()).device  # also where a default device is set
    try:
        with evaluating(model):
            return network(torch.zeros(1, 3, _SIDE, _SIDE, device=device))
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"the backbone makes no maps of {_SIDE} pixels ({reason}); a detector needs a network that "
            "takes photos of any size, such as tf_efficientnet_lite0 or resnet50"
        ) from error


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
    maps = in_order(_maps_of_a_square(model, body_of(model)))
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
    maps = in_order(_maps_of_a_square(model, body))
    return sum(maps[level].shape[1] for level in levels)
