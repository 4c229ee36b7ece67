"""The sets that detectors are measured on, split so that no photo both calibrates and measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from knownot.data.detection_set import DetectionSet
from knownot.evaluation.detect_set import detect_photos, finds_object
from knownot.models.detector import UnknownAwareDetector
from knownot.models.regions import Detections

OOD = {
    "fod_a": ("ood_fod_a", "ood_coco"),
    "natural5": ("ood_coco", "ood_fod_a"),
    "bccd": ("left_out", "ood_coco"),
}
# A class whose objects are in the photos, unlabelled: it is learnt as background. "left_out" is the
# test set with its boxes.
LEFT_OUT = {"bccd": "Platelets"}


def found_in(model: UnknownAwareDetector, photos: DetectionSet) -> list[Detections]:
    """The boxes of each annotated photo; "right" says which found an object (B,), bool."""
    return [
        {**boxes, "right": finds_object(boxes, photos.objects[i])}
        for i, boxes in detect_photos(model, photos.paths, {})
    ]


def halve(source: Path, target: Path) -> Path:
    """A copy of a COCO set whose validation photos are split into `val` and `test`."""
    whole = read_annotations(source, "val")
    order = torch.randperm(len(whole["images"]), generator=torch.Generator().manual_seed(0))
    middle = len(order) // 2
    parts = {"train": read_annotations(source, "train")}
    for split, indices in (("val", order[:middle]), ("test", order[middle:])):
        images = [whole["images"][i] for i in sorted(indices.tolist())]
        ids = {image["id"] for image in images}
        boxes = [a for a in whole["annotations"] if a["image_id"] in ids]
        parts[split] = {**whole, "images": images, "annotations": boxes}
    return write_coco(target, source / "images", parts)


def hide_class(source: Path, target: Path) -> Path:
    """A copy of a COCO set without the labels of one class; beside it `left_out`, with them."""
    parts = {}
    for split in ("train", "val", "test"):
        whole = read_annotations(source, split)
        known = [c for c in whole["categories"] if c["name"] != LEFT_OUT[source.name]]
        ids = {category["id"] for category in known}
        boxes = [a for a in whole["annotations"] if a["category_id"] in ids]
        parts[split] = {**whole, "categories": known, "annotations": boxes}
    write_coco(target.parent / "left_out", source / "images", {"ood": whole})
    return write_coco(target, source / "images", parts)


def read_annotations(source: Path, split: str) -> dict[str, Any]:
    annotations: dict[str, Any] = json.loads((source / f"annotations/{split}.json").read_text())
    return annotations


def write_coco(target: Path, photos: Path, parts: dict[str, dict[str, Any]]) -> Path:
    if not target.exists():
        (target / "annotations").mkdir(parents=True)
        (target / "images").symlink_to(photos.resolve())
        for split, part in parts.items():
            (target / "annotations" / f"{split}.json").write_text(json.dumps(part))
    return target
