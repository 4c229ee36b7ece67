"""Hugging Face's RT-DETR and RT-DETRv2 as a `RegionModel`.

transformers' own code prepares photos, matches queries with objects and computes losses. Penultimate
feature: the decoder's `last_hidden_state` of an object query.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torchvision.ops import box_convert

from knownot.errors import ConfigError, MissingExtraError
from knownot.models.hf_regions import (
    TransformersRegions,
    annotations_of,
    backbone_name,
    detections_of,
    network_of,
)
from knownot.models.regions import Detections, MatchedRegions, Targets

if TYPE_CHECKING:
    from transformers import RTDetrForObjectDetection, RTDetrV2ForObjectDetection

_NAMES = {"rt_detr": "RT-DETR", "rt_detr_v2": "RT-DETRv2"}


class RTDetrSettings(BaseModel):
    """How photos are prepared for an RT-DETR and which of its boxes are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: int = Field(640, ge=32, le=4096, multiple_of=32, description="sides of the square")
    score_threshold: float = Field(0.05, ge=0, lt=1)
    detections: int = Field(100, ge=1, le=100_000)


class _SavedRTDetr(RTDetrSettings):
    network: dict[str, Any]  # transformers' configuration


class RTDetrRegions(TransformersRegions):
    """An RT-DETR of transformers: each object query is a region, without non-maximum suppression.

    It has a sigmoid for each of K classes and no "no object": the energy is over all its logits. Photos
    are squeezed into a square.

    Args:
        model: A detector with K classes: from a configuration or
            `from_pretrained(name, num_labels=K, ignore_mismatched_sizes=True)`.
        settings: Sizes and limits; a model whose anchors are of one image size takes that one.

    Raises:
        MissingExtraError: If transformers is not installed.
        ConfigError: If it is another kind of model, or made for an image size that is not the settings'.

    Reference:
        Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection", CVPR 2024.
    """

    background_index = None

    def __init__(
        self,
        model: RTDetrForObjectDetection | RTDetrV2ForObjectDetection,
        settings: RTDetrSettings | None = None,
    ) -> None:
        super().__init__()
        processor, matcher = _from_transformers()
        config: Any = getattr(model, "config", None)
        kind = _NAMES.get(getattr(config, "model_type", ""))
        if kind is None or not hasattr(model, "loss_function") or not hasattr(model, "model"):
            raise ConfigError(
                "model: expected RTDetrForObjectDetection or RTDetrV2ForObjectDetection, got "
                f"{type(model).__name__}"
            )
        self.model = model
        self.settings = settings or RTDetrSettings()
        self.num_classes = config.num_labels
        self.feature_dim = self.scored_dim = config.d_model
        self.architecture = f"{kind} on {backbone_name(config)}"
        self.image_size = self.settings.image_size
        fixed = config.anchor_image_size
        if fixed is not None and {self.image_size} != set(_sides(fixed)):
            raise ConfigError(
                f"image_size: the model's anchors are of {fixed}, the settings say {self.image_size}"
            )
        size = {"height": self.image_size, "width": self.image_size}
        self.processor = processor(size=size, do_rescale=False)  # photos come in [0, 1]
        self.matcher = matcher(config)

    def class_head(self, features: Tensor) -> Tensor:
        """Class logits (M, K) of query features (M, D)."""
        logits: Tensor = self.model.model.decoder.class_embed[-1](features)
        return logits

    def losses(
        self, images: list[Tensor], targets: Targets
    ) -> tuple[dict[str, Tensor], MatchedRegions]:
        """RT-DETR's losses with their weights, and the queries that were matched with an object.

        Their sum is the model's own loss, that of its denoising queries included. An object is left
        out where a photo has more objects than the model has queries.
        """
        self.train()
        annotations = annotations_of(images, targets)
        outputs = self.model(self._batch(images), labels=annotations)
        # Denoising queries, which were told an object, come first.
        own = slice(-self.model.config.num_queries, None)
        of_queries = outputs.logits, outputs.pred_boxes, outputs.last_hidden_state
        logits, boxes, features = (values[:, own] for values in of_queries)
        return outputs.loss_dict, self.matched(logits, boxes, features, annotations)

    def detect(self, images: list[Tensor], proposals: bool = False) -> list[Detections]:
        """The most certain pairs of a query and a class, each with the query's logits and feature."""
        self.eval()
        outputs = self.model(self._batch(images))
        found = []
        for i, image in enumerate(images):
            height, width = image.shape[-2:]
            certain = outputs.logits[i].sigmoid().flatten()
            # As transformers decodes them, which does not say which query a box is of.
            scores, places = certain.topk(min(self.settings.detections, len(certain)))
            places = places[scores > self.settings.score_threshold]
            rows, labels = places // self.num_classes, places % self.num_classes
            boxes = box_convert(outputs.pred_boxes[i, rows], "cxcywh", "xyxy")
            boxes = boxes * boxes.new_tensor([width, height, width, height])
            told = {"labels": labels, "scores": certain[places]}
            found.append(detections_of(outputs, i, image, rows, boxes, **told))
        return found

    @classmethod
    def rebuild(cls, num_classes: int, description: dict[str, Any]) -> RTDetrRegions:
        """An RT-DETR of this configuration, with random weights."""
        _from_transformers()
        import transformers

        saved = _SavedRTDetr(**description)
        kinds = {
            "rt_detr": (transformers.RTDetrConfig, transformers.RTDetrForObjectDetection),
            "rt_detr_v2": (transformers.RTDetrV2Config, transformers.RTDetrV2ForObjectDetection),
        }
        kind = saved.network.get("model_type")
        if kind not in kinds:
            raise ConfigError(f"network: expected model_type {' or '.join(kinds)}, got {kind!r}")
        model = network_of(*kinds[kind], saved.network)
        return cls(model, RTDetrSettings(**saved.model_dump(exclude={"network"})))

    def _batch(self, images: list[Tensor]) -> Tensor:
        """Photos as squares (N, 3, S, S)."""
        inputs = self.processor(
            images,
            input_data_format="channels_first",  # one 3 pixels wide looks like either
            return_tensors="pt",
        )
        pixels: Tensor = inputs["pixel_values"].to(self.model.dtype)
        return pixels


def _sides(size: Any) -> list[int]:
    return [size] if isinstance(size, int) else list(size)


def _from_transformers() -> tuple[Any, Any]:
    """transformers' image processor and matcher of RT-DETR; loaded when one is made."""
    try:
        from transformers import RTDetrImageProcessor
        from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher
    except ImportError as error:
        raise MissingExtraError("transformers", "hf", "an RT-DETR detector") from error
    return RTDetrImageProcessor, RTDetrHungarianMatcher
