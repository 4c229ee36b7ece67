"""How well known objects are found: mean average precision, and the paper's box threshold.

Both read the curves of the COCO evaluator (faster-coco-eval, through torchmetrics). At equal
scores it takes the detections in the order given, so that ties alone make a result depend on the
order of the photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from knownot.data.detection_set import Objects
from knownot.evaluation.box_matching import Boxes, check_photos

# torchmetrics' own defaults are these in single precision, where 0.6 is 0.60000002: an overlap or
# a recall of exactly 0.6 would not reach it, as it does in COCO's evaluation.
IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
RECALLS = np.linspace(0.0, 1.0, 101)


def mean_average_precision(
    detections: Sequence[Boxes], truth: Sequence[Objects], classes: Sequence[str]
) -> dict[str, Any]:
    """COCO's mean average precision over the known classes.

    All detections count under their class, whether called unknown or not: the measure is of the
    detector alone, 100 boxes a photo. Objects of no known class (label -1) are left out; ignored
    objects are handled as COCO's crowds.

    Args:
        detections: Detections of each photo.
        truth: Annotated objects of the same photos.
        classes: Names of the K known classes, in order.

    Returns:
        "map", the mean over IoU 0.5, 0.55, …, 0.95 and over classes, "map_50", the one at IoU 0.5,
        and "per_class", "map" of each class by name. Fractions in [0, 1]; None where there is no
        object to find. Means are over the classes that have one.

    Raises:
        ValueError: If `detections` and `truth` are of different numbers of photos, or a label is
            outside [0, K).

    Reference:
        Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014.
    """
    check_photos(detections, truth, len(classes))
    precision, _ = coco_curves(detections, truth, len(classes))
    return {
        "map": _mean(precision),
        "map_50": _mean(precision[0]),
        "per_class": {name: _mean(precision[:, :, k]) for k, name in enumerate(classes)},
    }


def best_f1_threshold(
    detections: Sequence[Boxes], truth: Sequence[Objects], num_classes: int
) -> float:
    """Detection score from which on the paper's protocol counts a box.

    COCO's evaluation gives, for each IoU of 0.5, 0.55, …, 0.95 and each class, the interpolated
    precision at recalls r of 0, 0.01, …, 1 and the detection score at which each is reached, both
    0 where it is not. Averaged over the ten IoUs they are p(r) and s(r). Each class gives s(r) at
    the r with the largest F1 = 2 p r / (p + r), the smallest such r; the threshold is the mean of
    these over classes. As s(r) is averaged with zeros, it lies below the score at IoU 0.5.

    Left out of the mean are classes without ground truth, which the authors' code would count as
    −1, and classes without any right detection, for which it takes the first score or drops them.
    Ignored and unknown objects are handled as in `mean_average_precision`, and whether a box is
    called unknown plays no part.

    Args:
        detections: Detections of each ID validation photo, from a low score on.
        truth: Annotated objects of the same photos.
        num_classes: Number K of known classes.

    Returns:
        A score in [0, 1]; 0.0, which keeps every box, if no class has a right detection.

    Raises:
        ValueError: If `detections` and `truth` are of different numbers of photos, or a label is
            outside [0, K).

    Reference:
        Du et al., "VOS: Learning What You Don't Know by Virtual Outlier Synthesis", ICLR 2022,
        `compute_average_precision.py` of its detection code; from Harakeh & Waslander, "Estimating
        and Evaluating Regression Predictive Uncertainty in Deep Object Detectors", ICLR 2021.
    """
    check_photos(detections, truth, num_classes)
    precision, scores = (curve.mean(0) for curve in coco_curves(detections, truth, num_classes))
    found = precision.max(0, initial=0.0) > 0  # −1 throughout for a class without ground truth
    if not found.any():
        return 0.0
    precision, scores, recall = precision[:, found], scores[:, found], RECALLS[:, None]
    # Precision is largest at recall 0, so that it is above 0 there and the sum never 0.
    f1 = 2 * precision * recall / (precision + recall)
    best = f1.argmax(0)
    return float(scores[best, np.arange(len(best))].mean())


def coco_curves(
    detections: Sequence[Boxes],
    truth: Sequence[Objects],
    num_classes: int,
    ious: Sequence[float] = IOUS,
) -> tuple[np.ndarray, np.ndarray]:
    """Precision at 101 recalls and the scores at which they are reached, as COCO computes them.

    Args:
        detections: Detections of each photo; the 100 of highest score count in each. Their scores
            may be any finite numbers.
        truth: Annotated objects of the same photos; those of label -1 are left out.
        num_classes: Number K of classes.
        ious: The T smallest overlaps of a right detection.

    Returns:
        Precision and scores, (T, 101, K) each, float64; −1 for classes without ground truth, 0
        where a recall is not reached.
    """
    from torchmetrics.detection import MeanAveragePrecision

    shape = (len(ious), len(RECALLS), num_classes)
    precision, scores = np.full(shape, -1.0), np.full(shape, -1.0)
    # Without an object to find the evaluator returns no curves.
    if not any(((photo.labels >= 0) & ~photo.ignore).any() for photo in truth):
        return precision, scores
    metric = MeanAveragePrecision(
        iou_thresholds=list(ious),
        rec_thresholds=RECALLS.tolist(),
        extended_summary=True,
        backend="faster_coco_eval",
        sync_on_compute=False,
    )
    metric.warn_on_many_detections = False
    metric.update([_detected(photo) for photo in detections], [_wanted(photo) for photo in truth])
    result = metric.compute()
    present = result["classes"].reshape(-1).tolist()  # torchmetrics makes one class a scalar
    # [:, :, class, area "all", 100 detections]
    precision[:, :, present] = result["precision"][:, :, :, 0, -1].numpy()
    scores[:, :, present] = result["scores"][:, :, :, 0, -1].numpy()
    return precision, scores


# Boxes are handed over in double precision: the evaluator wants widths, and the difference of two
# single-precision corners is rounded.
def _detected(photo: Boxes) -> dict[str, torch.Tensor]:
    return {
        "boxes": photo.boxes.double(),
        "labels": photo.labels,
        "scores": photo.scores.double(),
    }


def _wanted(photo: Objects) -> dict[str, torch.Tensor]:
    known = photo.labels >= 0
    return {
        "boxes": photo.boxes[known].double(),
        "labels": photo.labels[known],
        "iscrowd": photo.ignore[known].long(),
    }


def _mean(precision: np.ndarray) -> float | None:
    """Mean of the entries that are defined, those above −1."""
    defined = precision[precision > -1]
    return float(defined.mean()) if len(defined) else None
