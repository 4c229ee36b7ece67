"""A detector run over annotated photos, and the boxes that found what is annotated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from knownot.data.detection_set import Objects
from knownot.errors import DataError
from knownot.evaluation.box_matching import Boxes, match
from knownot.models.detector import UnknownAwareDetector
from knownot.models.regions import Detections


def detect_photos(
    model: UnknownAwareDetector,
    paths: Sequence[Path],
    skipped: dict[Path, str],
    progress: Callable[[int], None] | None = None,
    proposals: bool = False,
) -> Iterator[tuple[int, Detections]]:
    """Run a detector over photos, one by one: sizes differ.

    Args:
        model: The detector.
        paths: Photos.
        skipped: Filled with path and reason of every photo that cannot be read.
        progress: Called with the number of photos done since the last call.
        proposals: Whether to add the detector's proposals, if it has any.

    Yields:
        Index of the photo and its detections, on the CPU.
    """
    model.eval()
    for index, path in enumerate(paths):
        try:
            pixels = model.pixels(path)
        except DataError as error:
            skipped[path] = str(error)
        else:
            (found,) = model([pixels.to(model.device)], proposals, every_score=True)
            yield index, {name: values.cpu() for name, values in found.items()}
        if progress:
            progress(1)


def as_boxes(found: Detections, unknown: Tensor | None = None) -> Boxes:
    """The detections of a photo as the measures read them; none unknown if not given (B,)."""
    if unknown is None:
        unknown = torch.zeros(len(found["labels"]), dtype=torch.bool)
    return Boxes(found["boxes"], found["labels"], found["scores"], unknown)


def finds_object(found: Detections, truth: Objects) -> Tensor:
    """Whether each detection is the one on an annotated object of its class (IoU 0.5), (B,)."""
    return match(as_boxes(found), truth) >= 0
