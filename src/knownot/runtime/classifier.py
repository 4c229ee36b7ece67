"""`OnnxClassifier`: an exported classifier that answers like the model folder it came from."""

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
from knownot.data.square import centre_square, least_side
from knownot.models.answers import answers_in_order
from knownot.models.prediction import UNKNOWN, Prediction
from knownot.runtime.exported import (
    ExportedModel,
    OpenedFile,
    Pixels,
    Run,
    load_as,
)
from knownot.runtime.metadata import ClassifierMetadata

# As in the torch model: small batches keep the activations in the cache.
_BATCH = 8


class ExportedClassifier(ExportedModel[ClassifierMetadata]):
    """A classifier whose graph some runtime runs.

    The graph holds every formula; here photos are opened, cut to squares by the code that the
    torch model uses too, and the answers are put into words.

    Args:
        metadata: What the file says about itself.
        run: Maps arrays by name of input to the list of outputs, in order.
        run_on_one_core: The same on one core, for batches side by side; by default `run`.
        cores: Batches side by side.

    Attributes:
        metadata: Classes, threshold, versions, and what the comparison with torch measured.
    """

    task: ClassVar[Literal["classify", "detect"]] = "classify"

    @property
    def batch_size(self) -> int:
        """Photos that go through the graph together."""
        return _BATCH

    def predict(
        self,
        photos: Any,
        *,
        alpha: float | None = None,
        score: str | None = None,
        batch_size: int | None = None,
    ) -> list[Prediction]:
        """Answers for photos, as `UnknownAwareClassifier.predict` gives them.

        Raises:
            ConfigError: If there is no such score, or alpha is out of range.
        """
        photos = as_list(photos)
        return list(self.predict_iter(photos, alpha=alpha, score=score, batch_size=batch_size))

    def predict_iter(
        self,
        photos: Sequence[Any],
        *,
        alpha: float | None = None,
        score: str | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Prediction]:
        """Like `predict`, one answer after another in bounded memory."""
        settings = self._settings(alpha, score)
        size = _BATCH if batch_size is None else batch_size
        count = threads_for(len(photos), size, self._cores)
        run = self._run if count == 1 else self._run_on_one_core
        with ThreadPoolExecutor(count, thread_name_prefix="batch") as pool:
            yield from answers_in_order(
                photos,
                self._square,
                lambda squares: self._answer(np.stack(squares), True, settings, run),
                Prediction.failed,
                size,
                Workers(count, pool if count > 1 else None),
            )

    def predict_whole(
        self, photos: Pixels, *, alpha: float | None = None, score: str | None = None
    ) -> list[Prediction]:
        """Answers for photos (N, H, W, 3), uint8, that the graph itself crops and resizes.

        This is the way of a caller with ONNX Runtime alone. It takes 24 bytes of memory a pixel, and
        more time than `predict`.
        """
        return self._answer(photos, False, self._settings(alpha, score))

    @property
    def least_side(self) -> int:
        """Shorter side in pixels that `prepare` has use for; photos may be decoded smaller."""
        return least_side(self.metadata.image_size, self.metadata.crop)

    def prepare(self, image: Image.Image) -> Pixels:
        """The square (S, S, 3), uint8, of an RGB photo that the network sees."""
        return centre_square(image, self.metadata.image_size, self.metadata.crop)

    def answer_prepared(
        self, squares: Pixels, *, alpha: float | None = None, score: str | None = None
    ) -> tuple[list[Prediction], NDArray[np.float32], NDArray[np.int64] | None]:
        """Answers for squares (N, S, S, 3) of `prepare`.

        Returns:
            The answers, the logits (N, K) of the classes, and the rows (N, n) of the nearest training
            photos, the nearest first; None where `metadata.bank_rows` is 0.

        Raises:
            ConfigError: If there is no such score, or alpha is out of range.
        """
        found = self._found(squares, True, self._settings(alpha, score))
        return self._in_words(found), found["logits"], found.get("nearest_rows")

    def _square(self, photo: Any) -> Pixels:
        if isinstance(photo, (str, Path)):
            return self.prepare(open_photo(photo, at_least=self.least_side))
        return self.prepare(to_pil(photo))

    def _answer(
        self, photos: Pixels, prepared: bool, settings: dict[str, Any], run: Run | None = None
    ) -> list[Prediction]:
        return self._in_words(self._found(photos, prepared, settings, run))

    def _found(
        self, photos: Pixels, prepared: bool, settings: dict[str, Any], run: Run | None = None
    ) -> dict[str, NDArray[Any]]:
        feeds = {"photos": photos, "prepared": np.array(prepared), **settings}
        return self._outputs(feeds, run)

    def _in_words(self, found: dict[str, NDArray[Any]]) -> list[Prediction]:
        names = ("class_index", "confidence", "scores", "ood_score", "p_value", "is_unknown")
        columns = (found[name].tolist() for name in names)
        return [
            Prediction(
                label=UNKNOWN if unknown else self.classes[k],
                is_unknown=unknown,
                ood_score=ood_score,
                p_value=p_value,
                nearest_class=self.classes[k],
                confidence=confidence,
                scores=dict(zip(self.metadata.scores, scores, strict=True)),
            )
            for k, confidence, scores, ood_score, p_value, unknown in zip(*columns, strict=True)
        ]


class OnnxClassifier(ExportedClassifier):
    """A classifier exported by `knownot export`, run by ONNX Runtime.

    Args:
        path: File to load; nothing in it is executed but ONNX operators.
        threads: Cores that are used: by a batch that is alone, or by as many batches at once, each
            on one; all usable cores if not given.

    Raises:
        ModelFileError: If the file is missing, damaged, or holds no classifier.
        MissingExtraError: If ONNX Runtime is not installed.
    """

    def __init__(self, path: str | Path | OpenedFile, *, threads: int | None = None) -> None:
        super().__init__(*load_as(ClassifierMetadata, path, threads))
