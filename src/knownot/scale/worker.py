"""What runs in each worker: a model on one core, which answers whole parts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from knownot.data.spread import Workers
from knownot.models.answers import answers_in_order
from knownot.models.prediction import Prediction
from knownot.runtime import OnnxClassifier
from knownot.runtime.exported import Pixels
from knownot.scale.parts import ROWS
from knownot.scale.sources import open_listed


class PartScorer:
    """Answers parts; Ray Data makes one in each worker.

    Args:
        model: Reference to the bytes of an exported file, in Ray's store of objects.
        folder: What relative paths are relative to.
        settings: `alpha` and `score` of `OnnxClassifier.predict`.
    """

    def __init__(self, model: Any, folder: str, settings: dict[str, Any]) -> None:
        import ray

        self.folder = folder
        self.settings = settings
        with tempfile.TemporaryDirectory(prefix="knownot-") as scratch:
            file = Path(scratch, "model.onnx")
            file.write_bytes(ray.get(model))
            self.model = OnnxClassifier(file, threads=1)

    def __call__(self, parts: pa.Table) -> pa.Table:
        """One row (part, rows) for each row (part, photos), so that Ray cannot split a part."""
        rows = [self._rows(photos) for photos in parts["photos"].to_pylist()]
        kind = pa.list_(pa.struct(list(ROWS)))
        return pa.table({"part": parts["part"], "rows": pa.array(rows, kind)})

    def _rows(self, photos: list[str]) -> list[dict[str, Any]]:
        size = self.model.batch_size
        return [
            {"path": answer.path, "error": answer.error}
            if answer.error
            else {name: getattr(answer, name) for name in ROWS.names}
            for answer in answers_in_order(
                photos, self._read, self._answer, Prediction.failed, size, Workers()
            )
        ]

    def _read(self, photo: str) -> Pixels:
        return self.model.prepare(open_listed(photo, self.folder, self.model.least_side))

    def _answer(self, squares: list[Pixels]) -> list[Prediction]:
        return self.model.answer_prepared(np.stack(squares), **self.settings)[0]
