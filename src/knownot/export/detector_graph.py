"""The whole answer of a detector as one module, from a photo to the boxes that are shown."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.export import Dim

from knownot.core.calibration import CalibrationTable, flagged
from knownot.errors import ConfigError
from knownot.export.faster_rcnn import TraceableFasterRCNN
from knownot.models.detector import SIZE_BORDERS, UnknownAwareDetector
from knownot.models.faster_rcnn import AdaptedFasterRCNN
from knownot.models.shown_boxes import without_repeats


class DetectorGraph(nn.Module):
    """A photo to its boxes; every formula of scores and p-values is the model's own.

    Args:
        model: A calibrated detector on the CPU.

    Raises:
        ConfigError: If it is no Faster R-CNN.
    """

    def __init__(self, model: UnknownAwareDetector) -> None:
        super().__init__()
        if not isinstance(model.regions, AdaptedFasterRCNN):
            raise ConfigError(
                "export: only classifiers and Faster R-CNN detectors can be exported, and this is "
                f"a detector on {type(model.regions).__name__}"
            )
        self.model = copy.deepcopy(model)
        assert isinstance(self.model.regions, AdaptedFasterRCNN)
        self.detect = TraceableFasterRCNN(self.model.regions)
        self.names = list(model.calibrations)
        groups = len(model.classes) * (len(SIZE_BORDERS) + 1)
        self.table = CalibrationTable(list(model.calibrations.values()), groups)

    def forward(
        self, photo: Tensor, score: Tensor, alpha: Tensor, box_threshold: Tensor
    ) -> tuple[Tensor, ...]:
        """Boxes of a photo.

        Args:
            photo: RGB photo (H, W, 3), uint8.
            score: Int64 scalar, which score decides: index into `names`.
            alpha: Float64 scalar, share of boxes around known objects that may be called unknown.
            box_threshold: Float32 scalar, least confidence of a box that is shown.

        Returns:
            `boxes` (B, 4), float32, corners in pixels; `class_index` (B,), int64; `confidence`
            (B,), float32, descending; `logits` (B, C), float32; `scores` (B, S), float32, in the
            order of `names`; `ood_score` (B,), float32; `p_value` (B,), float64; `is_unknown`
            (B,), bool.
        """
        found = self.detect(photo)
        certain = (found[2] >= box_threshold).nonzero().squeeze(1)
        boxes, labels, confidence, logits, features = (c.index_select(0, certain) for c in found)
        # With a row of zeros at the end: the formulas branch on whether there is any row.
        padded_logits, padded_features = (
            torch.cat([rows, rows.new_zeros(1, rows.shape[1])]) for rows in (logits, features)
        )
        by_name = self.model.row_scores(padded_logits, padded_features)
        scores = torch.stack([by_name[name] for name in self.names], dim=1)[:-1]
        ood_score = scores.index_select(1, score.view(1)).squeeze(1)
        p_value = self.table(ood_score, score, self.model.groups(boxes, labels), alpha)
        unknown = flagged(p_value, alpha)
        shown = without_repeats(boxes, confidence, unknown).nonzero().squeeze(1)
        columns = boxes, labels, confidence, logits, scores, ood_score, p_value, unknown
        return tuple(column.index_select(0, shown) for column in columns)

    def example(self) -> tuple[tuple[Tensor, ...], tuple[dict[int, Dim] | None, ...]]:
        """Inputs to trace it with, and which of their sizes are free."""
        photo = torch.zeros(60, 50, 3, dtype=torch.uint8)
        score, alpha = torch.tensor(0), torch.tensor(0.5, dtype=torch.float64)
        free = {0: Dim("H"), 1: Dim("W")}
        return (photo, score, alpha, torch.tensor(0.5)), (free, None, None, None)
