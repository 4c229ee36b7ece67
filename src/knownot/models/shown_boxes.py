"""Which boxes of a photo are shown: unknown objects once, and those that no class claims."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import box_area, box_iou, nms

SAME_OBJECT = 0.5
# A proposal on a claimed object's part, or on the object and its surroundings, is claimed too.
_CLAIMED_IOU = 0.3
_CLAIMED_SHARE = 0.5
_SAME_PROPOSAL = 0.3


def without_repeats(boxes: Tensor, scores: Tensor, unknown: Tensor) -> Tensor:
    """Leave out unknown boxes on an object that a more certain box shows already.

    A detector suppresses repeated boxes of one class. An unknown object is often taken for several
    classes, with a box each, and would be called unknown as many times.

    Args:
        boxes: Corners (B, 4) in pixels.
        scores: Detection scores (B,).
        unknown: Whether each is called unknown (B,), bool.

    Returns:
        Which to show (B,), bool: every known one, and the unknown ones that remain.
    """
    kept = ~unknown
    kept[nms(boxes, scores, SAME_OBJECT)] = True
    return kept


def unclaimed(proposals: Tensor, objectness: Tensor, boxes: Tensor) -> Tensor:
    """Region proposals that lie on none of the detector's boxes, without repeats.

    Args:
        proposals: Corners (P, 4) in pixels.
        objectness: How sure the detector is of an object of whatever class (P,).
        boxes: Corners (B, 4) of the boxes that count, known and unknown.

    Returns:
        Their indices (M,), highest objectness first.
    """
    kept: Tensor = nms(proposals, objectness, _SAME_PROPOSAL)
    if not len(boxes) or not len(kept):
        return kept
    iou = box_iou(proposals[kept], boxes)
    area = box_area(proposals[kept]).unsqueeze(1)
    # iou = i / (a + b - i), so that the share i / a of the proposal follows from it.
    share = iou / (1 + iou) * (area + box_area(boxes)) / area.clamp(min=1e-6)
    claimed = (iou >= _CLAIMED_IOU) | (share >= _CLAIMED_SHARE)
    left: Tensor = kept[~claimed.any(1)]
    return left


def highest_unclaimed(proposals: Tensor, objectness: Tensor, boxes: Tensor) -> float:
    """The largest objectness of a photo's unclaimed proposals, 0 if there are none."""
    left = unclaimed(proposals, objectness, boxes)
    return float(objectness[left[0]]) if len(left) else 0.0
