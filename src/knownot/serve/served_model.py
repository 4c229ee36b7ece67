"""What the service asks of a model: prepare a photo, answer for several, describe itself."""

from __future__ import annotations

import secrets
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from knownot.data.thumbnails import Thumbnails
from knownot.runtime import OnnxClassifier, OnnxDetector
from knownot.runtime.exported import Pixels
from knownot.runtime.metadata import ClassifierMetadata, DetectorMetadata
from knownot.serve.schemas import Box, HistogramInfo, NearestClass, NearestPhoto, PhotoAnswer

_NEAREST = 5
_TOLD = (
    "task",
    "classes",
    "scores",
    "default_score",
    "alpha",
    "threshold",
    "classwise",
    "image_size",
    "precision",
    "versions",
)
_Model = TypeVar("_Model", OnnxClassifier, OnnxDetector)


class Settings(NamedTuple):
    """How a photo is judged."""

    score: str
    alpha: float


class ServedModel(Generic[_Model]):
    """A model behind the service.

    Args:
        model: The exported model.
        thumbnails: Of the photos that it was trained on, if they are to be shown.

    Attributes:
        judged: What alpha is a share of, and metrics and the drift alarm count.
        together: Whether photos share batches.
        defaults: The model's own score and alpha.
        scores: Names of its scores.
        least_side: Shorter side in pixels that `prepare` has use for, or None for all of it.
    """

    judged: ClassVar[str]
    together: ClassVar[bool]

    def __init__(self, model: _Model, thumbnails: Thumbnails | None = None) -> None:
        self._model: _Model = model
        self.thumbnails = thumbnails
        self.metadata: ClassifierMetadata | DetectorMetadata = model.metadata
        self.defaults = Settings(model.default_score, model.alpha)
        self.scores = model.metadata.scores
        self.least_side: int | None = model.least_side

    def prepare(self, image: Image.Image) -> Pixels:
        """What the model reads of a photo; takes time, so call it in a thread."""
        pixels: Pixels = self._model.prepare(image)
        return pixels

    def answer(self, photos: list[Pixels], settings: Settings) -> list[PhotoAnswer]:
        """Answers for prepared photos, without names."""
        raise NotImplementedError  # abstract

    def describe(self) -> dict[str, Any]:
        """The fields of `ModelInfo`, without the limits."""
        metadata, summary = self.metadata, self.metadata.calibration
        return {
            **{name: getattr(metadata, name) for name in _TOLD},
            "box_threshold": getattr(metadata, "box_threshold", None),
            "calibration_photos": summary and summary.sizes,
            "histograms": {
                name: HistogramInfo(edges=histogram.edges, counts=histogram.counts)
                for name, histogram in (summary.histograms if summary else {}).items()
            },
        }


class ServedClassifier(ServedModel[OnnxClassifier]):
    """A classifier: an answer for each photo."""

    judged = "photos"
    together = True
    # Browsers keep thumbnails for a year; those of another model have the same numbers.
    _start = secrets.token_hex(4)

    def answer(self, photos: list[Pixels], settings: Settings) -> list[PhotoAnswer]:
        """Answers for prepared photos, without names."""
        squares = np.stack(photos)
        predictions, logits, rows = self._model.answer_prepared(
            squares, alpha=settings.alpha, score=settings.score
        )
        nearest_photos = self._nearest_photos(rows, len(photos))
        return [
            PhotoAnswer(
                name="",
                label=answer.label,
                is_unknown=answer.is_unknown,
                ood_score=answer.ood_score,
                p_value=answer.p_value,
                confidence=answer.confidence,
                nearest=self._nearest(row),
                nearest_photos=similar,
                scores=dict(answer.scores),
            )
            for answer, row, similar in zip(predictions, logits, nearest_photos, strict=True)
        ]

    def _nearest_photos(
        self, rows: NDArray[np.int64] | None, photos: int
    ) -> list[list[NearestPhoto]]:
        if self.thumbnails is None or rows is None:
            return [[]] * photos
        labels = self.thumbnails.labels
        return [
            [
                NearestPhoto(
                    label=self.metadata.classes[label],
                    thumbnail=f"thumbnails/{number}?of={self._start}",
                )
                for number in of_photo
                if (label := labels[number]) is not None
            ]
            for of_photo in rows.tolist()
        ]

    def _nearest(self, logits: NDArray[np.float32]) -> list[NearestClass]:
        odds = np.exp(logits.astype(np.float64) - logits.max())
        probabilities = odds / odds.sum()
        best = np.argsort(-probabilities, kind="stable")[:_NEAREST]
        return [
            NearestClass(label=self.metadata.classes[k], probability=probabilities[k]) for k in best
        ]


class ServedDetector(ServedModel[OnnxDetector]):
    """A detector: the boxes of each photo."""

    judged = "boxes"
    together = False

    def answer(self, photos: list[Pixels], settings: Settings) -> list[PhotoAnswer]:
        """Answers for prepared photos, without names."""
        predictions = self._model.answer_prepared(
            photos, alpha=settings.alpha, score=settings.score
        )
        return [
            PhotoAnswer(name="", boxes=[Box(**vars(box)) for box in answer.boxes])
            for answer in predictions
        ]


def served(
    model: OnnxClassifier | OnnxDetector, thumbnails: Thumbnails | None = None
) -> ServedClassifier | ServedDetector:
    """The model behind the service; `thumbnails` are a classifier's."""
    if isinstance(model, OnnxDetector):
        return ServedDetector(model)
    return ServedClassifier(model, thumbnails)
