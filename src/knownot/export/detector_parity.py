"""Does an exported detector show the boxes of the detector it came from?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from knownot.errors import DataError
from knownot.export.parity import Parity, generated_photos, readable_photos, refuse_unreadable
from knownot.models.detector import UnknownAwareDetector
from knownot.models.prediction import Detection, DetectionPrediction
from knownot.runtime.detector import ExportedDetector

# Of the photo's longer side: how far corners of the same box may lie apart.
_BOX_TOLERANCE = 1e-4


@dataclass
class DetectorParity(Parity):
    """Measured differences between two detectors.

    Attributes:
        answers: Boxes compared.
        without_boxes: Answers without a box, in both.
        max_box_difference: Largest difference of a corner, as a share of the photo's longer side.
    """

    without_boxes: int = 0
    max_box_difference: float = 0.0

    def compare_boxes(
        self, name: str, expected: DetectionPrediction, found: DetectionPrediction
    ) -> None:
        """Take in two answers for the photo `name`."""
        self.without_boxes += not expected.boxes and not found.boxes
        longer = max(expected.width, expected.height)
        left = list(found.boxes)
        for box in expected.boxes:
            # Boxes that are equally certain may come in another order.
            other = min(left, key=lambda other: _apart(box, other), default=None)
            if other is None or not _apart(box, other) <= _BOX_TOLERANCE * longer:
                self.answers += 1
                self.differences.append(f"{name}: {_in_words(box)} is missing")
                continue
            left.remove(other)
            self.max_box_difference = max(self.max_box_difference, _apart(box, other) / longer)
            self.compare(f"{name}, {_in_words(box)}", box, other)
        for other in left:
            self.answers += 1
            self.differences.append(f"{name}: {_in_words(other)} is new")


def check_detector_parity(
    model: UnknownAwareDetector,
    exported: ExportedDetector,
    photos: Sequence[Path] = (),
    advance: Callable[[int], None] = lambda done: None,
) -> DetectorParity:
    """Compare the boxes of both for generated photos of odd sizes and for those given.

    Generated photos show few objects: all their boxes are compared, also those below the model's
    threshold.

    Args:
        model: The detector.
        exported: The same, exported.
        photos: Photo files; those that cannot be read are left out.
        advance: Called with the number of given photos done.

    Raises:
        DataError: If photos are given and none can be read, or no box was found in any photo.
        ExportError: If a box differs; says for which photos, and how.
    """
    parity = DetectorParity.of(model)
    for name, image in generated_photos(exported.metadata.image_size):
        _compare(model, exported, name, image, 0.0, parity)
        parity.photos += 1
    # Hardly any box is as sure as that: an answer without boxes.
    _compare(model, exported, name, image, 1.0, parity)
    generated = parity.max_difference
    parity.max_difference = 0.0
    for path in photos:
        for name, image in readable_photos([path]):
            _compare(model, exported, name, image, model.box_threshold, parity)
            parity.photos += 1
            parity.given += 1
        advance(1)
    parity.max_difference_given = parity.max_difference
    parity.max_difference = max(generated, parity.max_difference)
    refuse_unreadable(photos, parity)
    parity.refuse_differences()
    if parity.answers == 0:
        raise DataError(
            "photos: there is no box in any photo, so that nothing was compared; name photos with "
            "objects of the known classes by --photos"
        )
    return parity


def _compare(
    model: UnknownAwareDetector,
    exported: ExportedDetector,
    name: str,
    image: Image.Image,
    box_threshold: float,
    parity: DetectorParity,
) -> None:
    expected, found = (
        next(iter(one.predict_iter([image], box_threshold=box_threshold)))
        for one in (model, exported)
    )
    parity.compare_boxes(name, expected, found)


def _apart(one: Detection, other: Detection) -> float:
    """Largest difference of a corner in pixels; infinite between boxes of two classes."""
    if one.nearest_class != other.nearest_class:
        return float("inf")
    return float(np.abs(np.subtract(one.box, other.box)).max())


def _in_words(box: Detection) -> str:
    corners = " ".join(f"{corner:.0f}" for corner in box.box)
    return f"{box.nearest_class} {box.confidence:.3f} at {corners}"
