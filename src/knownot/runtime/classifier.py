"""`OnnxClassifier`: an exported classifier that answers like the model folder it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from knownot.data.cores import usable_cores
from knownot.data.given_photos import as_list, to_pil
from knownot.data.photo import open_photo
from knownot.data.spread import Workers, threads_for
from knownot.data.square import centre_square, least_side
from knownot.errors import ConfigError, MissingExtraError, ModelFileError
from knownot.models.answers import answers_in_order
from knownot.models.prediction import Prediction
from knownot.runtime.metadata import INPUTS, OUTPUTS, ExportMetadata
from knownot.runtime.onnx_file import unsealed
from knownot.runtime.sessions import Sessions

# As in the torch model: small batches keep the activations in the cache.
_BATCH = 8
_UNKNOWN = "unknown"
Pixels = NDArray[np.uint8]
Run = Callable[[dict[str, NDArray[Any]]], Sequence[NDArray[Any]]]


class ExportedClassifier:
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

    def __init__(
        self,
        metadata: ExportMetadata,
        run: Run,
        run_on_one_core: Run | None = None,
        cores: int = 1,
    ) -> None:
        self.metadata = metadata
        self._run = run
        self._run_on_one_core = run_on_one_core or run
        self._cores = cores

    @property
    def classes(self) -> list[str]:
        """Class names."""
        return self.metadata.classes

    @property
    def alpha(self) -> float:
        """Share of in-distribution photos that may be called unknown."""
        return self.metadata.alpha

    @property
    def batch_size(self) -> int:
        """Photos that go through the graph together."""
        return _BATCH

    @property
    def default_score(self) -> str:
        """Name of the score that decides."""
        return self.metadata.default_score

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
        size = batch_size or _BATCH
        count = threads_for(len(photos), size, self._cores)
        run = self._run if count == 1 else self._run_on_one_core
        with ThreadPoolExecutor(count, thread_name_prefix="batch") as pool:
            yield from answers_in_order(
                photos,
                self._square,
                lambda squares: self._answer(np.stack(squares), True, settings, run),
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
    ) -> tuple[list[Prediction], NDArray[np.float32]]:
        """Answers for squares (N, S, S, 3) of `prepare`, and the logits (N, K) of the classes.

        Raises:
            ConfigError: If there is no such score, or alpha is out of range.
        """
        found = self._outputs(squares, True, self._settings(alpha, score))
        return self._in_words(found), found["logits"]

    def _settings(self, alpha: float | None, score: str | None) -> dict[str, Any]:
        alpha = self.alpha if alpha is None else alpha
        if not 0 < alpha < 1:
            raise ConfigError(f"alpha: expected a fraction in (0, 1), got {alpha}")
        score = score or self.default_score
        names = self.metadata.scores
        if score not in names:
            raise ConfigError(f"score: expected one of {', '.join(names)}, got {score!r}")
        return {"score": np.array(names.index(score)), "alpha": np.array(alpha)}

    def _square(self, photo: Any) -> Pixels:
        if isinstance(photo, (str, Path)):
            return self.prepare(open_photo(photo, at_least=self.least_side))
        return self.prepare(to_pil(photo))

    def _answer(
        self, photos: Pixels, prepared: bool, settings: dict[str, Any], run: Run | None = None
    ) -> list[Prediction]:
        return self._in_words(self._outputs(photos, prepared, settings, run))

    def _outputs(
        self, photos: Pixels, prepared: bool, settings: dict[str, Any], run: Run | None = None
    ) -> dict[str, NDArray[Any]]:
        feeds = dict(zip(INPUTS[:2], (photos, np.array(prepared)), strict=True))
        return dict(zip(OUTPUTS, (run or self._run)(feeds | settings), strict=True))

    def _in_words(self, found: dict[str, NDArray[Any]]) -> list[Prediction]:
        columns = (found[name].tolist() for name in OUTPUTS[1:])
        return [
            Prediction(
                label=_UNKNOWN if unknown else self.classes[k],
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
        ModelFileError: If the file is missing, damaged, or not such a model.
        MissingExtraError: If ONNX Runtime is not installed.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        try:
            import onnxruntime  # noqa: F401
        except ImportError:
            raise MissingExtraError("onnxruntime", "runtime", "an exported model") from None
        path = Path(path)
        data, description = unsealed(path)
        try:
            metadata = ExportMetadata.from_json(description)
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from None
        cores = threads or usable_cores()
        try:
            sessions = Sessions(data, cores)
        except Exception as error:  # ONNX Runtime's errors share no base of their own
            first_line = str(error).strip().splitlines()[0][:200]
            raise ModelFileError(f"{path}: ONNX Runtime cannot load it ({first_line})") from None
        if sessions.outputs != OUTPUTS:
            names = ", ".join(sessions.outputs)
            raise ModelFileError(f"{path}: has outputs {names}; export it anew")
        super().__init__(metadata, sessions.run, sessions.run_on_one_core, cores)
