"""How often does an exported model of reduced precision give the answers of the model it came from?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from knownot.errors import DataError, ExportError
from knownot.export.parity import generated_photos, readable_photos
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.prediction import Prediction
from knownot.models.unknown_aware import COMBINED
from knownot.runtime.classifier import ExportedClassifier

# Of photos of the known classes: the share that must get the same label, unknown or a class.
LEAST_SAME = 0.95
LEAST_PHOTOS = 20
_CHUNK = 16


@dataclass
class Agreement:
    """Answers of two models for the same photos of known classes.

    Attributes:
        photos: Photos compared.
        same: Of these, the ones with the same label, unknown or a class.
        same_class: The ones with the same nearest class.
        unknown: The ones that the model calls unknown.
        unknown_exported: The ones that the exported model calls unknown.
        max_difference: Largest absolute difference of the deciding score.
        least_same: What `same / photos` must be.
        calibrated_on: Validation photos that the exported model was calibrated anew on.
    """

    photos: int = 0
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

    def compare(self, expected: Prediction, found: Prediction) -> None:
        """Take in two answers for a photo."""
        self.photos += 1
        self.same += expected.label == found.label
        self.same_class += expected.nearest_class == found.nearest_class
        self.unknown += expected.is_unknown
        self.unknown_exported += found.is_unknown
        difference = abs(expected.ood_score - found.ood_score)
        self.max_difference = max(self.max_difference, difference)


def check_agreement(
    model: UnknownAwareClassifier,
    exported: ExportedClassifier,
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
        DataError: If fewer than 20 photos can be read.
        ExportError: If fewer than `LEAST_SAME` get the same label, or a score is no number.
    """
    for name, image in generated_photos(model.preprocessing.image_size):
        for score, value in exported.predict([image])[0].scores.items():
            if not math.isfinite(value):
                raise ExportError(
                    f"{exported.metadata.precision}: the score {score} of {name} is {value}, so the "
                    "file was not kept; export in float32"
                )
    agreement = Agreement()
    for start in range(0, len(photos), _CHUNK):
        chunk = photos[start : start + _CHUNK]
        images = [image for _, image in readable_photos(chunk)]
        for one, other in zip(model.predict(images), exported.predict(images), strict=True):
            agreement.compare(one, other)
        advance(len(chunk))
    if agreement.photos < LEAST_PHOTOS:
        raise DataError(
            f"photos: {agreement.photos} of {len(photos)} can be read, and fewer than "
            f"{LEAST_PHOTOS} tell too little; name more photos of the known classes by --photos"
        )
    if agreement.same < LEAST_SAME * agreement.photos:
        raise ExportError(
            f"in {exported.metadata.precision} only {agreement.same} of {agreement.photos} photos of "
            f"the known classes get the label that they get in float32, less than {LEAST_SAME:.0%}, "
            "so the file was not kept; export in float32, or for int8 try float16"
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
    parts = [name for name in exported.metadata.scores if name != COMBINED]
    scores = {name: torch.tensor([answer.scores[name] for answer in answers]) for name in parts}
    classes = torch.tensor([model.classes.index(answer.nearest_class) for answer in answers])
    model.calibrate_scores(scores, classes if model.classwise else None)
    return len(answers)
