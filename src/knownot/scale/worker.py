"""What runs in each worker: a model on one core, which answers whole parts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from knownot.models.answers import answers_in_order
from knownot.models.prediction import Prediction
from knownot.runtime import OnnxClassifier
from knownot.runtime.classifier import Pixels
from knownot.scale.job import ROWS
from knownot.scale.sources import is_remote, open_listed

# A store answers late, and reading from it takes no core.
_REMOTE_READERS = 16


@dataclass(frozen=True)
class Settings:
    """How photos are answered.

    Attributes:
        score: Name of the score that decides.
        alpha: Share of in-distribution photos that may be called unknown.
        batch_size: Photos that go through the model together.
        folder: What relative paths are relative to.
    """

    score: str
    alpha: float
    batch_size: int
    folder: str


class PartScorer:
    """Answers parts; Ray Data makes one in each worker.

    Args:
        model: Bytes of an exported file, in Ray's store of objects.
        settings: How to answer.
    """

    def __init__(self, model: Any, settings: Settings) -> None:
        import ray

        self.settings = settings
        with tempfile.TemporaryDirectory(prefix="knownot-") as scratch:
            file = Path(scratch, "model.onnx")
            file.write_bytes(ray.get(model))
            self.model = OnnxClassifier(file, threads=1)

    def __call__(self, parts: pa.Table) -> pa.Table:
        """Rows `(part, rows)` for rows `(part, photos)`, whatever Ray put together."""
        rows = [self._rows(photos) for photos in parts["photos"].to_pylist()]
        kind = pa.list_(pa.struct(list(ROWS)))
        return pa.table({"part": parts["part"], "rows": pa.array(rows, kind)})

    def _rows(self, photos: list[str]) -> list[dict[str, Any]]:
        answers = self._answers(photos)
        return [_row(photo, answer) for photo, answer in zip(photos, answers, strict=True)]

    def _answers(self, photos: list[str]) -> Iterator[Prediction]:
        model, settings = self.model, self.settings

        def read(photo: str) -> Pixels:
            return model.prepare(open_listed(photo, settings.folder, model.least_side))

        def answer(squares: list[Pixels]) -> list[Prediction]:
            chosen: dict[str, Any] = {"alpha": settings.alpha, "score": settings.score}
            return model.answer_prepared(np.stack(squares), **chosen)[0]

        readers = _REMOTE_READERS if any(map(is_remote, photos)) else 1
        return answers_in_order(photos, read, answer, settings.batch_size, readers)


def _row(photo: str, answer: Prediction) -> dict[str, Any]:
    if answer.error is not None:
        return {"path": photo, "error": answer.error}
    return {
        "path": photo,
        "label": answer.label,
        "ood_score": answer.ood_score,
        "p_value": answer.p_value,
        "is_unknown": answer.is_unknown,
    }
