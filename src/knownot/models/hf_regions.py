"""What the adapters of Hugging Face's detection transformers have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, clip_boxes_to_image

from knownot.errors import ConfigError
from knownot.models.backbones import known_architecture
from knownot.models.regions import Detections, MatchedRegions, RegionModel, Targets

_MOST_LAYERS = 100  # that a stranger's folder may ask for


class TransformersRegions(RegionModel):
    """A detection transformer: each object query is a region, without non-maximum suppression.

    Attributes:
        model: The network, with transformers' configuration as `config` and a `model.backbone`.
        settings: A Pydantic model: how photos are prepared and which boxes are kept.
        matcher: transformers' own, which pairs queries with objects.
    """

    model: Any
    settings: Any
    matcher: Any

    def matched(
        self,
        logits: Tensor,
        pred_boxes: Tensor,
        features: Tensor,
        annotations: list[dict[str, Tensor]],
    ) -> MatchedRegions:
        """The queries that are matched with an object, of all N photos.

        Args:
            logits: Class logits of the queries (N, Q, C).
            pred_boxes: Their boxes (N, Q, 4), centre and size in fractions of a photo.
            features: What the last layer reads of them (N, Q, D).
            annotations: Of each photo, as `annotations_of` has them.
        """
        # The loss matches with a matcher that it makes for itself and drops. To match again costs
        # little beside the network and gives the same pairs; to record its pairs would mean
        # replacing a class inside transformers, or copying its loss.
        pairs = self.matcher({"logits": logits, "pred_boxes": pred_boxes}, annotations)
        photos = torch.cat([torch.full_like(rows, i) for i, (rows, _) in enumerate(pairs)])
        rows = torch.cat([rows for rows, _ in pairs])
        labels = [
            annotation["class_labels"][objects]
            for annotation, (_, objects) in zip(annotations, pairs, strict=True)
        ]
        return MatchedRegions(features[photos, rows], logits[photos, rows], torch.cat(labels))

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters of the backbone, and of transformer and heads; frozen ones left out."""
        inside = list(self.model.model.backbone.parameters())
        known = {id(p) for p in inside}
        rest = [p for p in self.parameters() if id(p) not in known]
        return [p for p in inside if p.requires_grad], [p for p in rest if p.requires_grad]

    def describe(self) -> dict[str, Any]:
        """The settings, and transformers' configuration as `network`."""
        network = self.model.config.to_dict()
        del network["_name_or_path"]  # where the maker's machine had it
        return {**self.settings.model_dump(), "network": network}


def network_of(config_kind: Any, model_kind: Any, network: dict[str, Any]) -> Any:
    """A network of transformers with random weights, of a configuration that may be a stranger's.

    Raises:
        ConfigError: If it cannot be built.
    """
    backbone = network.get("backbone_config")
    if not isinstance(backbone, dict):
        raise ConfigError("network: expected a backbone_config")
    if name := backbone.get("backbone"):
        known_architecture(str(name))
    layers = [network.get(f"{part}_layers", 0) for part in ("encoder", "decoder")]
    if not all(isinstance(number, int) and 0 <= number <= _MOST_LAYERS for number in layers):
        raise ConfigError(f"network: expected at most {_MOST_LAYERS} layers, got {layers}")
    try:
        return model_kind(config_kind.from_dict(network))
    except Exception as error:  # transformers raises many kinds
        raise ConfigError(f"network: transformers cannot build it ({error})") from None


def backbone_name(config: Any) -> str:
    """A network's backbone in words."""
    backbone = config.backbone_config
    return str(getattr(backbone, "backbone", None) or backbone.model_type)


def annotations_of(images: list[Tensor], targets: Targets) -> list[dict[str, Tensor]]:
    """Annotated objects as transformers' losses take them: `boxes` and `class_labels` of each photo.

    Boxes are centre and size in fractions of the photo as it was, like those that
    `post_process_object_detection` decodes. The processor's own conversion is not used: in a batch of
    several sizes it gives fractions of the padded photo, which are other boxes.
    """
    found = []
    for image, target in zip(images, targets, strict=True):
        height, width = image.shape[-2:]
        centred = box_convert(target["boxes"], "xyxy", "cxcywh")
        boxes = centred / centred.new_tensor([width, height, width, height])
        found.append({"boxes": boxes, "class_labels": target["labels"]})
    return found


def detections_of(
    outputs: Any, photo: int, image: Tensor, rows: Tensor, boxes: Tensor, **columns: Tensor
) -> Detections:
    """What is found in one photo of a batch.

    Args:
        outputs: transformers' of the batch.
        photo: Which photo of it.
        image: That photo (3, H, W).
        rows: Queries (B,), int64.
        boxes: Their boxes (B, 4), corners in the photo's pixels, which may reach beyond it.
        columns: More of them, `labels` (B,) and `scores` (B,).
    """
    return {
        "boxes": clip_boxes_to_image(boxes, (image.shape[-2], image.shape[-1])),
        **columns,
        "logits": outputs.logits[photo, rows],
        "features": outputs.last_hidden_state[photo, rows],
    }
