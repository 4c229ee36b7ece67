"""Calibration of a model of rows on rows that it was not trained on, in folds where rows are few."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from knownot.core.combination import CombinedScore, choose_parts
from knownot.data.hold_out import hold_out
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.unknown_aware import COMBINED_PARTS


def folds(
    of_rows: NDArray[np.int64], cv: int, fraction: float, seed: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Indices of rows to train on and of rows to calibrate on: once, or for each fold.

    Args:
        of_rows: Class of each row (N,).
        cv: Number of folds; fewer where a class has fewer rows. 0 divides the rows once.
        fraction: Share that is set aside then.
        seed: Decides which.

    Yields:
        Two lists; nothing if every class has a single row.
    """
    if not cv:
        kept, held = hold_out(of_rows.tolist(), fraction, seed)
        yield kept, held
        return
    counts = np.bincount(of_rows)
    able = np.flatnonzero(counts[of_rows] >= 2)  # else a model of the others knows no such class
    if not len(able):
        return
    splits = StratifiedKFold(min(cv, counts[counts >= 2].min()), shuffle=True, random_state=seed)
    for _, chosen in splits.split(able, of_rows[able]):
        held = able[chosen].tolist()
        yield sorted({*range(len(of_rows))}.difference(held)), held


class RowCalibration:
    """Scores of rows that the models were not trained on, and of such rows altered."""

    def __init__(self) -> None:
        self.known: list[dict[str, Tensor]] = []
        self.altered: list[list[dict[str, Tensor]]] = []

    @property
    def size(self) -> int:
        """Number of rows."""
        return sum(len(scores["energy"]) for scores in self.known)

    @torch.no_grad()
    def add(self, model: UnknownAwareClassifier, rows: Tensor, seed: int) -> None:
        """Score held-out rows (n, D) by a model of the others."""

        def scores(some: Tensor) -> dict[str, Tensor]:
            found = model.scores(model.classify(some.to(model.device)))
            return {name: values.cpu() for name, values in found.items()}

        self.known.append(scores(rows))
        self.altered.append([scores(kind) for kind in altered_rows(rows, seed)])

    def apply(self, model: UnknownAwareClassifier, rows: Tensor) -> None:
        """Choose the parts of the combined score, and calibrate; if nothing was held out by `rows`."""
        if not self.known:
            self.add(model, rows, seed=0)
        known = _joined(self.known)
        kinds = [_joined(kind) for kind in zip(*self.altered, strict=True)]
        parts = [part for part in COMBINED_PARTS if part in known]
        model.combined = CombinedScore(choose_parts(known, kinds, parts))
        model.calibrate_scores(known)


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def altered_rows(rows: Tensor, seed: int) -> list[Tensor]:
    """Rows (n, D) made unlike their classes in three ways, as photos are altered for photos.

    Every column from a row of its own, so that nothing fits together; means of two rows; and points as
    far beyond one row as another is before it.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(rows.shape, generator=generator).argsort(0)
    other = rows[torch.randperm(len(rows), generator=generator)]
    return [rows.gather(0, order), (rows + other) / 2, 2 * rows - other]
