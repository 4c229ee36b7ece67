"""What becomes of unknown objects, where they are annotated (label -1), at IoU 0.5.

The paper's protocol never counts an unknown object that is missed; these measures do. A detection
counts as one of a known class unless the model calls it unknown. An object is found by at most one
detection and a detection finds at most one object (`match`); ignored objects are neither to be
found nor wrong to be found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from knownot.data.detection_set import Objects
from knownot.evaluation.box_matching import UNMATCHED, Boxes, check_photos, match
from knownot.evaluation.box_metrics import coco_curves

IOU = 0.5


def open_set_measures(
    detections: Sequence[Boxes],
    truth: Sequence[Objects],
    unknown_scores: Sequence[Tensor],
    num_classes: int,
    *,
    threshold: float = 0.0,
    recall: float = 0.8,
) -> dict[str, float | int | None]:
    """The four measures of this module at a box threshold.

    Args:
        detections: Detections of each photo.
        truth: Annotated objects of the same photos, unknown ones with label -1.
        unknown_scores: How unknown each detection is, (B,) for each photo, in any unit; higher is
            more unknown.
        num_classes: Number K of known classes.
        threshold: Detections with a lower score are left out; the one of `best_f1_threshold`.
        recall: Recall at which the wilderness impact is taken, a fraction in (0, 1].

    Returns:
        "unknown_recall", "aose", "wi", "unknown_ap", each None where it is not defined, as all are
        if no unknown object is annotated, and "n_unknown", the number of these.

    Raises:
        ValueError: If the three sequences do not belong together, a label is outside [0, K), an
            unknown score is not finite, or `recall` is outside (0, 1].
    """
    check_photos(detections, truth, num_classes)
    _check_unknown_scores(detections, unknown_scores)
    kept = [photo.scores >= threshold for photo in detections]
    unknown_scores = [s[mask] for s, mask in zip(unknown_scores, kept, strict=True)]
    detections = [photo.select(mask) for photo, mask in zip(detections, kept, strict=True)]
    return {
        "unknown_recall": unknown_recall(detections, truth),
        "aose": aose(detections, truth),
        "wi": wilderness_impact(detections, truth, num_classes, recall),
        "unknown_ap": unknown_ap(detections, truth, unknown_scores),
        "n_unknown": count_unknown(truth),
    }


def count_unknown(truth: Sequence[Objects]) -> int:
    """Number of annotated objects of no known class, ignored ones left out."""
    return sum(int(((photo.labels < 0) & ~photo.ignore).sum()) for photo in truth)


def unknown_recall(detections: Sequence[Boxes], truth: Sequence[Objects]) -> float | None:
    """Share of unknown objects found by a detection called unknown.

    Returns:
        A fraction in [0, 1], higher is better; None if there is no unknown object.

    Raises:
        ValueError: If `detections` and `truth` are of different numbers of photos.
    """
    total = count_unknown(truth)
    found = sum(
        _unknown_found(photo.select(photo.unknown), objects)
        for photo, objects in zip(detections, truth, strict=True)
    )
    return found / total if total else None


def aose(detections: Sequence[Boxes], truth: Sequence[Objects]) -> int | None:
    """Absolute open-set error: number of unknown objects taken for one of a known class.

    An unknown object is counted once, however many classes it is taken for, and also if a box
    called unknown lies on it as well. A detection that found an object of its own class, or lies on
    an ignored one, is no error even if an unknown object lies under it. (The code of Joseph et al.
    counts every detection of a known class that overlaps an unknown object, so that its numbers
    are larger.)

    Returns:
        A count, lower is better; None if there is no unknown object.

    Raises:
        ValueError: If `detections` and `truth` are of different numbers of photos.

    Reference:
        Miller et al., "Dropout Sampling for Robust Object Detection in Open-Set Conditions", ICRA
        2018; Joseph et al., "Towards Open World Object Detection", CVPR 2021.
    """
    count = 0
    for photo, objects in zip(detections, truth, strict=True):
        known = photo.select(~photo.unknown)
        wrong = match(known, objects, IOU) == UNMATCHED
        count += _unknown_found(known.select(wrong), objects)
    return count if count_unknown(truth) else None


def wilderness_impact(
    detections: Sequence[Boxes], truth: Sequence[Objects], num_classes: int, recall: float = 0.8
) -> float | None:
    """Loss of precision by unknown objects taken for known ones: P_closed / P_open − 1.

    Detections of each class are taken down to the score at which the recall of its objects is
    nearest to `recall`, the higher score of two as near, and counted over all classes together:
    right ones TP, wrong ones that overlap an unknown object FP_o, other wrong ones FP_c. With
    P_closed = TP / (TP + FP_c) and P_open = TP / (TP + FP_c + FP_o) the measure is
    FP_o / (TP + FP_c). This is the variant of Joseph et al., except that their P_closed counts
    FP_o as well. Detections on ignored objects and classes without ground truth are left out. A
    class that never comes near `recall` is counted at the highest it has.

    Args:
        detections: Detections of each photo; those called unknown are left out.
        truth: Annotated objects of the same photos.
        num_classes: Number K of known classes.
        recall: A fraction in (0, 1].

    Returns:
        A number of at least 0, lower is better; None if there is no unknown object, or nothing was
        found but unknown objects.

    Raises:
        ValueError: If `recall` is outside (0, 1], or `detections` and `truth` are of different
            numbers of photos.

    Reference:
        Dhamija et al., "The Overlooked Elephant of Object Detection: Open Set", WACV 2020; Joseph
        et al., "Towards Open World Object Detection", CVPR 2021.
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall: expected a fraction in (0, 1], got {recall}")
    outcomes = [_outcomes(photo, objects) for photo, objects in zip(detections, truth, strict=True)]
    if not count_unknown(truth):
        return None
    labels, scores, right, on_unknown = (
        torch.cat(parts).numpy() for parts in zip(*outcomes, strict=True)
    )
    wanted = torch.cat([photo.labels[~photo.ignore] for photo in truth]).numpy()
    closed = opened = 0
    for k in range(num_classes):
        total, of_class = int((wanted == k).sum()), labels == k
        if total == 0 or not of_class.any():
            continue
        lowest = _score_at_recall(scores[of_class], right[of_class], total, recall)
        taken = of_class & (scores >= lowest)
        opened += int((taken & on_unknown).sum())
        closed += int((taken & ~on_unknown).sum())
    return opened / closed if closed else None


def unknown_ap(
    detections: Sequence[Boxes], truth: Sequence[Objects], unknown_scores: Sequence[Tensor]
) -> float | None:
    """Average precision of the detections called unknown against the unknown objects.

    COCO's 101-point average at IoU 0.5, 100 detections a photo. A box called unknown on an object
    of a known class is a false positive.

    Args:
        detections: Detections of each photo; those not called unknown are left out.
        truth: Annotated objects of the same photos.
        unknown_scores: What ranks the detections, (B,) for each photo, in any unit; higher is more
            unknown.

    Returns:
        A fraction in [0, 1], higher is better; None if there is no unknown object.

    Raises:
        ValueError: If the three sequences do not belong together or an unknown score is not finite.
    """
    _check_unknown_scores(detections, unknown_scores)
    if not count_unknown(truth):
        return None
    ranked, wanted = [], []
    for photo, objects, scores in zip(detections, truth, unknown_scores, strict=True):
        ranked.append(_as_class_0(replace(photo, scores=scores).select(photo.unknown)))
        wanted.append(_unknown_objects(objects))
    precision, _ = coco_curves(ranked, wanted, 1, [IOU])
    return float(precision.mean())


def _unknown_objects(objects: Objects) -> Objects:
    """The objects of no known class as those of class 0."""
    unknown = objects.labels < 0
    boxes = objects.boxes[unknown]
    return Objects(boxes, torch.zeros(len(boxes)).long(), objects.ignore[unknown])


def _as_class_0(detections: Boxes) -> Boxes:
    return replace(detections, labels=torch.zeros_like(detections.labels))


def _unknown_found(detections: Boxes, objects: Objects) -> int:
    """Number of unknown objects of a photo that one of the detections finds, whatever its class."""
    return int((match(_as_class_0(detections), _unknown_objects(objects), IOU) >= 0).sum())


def _outcomes(photo: Boxes, objects: Objects) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Class, score, whether right and whether wrong on an unknown object, of each counted box."""
    known = photo.select(~photo.unknown)
    matched = match(known, objects, IOU)
    known, matched = known.select(matched >= UNMATCHED), matched[matched >= UNMATCHED]
    unknown = objects.boxes[(objects.labels < 0) & ~objects.ignore]
    overlaps = (box_iou(known.boxes.double(), unknown.double()) >= IOU).any(1)
    right = matched >= 0
    return known.labels, known.scores, right, overlaps & ~right


def _score_at_recall(scores: np.ndarray, right: np.ndarray, total: int, recall: float) -> float:
    """The score down to which the recall of `total` objects is nearest to `recall`."""
    order = np.argsort(-scores, kind="stable")
    reached = right[order].cumsum() / total
    # A threshold cannot fall between equal scores: only the last of each run is a choice.
    choices = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    nearest = choices[np.abs(reached[choices] - recall).argmin()]
    return float(scores[order][nearest])


def _check_unknown_scores(detections: Sequence[Boxes], unknown_scores: Sequence[Tensor]) -> None:
    sizes = [(len(photo),) for photo in detections]
    got = [tuple(scores.shape) for scores in unknown_scores]
    if got != sizes:
        raise ValueError(
            "unknown_scores: expected one score for each detection, shapes "
            f"{sizes[:3]}… for {len(sizes)} photos, got {got[:3]}… for {len(got)}"
        )
    if not all(scores.isfinite().all() for scores in unknown_scores):
        raise ValueError("unknown_scores: some are NaN or infinite")
