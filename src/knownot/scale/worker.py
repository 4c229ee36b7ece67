"""What runs in each worker: a model on one core, which answers whole parts."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from knownot.data.spread import Workers
from knownot.errors import DataError
from knownot.models.answers import answers_in_order
from knownot.models.prediction import Prediction
from knownot.runtime import OnnxClassifier
from knownot.runtime.exported import Pixels
from knownot.scale.parts import ROWS
from knownot.scale.sources import as_text, open_listed

# Workers that die over a part, by whatever cause, before its photos are read by another process.
_DEATHS = 2


class Attempts:
    """How often each part was begun; an actor of Ray, since workers forget when they die."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, part: int) -> int:
        """How often it was begun before."""
        self._begun[part] += 1
        return self._begun[part] - 1


class PartScorer:
    """Answers parts; Ray Data makes one in each worker.

    Args:
        model: Reference to the bytes of an exported file, in Ray's store of objects.
        attempts: Handle of an `Attempts`.
        folder: What relative paths are relative to.
        settings: `alpha` and `score` of `OnnxClassifier.predict`.
    """

    def __init__(self, model: Any, attempts: Any, folder: str, settings: dict[str, Any]) -> None:
        import ray

        self.attempts = attempts
        self.folder = folder
        self.settings = settings
        self.reader: Reader | None = None
        with tempfile.TemporaryDirectory(prefix="knownot-") as scratch:
            file = Path(scratch, "model.onnx")
            file.write_bytes(ray.get(model))
            self.model = OnnxClassifier(file, threads=1)

    def __call__(self, parts: pa.Table) -> pa.Table:
        """One row (part, rows) for each row (part, photos), so that Ray cannot split a part."""
        rows = [self._part(**part) for part in parts.to_pylist()]
        kind = pa.list_(pa.struct(list(ROWS)))
        return pa.table({"part": parts["part"], "rows": pa.array(rows, kind)})

    def _part(self, part: int, photos: list[bytes]) -> list[dict[str, Any]]:
        import ray

        names = list(
            map(os.fsdecode, photos)
        )  # as bytes they came through arrow, whatever they are
        if ray.get(self.attempts.begin.remote(part)) < _DEATHS:
            return self._rows(names)
        self.reader = Reader()
        try:
            return self._rows(names)
        finally:
            self.reader.close()
            self.reader = None

    def _rows(self, photos: list[str]) -> list[dict[str, Any]]:
        size = self.model.batch_size
        return [
            {"path": as_text(photo), "error": as_text(answer.error)}
            if answer.error
            else {**{name: getattr(answer, name) for name in ROWS.names}, "path": as_text(photo)}
            for photo, answer in zip(
                photos,
                answers_in_order(
                    photos, self._read, self._answer, Prediction.failed, size, Workers()
                ),
                strict=True,
            )
        ]

    def _read(self, photo: str) -> Pixels:
        read = open_listed if self.reader is None else self.reader.open_listed
        return self.model.prepare(read(photo, self.folder, self.model.least_side))

    def _answer(self, squares: list[Pixels]) -> list[Prediction]:
        return self.model.answer_prepared(np.stack(squares), **self.settings)[0]


class Reader:
    """Reads photos in a process of its own, so that one which ends its reader ends no worker."""

    def __init__(self) -> None:
        self._one_at_a_time = Lock()  # who else is read when the process dies would be blamed, too
        self._process = self._start()

    def open_listed(self, photo: str, folder: str, at_least: int) -> Image.Image:
        """As `knownot.scale.sources.open_listed`; `DataError` as well if the process ends."""
        with self._one_at_a_time:
            try:
                return self._process.submit(open_listed, photo, folder, at_least).result()
            except BrokenProcessPool:
                self._process = self._start()
                raise DataError(f"{photo}: whoever reads it dies (out of memory?)") from None

    def close(self) -> None:
        """End the process."""
        self._process.shutdown()

    @staticmethod
    def _start() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, mp_context=get_context("spawn"))
