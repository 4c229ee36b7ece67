"""Photos with boxes, augmented, as a detector's training reads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from knownot.data.detection_set import DetectionSet
from knownot.data.photo import open_photo
from knownot.errors import DataError, TrainingError

Sample = tuple[Tensor, dict[str, Tensor]]


class AugmentedScenes(Dataset[Sample]):
    """Photos for training a detector: mirrored, coloured, zoomed in or out, boxes along with them.

    Ignored objects (crowds, difficult ones) are left out.

    Args:
        photos: The photos.
    """

    def __init__(self, photos: DetectionSet) -> None:
        self.photos = photos
        self.augment = v2.Compose(
            [
                v2.RandomPhotometricDistort(p=0.5),
                # Scale jitter: objects up to twice as small, or as large as a crop makes them.
                v2.RandomChoice(
                    [
                        v2.Identity(),
                        v2.RandomZoomOut(fill=114, side_range=(1.0, 2.0), p=1.0),
                        v2.RandomIoUCrop(min_scale=0.5),
                    ]
                ),
                v2.RandomHorizontalFlip(),
                v2.ClampBoundingBoxes(),
                v2.SanitizeBoundingBoxes(),
            ]
        )

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, drawn: tuple[int, int]) -> Sample:
        index, seed = drawn
        try:
            image = v2.functional.pil_to_tensor(open_photo(self.photos.paths[index]))
        except DataError as error:
            # Photos are checked before training: this one changed since.
            raise TrainingError(f"{error} (it was readable when training started)") from None
        objects = self.photos.objects[index]
        learned = ~objects.ignore
        boxes = tv_tensors.BoundingBoxes(
            objects.boxes[learned], format="XYXY", canvas_size=tuple(image.shape[-2:])
        )
        target: dict[str, Any] = {"boxes": boxes, "labels": objects.labels[learned]}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if len(boxes):
                image, target = self.augment(tv_tensors.Image(image), target)
        plain = {"boxes": torch.as_tensor(target["boxes"]).float(), "labels": target["labels"]}
        return image.as_subclass(Tensor), {k: v.as_subclass(Tensor) for k, v in plain.items()}


class PlainScenes(Dataset[tuple[Tensor, int]]):
    """Photos as they are, with their index, for validation during training."""

    def __init__(self, photos: DetectionSet) -> None:
        self.photos = photos

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return v2.functional.pil_to_tensor(open_photo(self.photos.paths[index])), index


def as_lists(samples: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """Photos of different sizes do not stack: a batch is two lists."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)
