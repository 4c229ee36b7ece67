"""From settings to a detector that can be trained, or is finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from knownot.data.detection_folder import DetectionSplits
from knownot.data.detection_set import DetectionSet, Objects
from knownot.errors import ConfigError
from knownot.evaluation.box_matching import match
from knownot.evaluation.detect_set import as_boxes
from knownot.models.detector import UnknownAwareDetector
from knownot.models.finished_faster_rcnn import (
    FinishedFasterRCNN,
    finished_faster_rcnn,
    outputs_of_classes,
)
from knownot.models.model_folder import load
from knownot.models.regions import Detections, RegionModel
from knownot.models.torchvision_faster_rcnn import FasterRCNNRegions, FasterRCNNSettings
from knownot.training.build import refuse_order, source_of
from knownot.training.config import DetectionConfig

# Settings of how a detector is built.
_BUILT = {"arch", "image_size", "box_features", "freeze", "proposals"}


def build_detector(
    config: DetectionConfig, classes: list[str], regions: RegionModel
) -> UnknownAwareDetector:
    """A detector of these regions, whose scores are not fitted."""
    vos = config.vos_settings(len(classes), regions.feature_dim)
    return UnknownAwareDetector(regions, classes, vos=vos, alpha=config.alpha)


def new_regions(config: DetectionConfig, classes: list[str]) -> RegionModel:
    """The Faster R-CNN that the settings describe, not trained."""
    settings = FasterRCNNSettings(
        architecture=config.arch,
        image_size=config.size,
        feature_dim=config.box_features,
        frozen_stages=config.freeze if config.weights != "none" else 0,
        frozen_norm=config.weights != "none",
        proposals=config.proposals,
    )
    return FasterRCNNRegions(len(classes), settings, config.weights)


def finished_regions(
    config: DetectionConfig, splits: DetectionSplits, regions: RegionModel | None
) -> tuple[RegionModel, DetectionSplits]:
    """A finished detector whose outputs are the classes of the annotations, in their order.

    Args:
        config: Settings.
        splits: Photos with boxes.
        regions: The caller's own, in place of torchvision's of `config.arch`.

    Returns:
        The detector, and the photos with boxes; without categories that no object has, if the detector
        has no outputs for them.

    Raises:
        ConfigError: If the detector cannot be had, or its outputs do not fit.
    """
    whose = "the network"
    if regions is None:
        regions = finished_faster_rcnn(config.arch, config.weights)
        whose = source_of(config.weights)
    outputs = regions.num_classes
    used = [n for n in splits.train.classes if splits.train.counts()[n] or splits.val.counts()[n]]
    if outputs == len(used) < len(splits.train.classes):
        train, val = (photos.of_classes(used) for photos in (splits.train, splits.val))
        unused = [name for name in splits.train.classes if name not in used]
        note = f"no object is a {', '.join(unused)}, and the network has no output for it: left out"
        splits = replace(splits, train=train, val=val, warnings=[*splits.warnings, note])
    classes, ids = splits.train.classes, splits.train.category_ids
    order = outputs_of_classes(outputs, classes, ids, config.outputs, whose)
    said = config.model_dump(include={"image_size", "mean", "std"}, exclude_none=True)
    if isinstance(regions, FinishedFasterRCNN):
        regions.set_up(**said)
        if order != [*range(outputs)]:
            regions.keep(order)
        if len(order) < outputs:
            note = f"outputs are category ids; {outputs - len(order)} that no category has are left out"
            splits = replace(splits, warnings=[*splits.warnings, note])
    elif said or order != [*range(outputs)]:
        raise ConfigError(
            f"{', '.join([*said, *(['outputs'] if config.outputs else [])])}: {type(regions).__name__} stays "
            "as it is; set it up before it is given"
        )
    return regions, splits


def refuse_built_otherwise(config: DetectionConfig, regions: RegionModel) -> None:
    """Refuse settings of how a detector is built, where one is given that is built already.

    The image size of a `FinishedFasterRCNN` is set as they say.

    Raises:
        ConfigError: If there are others.
    """
    fields = type(config).model_fields
    said = {
        name: value
        for name in sorted({*_BUILT, "weights"})
        if (value := getattr(config, name)) != fields[name].default
    }
    if isinstance(regions, FinishedFasterRCNN) and "image_size" in said:
        regions.set_up(image_size=said.pop("image_size"))
    if said:
        raise ConfigError(
            f"{', '.join(said)}: {type(regions).__name__} stays as it is; set it up before it is given"
        )


def detector_to_start_from(
    config: DetectionConfig, classes: list[str]
) -> UnknownAwareDetector | None:
    """The detector of `--from`, if there is one.

    Raises:
        ConfigError: If it is a classifier, knows other classes, or was built otherwise than is asked for.
    """
    if config.start_from is None:
        return None
    model = load(config.start_from)
    if not isinstance(model, UnknownAwareDetector):
        raise ConfigError(f"{config.start_from}: is a classifier; --from takes a detector")
    if model.classes != classes:
        raise ConfigError(
            f"{config.start_from}: knows {', '.join(model.classes)}, the photos show "
            f"{', '.join(classes)}; train without --from"
        )
    built = how_built(model)
    if config.weights != "auto":
        raise ConfigError(
            f"weights: {config.weights} was asked for, and {config.start_from} has its own; leave it "
            "out, or train without --from"
        )
    for name in _BUILT & config.model_fields_set:
        if (asked := getattr(config, name)) not in (None, built.get(name)):
            raise ConfigError(
                f"{name}: {asked} was asked for, and {config.start_from} stays as it was built "
                f"({model.regions.architecture}); leave it out, or train without --from"
            )
    return model


def how_built(model: UnknownAwareDetector) -> dict[str, Any]:
    """How a detector was built, by the names of the settings; nothing of other adapters'."""
    regions = model.regions
    if isinstance(regions, FinishedFasterRCNN):
        return {
            "arch": regions.settings.architecture,
            "image_size": regions.image_size,
            "box_features": regions.feature_dim,
        }
    if not isinstance(regions, FasterRCNNRegions):
        return {}
    return {
        "arch": regions.settings.architecture,
        "image_size": regions.settings.image_size,
        "box_features": regions.settings.feature_dim,
        "freeze": regions.settings.frozen_stages,
        "proposals": regions.settings.proposals,
    }


def check_box_order(
    model: UnknownAwareDetector,
    photos: DetectionSet,
    found: Mapping[int, Detections],
    outputs: tuple[str, ...] | None,
) -> None:
    """Refuse a finished detector whose outputs clearly stand for other classes than is said.

    Args:
        model: The detector.
        photos: Training photos with boxes.
        found: Its detections in them, by the number of the photo.
        outputs: Classes as the settings order them, if they do.

    Raises:
        ConfigError: If so; with the order that the photos suggest.
    """
    predicted, labels = [], []
    for number, detections in found.items():
        on = match(_of_one_class(detections), _one_class(photos.objects[number]))
        predicted.append(detections["labels"][on >= 0])
        labels.append(photos.objects[number].labels[on[on >= 0]])
    refuse_order(model.classes, torch.cat(predicted), torch.cat(labels), outputs, "objects found")


def _of_one_class(detections: Detections) -> Any:
    return as_boxes({**detections, "labels": torch.zeros_like(detections["labels"])})


def _one_class(objects: Objects) -> Objects:
    labels: Tensor = torch.zeros_like(objects.labels)
    return replace(objects, labels=labels)
