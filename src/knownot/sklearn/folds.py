"""Rows that a model is calibrated on: set aside once, or in folds where rows are few."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from knownot.data.hold_out import hold_out


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
