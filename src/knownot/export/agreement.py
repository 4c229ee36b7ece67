"""How often does an exported model of reduced precision give the answers of the model it came from?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from knownot.core.columns import joined
from knownot.data.detection_set import DetectionSet, Objects
from knownot.errors import DataError, ExportError
from knownot.evaluation.box_matching import Boxes, match
from knownot.evaluation.detect_set import finds_object
from knownot.export.parity import generated_photos, readable_photos
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.detector import UnknownAwareDetector
from knownot.models.prediction import Detection, DetectionPrediction, Prediction
from knownot.models.unknown_aware import COMBINED
from knownot.runtime.classifier import ExportedClassifier
from knownot.runtime.detector import ExportedDetector

# Of photos of the known classes, or of the boxes in them: the share that must get the same label,
# unknown or a class.
LEAST_SAME = 0.95
LEAST_PHOTOS = 20
_CHUNK = 16
# No p-value is as small: then no box is left out for showing an unknown object again.
_NEVER_UNKNOWN = 1e-9


@dataclass
class Agreement:
    """Answers of two models for the same photos of known classes.

    Attributes:
        photos: Photos compared.
        answers: Of a classifier the photos, of a detector the boxes that one of the two shows.
        same: Of these, the ones with the same label, unknown or a class.
        same_class: The ones with the same nearest class.
        unknown: The ones that the model calls unknown.
        unknown_exported: The ones that the exported model calls unknown.
        max_difference: Largest absolute difference of the deciding score.
        least_same: What `same / answers` must be.
        calibrated_on: Validation photos that the exported model was calibrated anew on.
    """

    photos: int = 0
    answers: int = 0
    same: int = 0
    same_class: int = 0
    unknown: int = 0
    unknown_exported: int = 0
    max_difference: float = 0.0
    least_same: float = LEAST_SAME
    calibrated_on: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The numbers, for the metadata."""
        return asdict(self)

    def compare(self, expected: Prediction | Detection, found: Prediction | Detection) -> None:
        """Take in two answers for a photo, or for an object."""
        self.answers += 1
        self.same += expected.label == found.label
        self.same_class += expected.nearest_class == found.nearest_class
        self.unknown += expected.is_unknown
        self.unknown_exported += found.is_unknown
        difference = abs(expected.ood_score - found.ood_score)
        self.max_difference = max(self.max_difference, difference)

    def compare_boxes(
        self, expected: Sequence[Detection], found: Sequence[Detection], classes: list[str]
    ) -> None:
        """Take in the boxes of a photo: on the same object if of one class and with an IoU of 0.5."""
        boxes = _as_boxes(expected, classes)
        objects = Objects(boxes.boxes, boxes.labels, torch.zeros(len(boxes)).bool())
        matched = match(_as_boxes(found, classes), objects).tolist()
        for other, i in zip(found, matched, strict=True):
            if i >= 0:
                self.compare(expected[i], other)
            else:
                self.answers += 1
                self.unknown_exported += other.is_unknown
        for i in set(range(len(expected))) - set(matched):
            self.answers += 1
            self.unknown += expected[i].is_unknown


def check_agreement(
    model: UnknownAwareClassifier | UnknownAwareDetector,
    exported: ExportedClassifier | ExportedDetector,
    photos: Sequence[Path],
    advance: Callable[[int], None] = lambda done: None,
) -> Agreement:
    """Compare the answers of both for photos of the known classes.

    Args:
        model: The model.
        exported: The same in reduced precision.
        photos: Photo files; those that cannot be read are left out.
        advance: Called with the number of photos done.

    Raises:
        DataError: If fewer than 20 photos can be read, or a detector finds no box in any.
        ExportError: If fewer than `LEAST_SAME` get the same label, a score is no number, or a
            classifier hardly calls any of the strange photos unknown that the model does.
    """
    precision = exported.metadata.precision
    strange = 0
    unknown = 0
    for name, image in generated_photos(exported.metadata.image_size):
        found = exported.predict([image])[0]
        if isinstance(found, Prediction):
            expected: Any = model.predict([image])[0]
            strange += expected.is_unknown
            unknown += expected.is_unknown and found.is_unknown
        for answer in _rows(found):
            for score, value in answer.scores.items():
                if not math.isfinite(value):
                    raise ExportError(
                        f"{precision}: the score {score} of {name} is {value}, so the file was not "
                        "kept; export in float32"
                    )
    if unknown < strange / 2:
        raise ExportError(
            f"{precision}: of {strange} made-up photos that the model calls unknown the exported one "
            f"calls {unknown} unknown, so the file was not kept; export in float32"
        )
    agreement = Agreement()
    for start in range(0, len(photos), _CHUNK):
        chunk = photos[start : start + _CHUNK]
        images = [image for _, image in readable_photos(chunk)]
        answers: Any = zip(model.predict(images), exported.predict(images), strict=True)
        for one, other in answers:
            agreement.photos += 1
            if isinstance(one, DetectionPrediction):
                agreement.compare_boxes(one.boxes, other.boxes, model.classes)
            else:
                agreement.compare(one, other)
        advance(len(chunk))
    if agreement.photos < LEAST_PHOTOS:
        raise DataError(
            f"photos: {agreement.photos} of {len(photos)} can be read, and fewer than "
            f"{LEAST_PHOTOS} tell too little; name more photos of the known classes by --photos"
        )
    if agreement.answers == 0:
        raise DataError(
            "photos: there is no box in any; name photos with known objects by --photos"
        )
    if agreement.same < LEAST_SAME * agreement.answers:
        what = "boxes on" if model.task == "detect" else "photos of"
        raise ExportError(
            f"in {precision} only {agreement.same} of {agreement.answers} {what} the known classes "
            f"get the label that they get in float32, less than {LEAST_SAME:.0%}, so the file was "
            "not kept; export in float32, or for int8 try float16"
        )
    return agreement


def calibrate_by(
    model: UnknownAwareClassifier, exported: ExportedClassifier, photos: Sequence[Path]
) -> int:
    """Calibrate `model` on the scores that `exported` gives to validation photos.

    Args:
        model: The model, changed in place.
        exported: The same in reduced precision, whose scores lie elsewhere.
        photos: Photo files that neither was trained on; those that cannot be read are left out.

    Returns:
        The number of photos calibrated on.

    Raises:
        DataError: If none can be read.
    """
    answers = [answer for answer in exported.predict_iter(photos) if not answer.error]
    if not answers:
        raise DataError(f"photos: none of the {len(photos)} of validation can be read")
    classes = torch.tensor([model.classes.index(answer.nearest_class) for answer in answers])
    model.calibrate_scores(_scores(answers), classes if model.classwise else None)
    return len(answers)


def calibrate_boxes_by(
    model: UnknownAwareDetector, exported: ExportedDetector, photos: DetectionSet
) -> int:
    """The same of a detector, on boxes around the annotated objects of `photos`.

    Raises:
        DataError: If no photo can be read.
        ExportError: If no object is found any more.
    """
    answers = exported.predict_iter(photos.paths, alpha=_NEVER_UNKNOWN, box_threshold=0.0)
    read = [pair for pair in zip(answers, photos.objects, strict=True) if not pair[0].error]
    if not read:
        raise DataError(f"photos: none of the {len(photos)} of validation can be read")
    found = [vars(_as_boxes(answer.boxes, model.classes)) for answer, _ in read]
    known = torch.cat(
        [finds_object(one, truth) for one, (_, truth) in zip(found, read, strict=True)]
    )
    together = joined(found)
    known &= together["scores"] >= model.box_threshold
    if not known.any():
        raise ExportError(
            f"in {exported.metadata.precision} it finds none of the {sum(photos.counts().values())} "
            "objects of the validation photos, so the file was not kept; export in float32"
        )
    groups = model.groups(together["boxes"], together["labels"])
    model.calibrate_scores(_scores([b for a, _ in read for b in a.boxes]), groups, known)
    return len(read)


def _rows(answer: Prediction | DetectionPrediction) -> Sequence[Prediction | Detection]:
    return answer.boxes if isinstance(answer, DetectionPrediction) else [answer]


def _scores(rows: Sequence[Prediction | Detection]) -> dict[str, torch.Tensor]:
    names = [name for name in rows[0].scores if name != COMBINED]
    return {name: torch.tensor([row.scores[name] for row in rows]) for name in names}


def _as_boxes(found: Sequence[Detection], classes: list[str]) -> Boxes:
    return Boxes(
        torch.tensor([box.box for box in found]).reshape(-1, 4),
        torch.tensor([classes.index(box.nearest_class) for box in found]).long(),
        torch.tensor([box.confidence for box in found]),
        torch.tensor([box.is_unknown for box in found]).bool(),
    )
