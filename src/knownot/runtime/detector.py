"""`OnnxDetector`: an exported detector that answers like the model folder it came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from knownot.data.given_photos import as_list, to_pil
from knownot.data.photo import open_photo
from knownot.data.spread import Workers, threads_for
from knownot.data.thin import refuse_thin
from knownot.errors import ConfigError
from knownot.models.answers import answers_in_order
from knownot.models.prediction import UNKNOWN, Detection, DetectionPrediction
from knownot.runtime.exported import (
    ExportedModel,
    OpenedFile,
    Pixels,
    Run,
    load_as,
)
from knownot.runtime.metadata import DetectorMetadata


class ExportedDetector(ExportedModel[DetectorMetadata]):
    """A detector whose graph some runtime runs.

    The graph holds all from the pixels of a photo to the boxes that are shown; here photos are
    opened and the answers are put into words.

    Args:
        metadata: What the file says about itself.
        run: Maps arrays by name of input to the list of outputs, in order.
        run_on_one_core: The same on one core, for photos side by side; by default `run`.
        cores: Photos side by side.

    Attributes:
        metadata: Classes, threshold, versions, and what the comparison with torch measured.
    """

    task: ClassVar[Literal["classify", "detect"]] = "detect"
    least_side: ClassVar[None] = None  # boxes are found in, and told in pixels of, the whole photo

    @property
    def batch_size(self) -> int:
        """Photos that go through the graph together: one, as their sizes differ."""
        return 1

    @property
    def box_threshold(self) -> float:
        """Least confidence of a box that is shown."""
        return self.metadata.box_threshold

    def predict(
        self,
        photos: Any,
        *,
        alpha: float | None = None,
        score: str | None = None,
        proposals: bool = False,
    ) -> list[DetectionPrediction]:
        """Answers for photos, as `UnknownAwareDetector.predict` gives them.

        Raises:
            ConfigError: If there is no such score, alpha is out of range, or proposals are asked
                for: an exported detector has none.
        """
        return list(
            self.predict_iter(as_list(photos), alpha=alpha, score=score, proposals=proposals)
        )

    def predict_iter(
        self,
        photos: Sequence[Any],
        *,
        alpha: float | None = None,
        score: str | None = None,
        box_threshold: float | None = None,
        proposals: bool = False,
    ) -> Iterator[DetectionPrediction]:
        """Like `predict`, one answer after another; `box_threshold` may differ from the model's."""
        if proposals:
            raise ConfigError(
                "proposals: an exported detector has none; predict with the model folder for them"
            )
        settings = self._box_settings(alpha, score, box_threshold)
        count = threads_for(len(photos), self.batch_size, self._cores)
        run = self._run if count == 1 else self._run_on_one_core
        with ThreadPoolExecutor(count, thread_name_prefix="photo") as pool:
            yield from answers_in_order(
                photos,
                self._pixels,
                lambda pixels: [self._answer(one, settings, run) for one in pixels],
                DetectionPrediction.failed,
                self.batch_size,
                Workers(count, pool if count > 1 else None),
            )

    def prepare(self, image: Image.Image) -> Pixels:
        """The pixels (H, W, 3), uint8, of an RGB photo; the graph resizes them.

        Raises:
            DataError: If it is so thin that nothing would be left of its shorter side.
        """
        refuse_thin(image.size, self.metadata.longest_side, "photo")
        return np.asarray(image)

    def answer_prepared(
        self,
        photos: Sequence[Pixels],
        *,
        alpha: float | None = None,
        score: str | None = None,
        box_threshold: float | None = None,
    ) -> list[DetectionPrediction]:
        """Answers for pixels of `prepare`.

        Raises:
            ConfigError: If there is no such score, or a setting is out of range.
        """
        settings = self._box_settings(alpha, score, box_threshold)
        return [self._answer(pixels, settings) for pixels in photos]

    def _pixels(self, photo: Any) -> Pixels:
        if not isinstance(photo, (str, Path)):
            return self.prepare(to_pil(photo))
        image = open_photo(photo)
        refuse_thin(image.size, self.metadata.longest_side, str(photo))
        return self.prepare(image)

    def _box_settings(
        self, alpha: float | None, score: str | None, box_threshold: float | None
    ) -> dict[str, NDArray[Any]]:
        least = self.box_threshold if box_threshold is None else box_threshold
        if not 0 <= least <= 1:
            raise ConfigError(f"box_threshold: expected a fraction in [0, 1], got {least}")
        return {**self._settings(alpha, score), "box_threshold": np.array(least, np.float32)}

    def _answer(
        self, pixels: Pixels, settings: dict[str, NDArray[Any]], run: Run | None = None
    ) -> DetectionPrediction:
        found = self._outputs({"photo": pixels, **settings}, run)
        names = ("boxes", "class_index", "confidence", "scores", "ood_score", "p_value")
        columns = (found[name].tolist() for name in (*names, "is_unknown"))
        boxes = [
            Detection(
                box=tuple(box),
                label=UNKNOWN if unknown else self.classes[k],
                is_unknown=unknown,
                ood_score=ood_score,
                p_value=p_value,
                nearest_class=self.classes[k],
                confidence=confidence,
                scores=dict(zip(self.metadata.scores, scores, strict=True)),
            )
            for box, k, confidence, scores, ood_score, p_value, unknown in zip(
                *columns, strict=True
            )
        ]
        height, width = pixels.shape[:2]
        return DetectionPrediction(boxes, width, height)


class OnnxDetector(ExportedDetector):
    """A detector exported by `knownot export`, run by ONNX Runtime.

    Args:
        path: File to load; nothing in it is executed but ONNX operators.
        threads: Cores that are used; all usable ones if not given.

    Raises:
        ModelFileError: If the file is missing, damaged, or holds no detector.
        MissingExtraError: If ONNX Runtime is not installed.
    """

    def __init__(self, path: str | Path | OpenedFile, *, threads: int | None = None) -> None:
        super().__init__(*load_as(DetectorMetadata, path, threads))
