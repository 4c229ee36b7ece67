"""Which detection found which object: the boxes of one photo, and COCO's greedy matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from knownot.data.detection_set import Objects

UNMATCHED = -1
ON_IGNORED = -2


@dataclass(frozen=True)
class Boxes:
    """The detections of one photo, on the CPU.

    Attributes:
        boxes: Corners (x1, y1, x2, y2) in pixels of the upright photo (B, 4), float32.
        labels: Most likely of the K known classes of each, in [0, K), (B,), int64; given for boxes
            called unknown as well.
        scores: Detection score of each (B,), in [0, 1]; higher is surer.
        unknown: Whether the model calls it unknown (B,), bool.

    Raises:
        ValueError: If the shapes do not agree, or a box or a score is not finite.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    unknown: Tensor

    def __post_init__(self) -> None:
        size = len(self.labels)
        expected = {"boxes": (size, 4), "labels": (size,), "scores": (size,), "unknown": (size,)}
        for name, shape in expected.items():
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise ValueError(f"{name}: expected shape {shape} for {size} labels, got {got}")
        for name in ("boxes", "scores"):
            finite = getattr(self, name).isfinite()
            if not finite.all():
                raise ValueError(f"{name}: {int((~finite).sum())} values are NaN or infinite")

    @classmethod
    def none(cls) -> Boxes:
        """A photo in which nothing was found."""
        empty = torch.zeros(0)
        return cls(empty.reshape(0, 4), empty.long(), empty, empty.bool())

    def select(self, which: Tensor) -> Boxes:
        """The boxes at `which`, indices or a mask (B,)."""
        return Boxes(self.boxes[which], self.labels[which], self.scores[which], self.unknown[which])

    def __len__(self) -> int:
        return len(self.labels)


def match(detections: Boxes, truth: Objects, iou: float = 0.5) -> Tensor:
    """Give each object of a photo to at most one detection of its class, as COCO does.

    Detections choose in order of descending score, equal scores in the order given. Each takes the
    object of its own class that no better one took and that it overlaps most, if their intersection
    over union is at least `iou`; of objects overlapped equally, the last. A detection left without
    an object but with a share of at least `iou` of its own area on an ignored object of its class
    is neither right nor wrong; an ignored object takes any number of them.

    `detections.unknown` plays no part, and an object of no known class (label -1) is never matched:
    no detection has its label.

    Args:
        detections: B detections of one photo.
        truth: Its annotated objects.
        iou: Smallest overlap, a fraction in (0, 1].

    Returns:
        Index of each detection's object in `truth` (B,), int64; -1 for none, -2 for a detection
        that lies on an ignored object only.

    Raises:
        ValueError: If `iou` is outside (0, 1].

    Example:
        >>> square = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
        >>> twice = Boxes(square.repeat(2, 1), torch.zeros(2).long(), torch.tensor([0.5, 0.9]),
        ...               torch.zeros(2).bool())
        >>> match(twice, Objects(square, torch.tensor([0]), torch.tensor([False])))
        tensor([-1,  0])

    Reference:
        Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; `evaluateImg` of
        pycocotools.
    """
    if not 0 < iou <= 1:
        raise ValueError(f"iou: expected a fraction in (0, 1], got {iou}; 50 % is written 0.5")
    same = detections.labels[:, None] == truth.labels
    found, wanted = detections.boxes.double(), truth.boxes.double()
    on_ignored = _share_inside(found, wanted[truth.ignore]) >= iou
    on_ignored = (on_ignored & same[:, truth.ignore]).any(1)
    matched = torch.full((len(detections),), UNMATCHED).where(~on_ignored, ON_IGNORED)

    counted = torch.nonzero(~truth.ignore).flatten()
    # nan: two boxes without area have an overlap of 0 / 0.
    overlap = box_iou(found, wanted[counted]).nan_to_num(0.0).where(same[:, counted], 0.0)
    # Turned around: argmax takes the first of equal values, COCO's loop the last.
    free = overlap.flip(1).numpy()
    reachable = (overlap >= iou).any(1)
    for d in np.argsort(-detections.scores.numpy(), kind="stable"):
        if not reachable[d]:
            continue
        best = free[d].argmax()
        if free[d, best] >= iou:
            matched[d] = counted[len(counted) - 1 - best]
            free[:, best] = 0.0
    return matched


def check_photos(detections: Sequence[Boxes], truth: Sequence[Objects], num_classes: int) -> None:
    """Refuse detections and ground truth that do not belong together.

    Raises:
        ValueError: If they are of different numbers of photos, or a label is outside [0, K); -1 is
            allowed among the objects.
    """
    if len(detections) != len(truth):
        raise ValueError(
            f"truth: expected one entry for each of the {len(detections)} photos of `detections`, "
            f"got {len(truth)}"
        )
    _check_labels("detections", [photo.labels for photo in detections], 0, num_classes)
    _check_labels("truth", [photo.labels for photo in truth], -1, num_classes)


def _check_labels(name: str, photos: list[Tensor], lowest: int, num_classes: int) -> None:
    for i, labels in enumerate(photos):
        wrong = labels[(labels < lowest) | (labels >= num_classes)]
        if len(wrong):
            raise ValueError(
                f"{name}: expected labels from {lowest} to {num_classes - 1}, got "
                f"{int(wrong[0])} in photo {i}"
            )


def on_known_object(boxes: Tensor, truth: Objects, iou: float = 0.5) -> Tensor:
    """Whether boxes (B, 4) lie on an annotated object of a known class, whatever they are called, (B,).

    Any number of boxes may lie on one object; on an ignored one those do that have a share of at
    least `iou` of their own area there.
    """
    known = truth.labels >= 0
    found, wanted = boxes.double(), truth.boxes.double()
    overlap = box_iou(found, wanted[known & ~truth.ignore]) >= iou
    inside = _share_inside(found, wanted[known & truth.ignore]) >= iou
    return torch.cat([overlap, inside], 1).any(1)


def _share_inside(boxes: Tensor, regions: Tensor) -> Tensor:
    """Share of each box's area inside each region, (B, R): COCO's overlap with a crowd."""
    upper_left = torch.maximum(boxes[:, None, :2], regions[:, :2])
    lower_right = torch.minimum(boxes[:, None, 2:], regions[:, 2:])
    inside = (lower_right - upper_left).clamp(min=0).prod(2)
    # nan: a box without area.
    share: Tensor = (inside / box_area(boxes)[:, None]).nan_to_num(0.0)
    return share
