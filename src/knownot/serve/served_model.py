"""What the service asks of a model: prepare a photo, answer for several, describe itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from knownot.runtime import OnnxClassifier
from knownot.serve.schemas import HistogramInfo, NearestClass, PhotoAnswer

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


class Settings(NamedTuple):
    """How a photo is judged."""

    score: str
    alpha: float


class ServedClassifier:
    """A classifier behind the service. A detector would offer the same attributes and methods.

    Args:
        model: The exported model.

    Attributes:
        defaults: The model's own score and alpha.
        scores: Names of its scores.
        least_side: Shorter side in pixels that `prepare` has use for, or None for all of it.
    """

    def __init__(self, model: OnnxClassifier) -> None:
        self._model = model
        self.metadata = model.metadata
        self.defaults = Settings(model.default_score, model.alpha)
        self.scores = model.metadata.scores
        self.least_side = model.least_side

    def prepare(self, image: Image.Image) -> NDArray[np.uint8]:
        """What is kept of a photo until its turn comes; takes time, so call it in a thread."""
        return self._model.prepare(image)

    def answer(self, photos: list[NDArray[np.uint8]], settings: Settings) -> list[PhotoAnswer]:
        """Answers for prepared photos, without names."""
        squares = np.stack(photos)
        predictions, logits = self._model.answer_prepared(
            squares, alpha=settings.alpha, score=settings.score
        )
        return [
            PhotoAnswer(
                name="",
                label=answer.label,
                is_unknown=answer.is_unknown,
                ood_score=answer.ood_score,
                p_value=answer.p_value,
                confidence=answer.confidence,
                nearest=self._nearest(row),
                scores=dict(answer.scores),
            )
            for answer, row in zip(predictions, logits, strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        """The fields of `ModelInfo`, without the limits."""
        metadata, summary = self.metadata, self.metadata.calibration
        return {
            **{name: getattr(metadata, name) for name in _TOLD},
            "calibration_photos": summary and summary.sizes,
            "histograms": {
                name: HistogramInfo(edges=histogram.edges, counts=histogram.counts)
                for name, histogram in (summary.histograms if summary else {}).items()
            },
        }

    def _nearest(self, logits: NDArray[np.float32]) -> list[NearestClass]:
        odds = np.exp(logits.astype(np.float64) - logits.max())
        probabilities = odds / odds.sum()
        best = np.argsort(-probabilities, kind="stable")[:_NEAREST]
        return [
            NearestClass(label=self.metadata.classes[k], probability=probabilities[k]) for k in best
        ]
