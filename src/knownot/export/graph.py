"""The whole answer of a model as one module, from photos to `is_unknown`, ready to be traced."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim

from knownot.core.calibration import CalibrationTable, flagged
from knownot.export.resize import centre_square
from knownot.models.classifier import UnknownAwareClassifier

NEAREST = 3


class ClassifierGraph(nn.Module):
    """Photos to answers; every formula is the model's own.

    Args:
        model: A calibrated classifier.
        nearest: Whether it finds the nearest training photos as well.
    """

    def __init__(self, model: UnknownAwareClassifier, nearest: bool = False) -> None:
        super().__init__()
        self.model = model
        self.nearest = nearest
        self.names = list(model.calibrations)
        self.table = CalibrationTable(list(model.calibrations.values()), len(model.classes))

    def forward(
        self, photos: Tensor, prepared: Tensor, score: Tensor, alpha: Tensor
    ) -> tuple[Tensor, ...]:
        """Answers for photos.

        Args:
            photos: RGB photos (N, H, W, 3), uint8.
            prepared: Bool scalar: the photos are centre squares (N, S, S, 3) already.
            score: Int64 scalar, which score decides: index into `names`.
            alpha: Float64 scalar, share of in-distribution photos that may be called unknown.

        Returns:
            `logits` (N, K), float32; `class_index` (N,), int64; `confidence` (N,), float32;
            `scores` (N, S), float32, in the order of `names`; `ood_score` (N,), float32;
            `p_value` (N,), float64; `is_unknown` (N,), bool; of the nearest training photos the
            `nearest_rows` (N, 3), int64, if it finds them.
        """
        output = self.model(self._squares(photos, prepared))
        by_name = self.model.scores(output)
        scores = torch.stack([by_name[name] for name in self.names], dim=1)
        ood_score = scores.index_select(1, score.view(1)).squeeze(1)
        confidence, index = output.logits.softmax(1).max(1)
        p_value = self.table(ood_score, score, output.logits.argmax(1), alpha)
        unknown = flagged(p_value, alpha)
        answers = output.logits, index, confidence, scores, ood_score, p_value, unknown
        if not self.nearest:
            return answers
        assert self.model.feature_scores is not None
        return *answers, self.model.feature_scores.nearest(output.scored_features, NEAREST)

    def example(self) -> tuple[tuple[Tensor, ...], tuple[dict[int, Dim] | None, ...]]:
        """Inputs to trace it with, and which of their sizes are free."""
        # Not square, and more than one: equal sizes, or a size of 1, would be taken for constants.
        photos = torch.zeros(2, 60, 50, 3, dtype=torch.uint8)
        scalars = torch.tensor(False), torch.tensor(0), torch.tensor(0.5, dtype=torch.float64)
        return (photos, *scalars), ({0: Dim("N"), 1: Dim("H"), 2: Dim("W")}, None, None, None)

    def _squares(self, photos: Tensor, prepared: Tensor) -> Tensor:
        size, crop = self.model.preprocessing.image_size, self.model.preprocessing.crop

        def as_they_are(photos: Tensor) -> Tensor:
            # Says to the tracer that the shape is the same in both cases.
            square = photos.index_select(1, torch.arange(size)).index_select(2, torch.arange(size))
            return square.permute(0, 3, 1, 2).float().contiguous()

        def resized(photos: Tensor) -> Tensor:
            return centre_square(photos, size, crop).float().contiguous()

        squares: Tensor = torch.cond(prepared, as_they_are, resized, (photos,))
        return squares
