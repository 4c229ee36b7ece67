"""Does an exported model give the answers of the model it came from?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from knownot.data.photo import open_photo
from knownot.errors import DataError, ExportError
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.prediction import Detection, Prediction
from knownot.models.unknown_aware import COMBINED, UnknownAwareModel
from knownot.runtime.classifier import ExportedClassifier

# Of the score, or of its size where that is larger: float32 holds seven digits of any number.
TOLERANCE = 1e-4
# For scores that do not decide: a Mahalanobis distance of features that have collapsed magnifies the
# last digits of a backbone a thousandfold.
_PART_TOLERANCE = 1e-3
_CHUNK = 16
# The graph needs 24 bytes a pixel where it resizes by itself: of one photo, and of several together.
_WHOLE_PIXELS, _TOGETHER_PIXELS = 4_000_000, 1_000_000
_TOLD = 3


@dataclass
class Parity:
    """Measured differences between two models.

    Attributes:
        photos: Photos compared, generated ones included.
        given: Of these, the photos that were given.
        answers: Answers compared: by squares, and by the whole graph.
        max_difference: Largest absolute difference of the deciding score.
        max_difference_given: The same among the given photos alone.
        max_relative: The same as a share of max(1, size of the score); of the combined score as far as
            the differences of its parts do not explain it.
        max_relative_parts: Largest such share of any score; up to ten times `tolerance`.
        tolerance: What `max_relative` may be.
        differences: What differs, in words.
        decides: Name of the deciding score.
        combine: The model's combined score of an answer's scores, if that is to be asked.
    """

    photos: int = 0
    given: int = 0
    answers: int = 0
    max_difference: float = 0.0
    max_difference_given: float = 0.0
    max_relative: float = 0.0
    max_relative_parts: float = 0.0
    tolerance: float = TOLERANCE
    differences: list[str] = field(default_factory=list)
    decides: str = COMBINED
    combine: Callable[[dict[str, float]], float] | None = None

    @classmethod
    def of(cls, model: UnknownAwareModel) -> Self:
        """Nothing compared yet, of this model."""

        @torch.no_grad()
        def combine(scores: dict[str, float]) -> float:
            assert model.combined is not None  # a calibrated model has one
            rows = {name: torch.tensor([value]) for name, value in scores.items()}
            return float(model.combined.cpu()(rows))

        return cls(decides=model.default_score, combine=combine)

    def to_dict(self) -> dict[str, Any]:
        """The numbers, for the metadata."""
        left_out = ("differences", "decides", "combine")
        return {key: value for key, value in vars(self).items() if key not in left_out}

    def compare(
        self, name: str, expected: Prediction | Detection, found: Prediction | Detection
    ) -> None:
        """Take in two answers for the photo, or the box, `name`."""
        self.answers += 1
        gaps = {score: _gap(value, found.scores[score]) for score, value in expected.scores.items()}
        if self.combine is not None and gaps[COMBINED] > self.tolerance:
            # Steep where few photos set its scale: held against what its own parts make.
            own = _gap(self.combine(found.scores), found.scores[COMBINED])
            gaps[COMBINED] = min(gaps[COMBINED], own)
        # Not-a-number in one of them is a difference as well.
        worst = max(gaps, key=lambda score: (np.isnan(gaps[score]), gaps[score]))
        relative = gaps[self.decides]
        self.max_difference = max(self.max_difference, abs(expected.ood_score - found.ood_score))
        self.max_relative = max(self.max_relative, relative)
        self.max_relative_parts = max(self.max_relative_parts, gaps[worst])
        same = (expected.label, expected.is_unknown) == (found.label, found.is_unknown)
        if not (same and relative <= self.tolerance and gaps[worst] <= _PART_TOLERANCE):
            self.differences.append(
                f"{name}: {expected.label}, {worst} {expected.scores[worst]:.6f}, exported "
                f"{found.label}, {found.scores[worst]:.6f}"
            )

    def refuse_differences(self) -> None:
        """Raise `ExportError` if an answer differed."""
        if self.differences:
            told = "; ".join(self.differences[:_TOLD])
            raise ExportError(
                f"the exported model answers differently in {len(self.differences)} of "
                f"{self.answers} cases, so it was not kept: {told}; docs/export.md tells what helps"
            )


def _gap(expected: float, found: float) -> float:
    """As a share of the size, where that is above 1."""
    return abs(expected - found) / max(1.0, abs(expected))


def check_parity(
    model: UnknownAwareClassifier,
    exported: ExportedClassifier,
    photos: Sequence[Path] = (),
    advance: Callable[[int], None] = lambda done: None,
) -> Parity:
    """Compare the answers of both for generated photos of odd sizes and for those given.

    Every photo goes through squares cut by Pillow, and through the whole graph, together with
    others of its size where there are any.

    Args:
        model: The model.
        exported: The same, exported.
        photos: Photo files; those that cannot be read are left out.
        advance: Called with the number of given photos done.

    Raises:
        DataError: If photos are given and none can be read.
        ExportError: If an answer differs; says for which photos, and how.
    """
    parity = Parity.of(model)
    _compare(model, exported, list(generated_photos(model.preprocessing.image_size)), parity)
    generated = parity.max_difference
    parity.max_difference = 0.0
    for start in range(0, len(photos), _CHUNK):
        chunk = photos[start : start + _CHUNK]
        readable = list(readable_photos(chunk))
        _compare(model, exported, readable, parity)
        parity.given += len(readable)
        advance(len(chunk))
    parity.max_difference_given = parity.max_difference
    parity.max_difference = max(generated, parity.max_difference)
    refuse_unreadable(photos, parity)
    parity.refuse_differences()
    return parity


def refuse_unreadable(photos: Sequence[Path], parity: Parity) -> None:
    """Raise `DataError` if photos were given and none could be read."""
    if photos and parity.given == 0:
        raise DataError(f"photos: none of the {len(photos)} can be read, first {photos[0]}")


def generated_photos(size: int) -> Iterator[tuple[str, Image.Image]]:
    """Noise and flat colours of odd sizes, by name; the same at every call."""
    random = np.random.default_rng(0)
    shapes = [(1, 1), (1, 9), (9, 1), (size, size), (200, 8000), (8000, 200), (61, 47)]
    shapes += [(size + 33, size + 71)] * 3
    for number, (height, width) in enumerate(shapes):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        yield f"noise {number}, {width} x {height}", Image.fromarray(pixels)
    grey = random.integers(0, 256, (97, 131), dtype=np.uint8)
    yield "grey noise", Image.fromarray(grey).convert("RGB")
    ramp = np.linspace(0, 255, 180).astype(np.uint8)
    yield "ramp", Image.fromarray(np.broadcast_to(ramp[:, None, None], (180, 240, 3)).copy())
    for shade in (0, 128, 255):
        yield f"flat {shade}", Image.new("RGB", (50, 40), (shade,) * 3)


def readable_photos(paths: Sequence[Path]) -> Iterator[tuple[str, Image.Image]]:
    """The photos that can be read, with their names."""
    for path in paths:
        with suppress(DataError):
            yield str(path), open_photo(path)


def _compare(
    model: UnknownAwareClassifier,
    exported: ExportedClassifier,
    photos: list[tuple[str, Image.Image]],
    parity: Parity,
) -> None:
    images = [image for _, image in photos]
    expected = model.predict(images)
    parity.photos += len(photos)
    for (name, _), one, other in zip(photos, expected, exported.predict(images), strict=True):
        parity.compare(name, one, other)
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        if image.width * image.height <= _WHOLE_PIXELS:
            by_size[image.size].append(index)
    for (width, height), members in by_size.items():
        together = max(1, _TOGETHER_PIXELS // (width * height))
        for start in range(0, len(members), together):
            some = members[start : start + together]
            found = exported.predict_whole(np.stack([np.array(images[i]) for i in some]))
            for i, other in zip(some, found, strict=True):
                parity.compare(f"{photos[i][0]} (resized in the graph)", expected[i], other)
