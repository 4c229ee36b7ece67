"""Hugging Face's DETR as a `RegionModel`.

transformers' own code prepares photos, matches queries with objects, computes losses and decodes
boxes. Penultimate feature: the decoder's `last_hidden_state` of an object query.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

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
    from transformers import DetrForObjectDetection


class DetrSettings(BaseModel):
    """How photos are prepared for a DETR and which of its boxes are kept; sizes are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: int = Field(800, ge=32, le=4096, description="shorter side in pixels")
    max_size: int = Field(1333, ge=32, le=8192, description="longer side at most; it prevails")
    score_threshold: float = Field(0.05, ge=0, lt=1)
    detections: int = Field(100, ge=1, le=100_000)


class _SavedDetr(DetrSettings):
    network: dict[str, Any]  # transformers' configuration


class DetrRegions(TransformersRegions):
    """A DETR of transformers: each object query is a region, without non-maximum suppression.

    Args:
        model: A detector with K classes and, last, "no object": from a configuration or
            `from_pretrained(name, num_labels=K, ignore_mismatched_sizes=True)`.
        settings: Sizes and limits.

    Raises:
        MissingExtraError: If transformers is not installed.
        ConfigError: If the model has no "no object" logit, as the relatives with a focal loss.

    Reference:
        Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020.
    """

    def __init__(self, model: DetrForObjectDetection, settings: DetrSettings | None = None) -> None:
        super().__init__()
        processor, matcher = _from_transformers()
        config: Any = model.config
        head = getattr(model, "class_labels_classifier", None)
        columns = getattr(head, "out_features", None)
        if columns != config.num_labels + 1:
            raise ConfigError(
                f"model: expected a linear class_labels_classifier of {config.num_labels} + 1 "
                f"logits, as DetrForObjectDetection has, got {type(model).__name__} with {columns}"
            )
        self.model = model
        self.settings = settings or DetrSettings()
        self.num_classes = config.num_labels
        self.feature_dim = self.scored_dim = config.d_model
        self.background_index = config.num_labels
        self.architecture = f"DETR on {backbone_name(config)}"
        self.image_size = self.settings.image_size
        # Photos come in [0, 1]; `_batch` resizes them. Mean and deviation are ImageNet's.
        self.processor = processor(do_resize=False, do_rescale=False)
        self.matcher = matcher(config.class_cost, config.bbox_cost, config.giou_cost)

    def class_head(self, features: Tensor) -> Tensor:
        """Class logits (M, K + 1), "no object" last, of query features (M, D)."""
        logits: Tensor = self.model.class_labels_classifier(features)
        return logits

    def losses(
        self, images: list[Tensor], targets: Targets
    ) -> tuple[dict[str, Tensor], MatchedRegions]:
        """DETR's losses with their weights, and the queries that were matched with an object.

        Their sum is the model's own loss. An object is left out where a photo has more objects
        than the model has queries.
        """
        self.train()
        annotations = annotations_of(images, targets)
        outputs = self.model(**self._batch(images), labels=annotations)
        config: Any = self.model.config
        weights = {
            "loss_ce": 1.0,
            "loss_bbox": config.bbox_loss_coefficient,
            "loss_giou": config.giou_loss_coefficient,
        }
        losses = {}
        for name, value in outputs.loss_dict.items():
            kind = name.rstrip("_0123456789")  # "loss_ce_0" is that of the first decoder layer
            if kind in weights:  # the cardinality error is no loss
                losses[name] = weights[kind] * value
        of_queries = outputs.logits, outputs.pred_boxes, outputs.last_hidden_state
        return losses, self.matched(*of_queries, annotations)

    def detect(self, images: list[Tensor], proposals: bool = False) -> list[Detections]:
        """The most certain queries, each with its most likely class, logits and feature."""
        self.eval()
        outputs = self.model(**self._batch(images))
        # No score is below 0: every query comes back, in order, so that rows are queries.
        decoded = self.processor.post_process_object_detection(
            outputs, threshold=-1.0, target_sizes=[tuple(i.shape[-2:]) for i in images]
        )
        found = []
        for i, (image, rows) in enumerate(zip(images, decoded, strict=True)):
            order = rows["scores"].argsort(descending=True, stable=True)
            certain = order[rows["scores"][order] > self.settings.score_threshold]
            kept = certain[: self.settings.detections]
            told = {name: rows[name][kept] for name in ("boxes", "labels", "scores")}
            found.append(detections_of(outputs, i, image, kept, **told))
        return found

    @classmethod
    def rebuild(cls, num_classes: int, description: dict[str, Any]) -> DetrRegions:
        """A DETR of this configuration, with random weights."""
        _from_transformers()
        from transformers import DetrConfig, DetrForObjectDetection

        saved = _SavedDetr(**description)
        model = network_of(DetrConfig, DetrForObjectDetection, saved.network)
        return cls(model, DetrSettings(**saved.model_dump(exclude={"network"})))

    def _batch(self, images: list[Tensor]) -> dict[str, Tensor]:
        """`pixel_values` (N, 3, H, W), padded with 0, and `pixel_mask` (N, H, W), 0 there."""
        inputs = self.processor(
            [self._resized(image) for image in images],
            input_data_format="channels_first",  # one 3 pixels wide looks like either
            return_tensors="pt",
        )
        pixels = inputs["pixel_values"].to(self.model.dtype)
        return {"pixel_values": pixels, "pixel_mask": inputs["pixel_mask"]}

    def _resized(self, image: Tensor) -> Tensor:
        from transformers.image_transforms import get_size_with_aspect_ratio
        from transformers.image_utils import SizeDict

        size, most = self.settings.image_size, self.settings.max_size
        height, width = get_size_with_aspect_ratio(image.shape[-2:], size, most)
        # At least 1: the sides of a photo 1 pixel high and 8000 wide would be 0 and 1333.
        to = SizeDict(height=max(1, height), width=max(1, width))
        resized: Tensor = self.processor.resize(image, to)
        return resized


def _from_transformers() -> tuple[Any, Any]:
    """transformers' image processor and matcher of DETR; loaded when one is made."""
    try:
        from transformers import DetrImageProcessor
        from transformers.loss.loss_for_object_detection import HungarianMatcher
    except ImportError as error:
        raise MissingExtraError("transformers", "hf", "a DETR detector") from error
    return DetrImageProcessor, HungarianMatcher
