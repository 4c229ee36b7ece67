"""Photos with boxes: what every reader of detection data returns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from knownot.data.image_folder import names_digest


@dataclass(frozen=True)
class Objects:
    """The annotated objects of one photo.

    Attributes:
        boxes: Corners (x1, y1, x2, y2) in pixels of the upright photo (B, 4), float32.
        labels: Index of each object's class (B,), int64.
        ignore: Whether an object is neither to be learned nor to be counted (B,), bool: crowds
            (COCO) and difficult objects (VOC).
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor

    @classmethod
    def none(cls) -> Objects:
        """A photo without objects."""
        empty = torch.zeros(0)
        return cls(empty.reshape(0, 4), empty.long(), empty.bool())

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DetectionSet:
    """Photos with boxes.

    Attributes:
        paths: Files.
        objects: What is annotated in each; photos without objects are kept.
        classes: Class names in order.
        problems: What was wrong with the annotations and left out, one sentence each that names
            the file.
        category_ids: Id of each class in COCO annotations, the smallest of several; empty for others.
    """

    paths: list[Path]
    objects: list[Objects]
    classes: list[str]
    problems: list[str] = field(default_factory=list)
    category_ids: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def counts(self) -> dict[str, int]:
        """Number of objects of each class, ignored ones left out."""
        kept = [objects.labels[~objects.ignore] for objects in self.objects]
        counts = torch.bincount(
            torch.cat([*kept, torch.zeros(0).long()]), minlength=len(self.classes)
        )
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def digest(self, root: Path) -> str:
        """Sixteen digits that other photos or objects, but not the same under another folder, make differ."""
        found = hashlib.sha256(names_digest(self.paths, root).encode())
        for objects in self.objects:
            for tensor in (objects.boxes, objects.labels, objects.ignore):
                found.update(tensor.numpy().tobytes())
        return found.hexdigest()[:16]

    def subset(self, indices: Iterable[int]) -> DetectionSet:
        """The photos at `indices`."""
        chosen = list(indices)
        return DetectionSet(
            [self.paths[i] for i in chosen],
            [self.objects[i] for i in chosen],
            self.classes,
            category_ids=self.category_ids,
        )

    def of_classes(self, classes: Sequence[str]) -> DetectionSet:
        """The same photos with these classes alone, which are those of all objects."""
        places = {name: place for place, name in enumerate(classes)}
        numbers = torch.tensor([places.get(name, -1) for name in self.classes])
        objects = [replace(each, labels=numbers[each.labels]) for each in self.objects]
        return replace(self, objects=objects, classes=list(classes))
