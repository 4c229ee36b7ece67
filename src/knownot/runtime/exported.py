"""What exported classifiers and detectors share: settings, and the file that ONNX Runtime runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from knownot.data.cores import usable_cores
from knownot.errors import ConfigError, MissingExtraError, ModelFileError
from knownot.runtime.metadata import ClassifierMetadata, DetectorMetadata, ExportMetadata
from knownot.runtime.onnx_file import unsealed
from knownot.runtime.sessions import Sessions

Pixels = NDArray[np.uint8]
Run = Callable[[dict[str, NDArray[Any]]], Sequence[NDArray[Any]]]
Metadata = TypeVar("Metadata", bound=ExportMetadata)


class ExportedModel(Generic[Metadata]):
    """A model whose graph some runtime runs.

    Args:
        metadata: What the file says about itself.
        run: Maps arrays by name of input to the list of outputs, in order.
        run_on_one_core: The same on one core, for photos side by side; by default `run`.
        cores: Cores, and so batches side by side.

    Attributes:
        metadata: Classes, threshold, versions, and what the comparison with torch measured.
    """

    def __init__(
        self, metadata: Metadata, run: Run, run_on_one_core: Run | None = None, cores: int = 1
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
        """Share of in-distribution photos, or boxes, that may be called unknown."""
        return self.metadata.alpha

    @property
    def calibrated_on(self) -> int | None:
        """Scores that p-values are ranks among, of the largest group; None if the file does not tell."""
        summary = self.metadata.calibration
        return None if summary is None else max(summary.sizes, default=None)

    @property
    def default_score(self) -> str:
        """Name of the score that decides."""
        return self.metadata.default_score

    def _settings(self, alpha: float | None, score: str | None) -> dict[str, NDArray[Any]]:
        alpha = self.alpha if alpha is None else float(alpha)
        if not 0 < alpha < 1:
            raise ConfigError(f"alpha: expected a fraction in (0, 1), got {alpha}")
        score = score or self.default_score
        names = self.metadata.scores
        if score not in names:
            raise ConfigError(f"score: expected one of {', '.join(names)}, got {score!r}")
        return {"score": np.array(names.index(score)), "alpha": np.array(alpha)}

    def _outputs(
        self, feeds: dict[str, NDArray[Any]], run: Run | None = None
    ) -> dict[str, NDArray[Any]]:
        return dict(zip(self.metadata.outputs, (run or self._run)(feeds), strict=True))


@dataclass(frozen=True)
class OpenedFile:
    """A file whose checksum holds.

    Attributes:
        path: Where it is.
        data: Its bytes.
        metadata: What it says about itself.
    """

    path: Path
    data: bytes
    metadata: ClassifierMetadata | DetectorMetadata


def open_file(path: str | Path) -> OpenedFile:
    """Read a file of `knownot export`.

    Raises:
        ModelFileError: If it is missing, damaged, or not such a file.
    """
    path = Path(path)
    data, description = unsealed(path)
    try:
        return OpenedFile(path, data, ExportMetadata.from_json(description))
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from None


def load_as(
    kind: type[Metadata], path: str | Path | OpenedFile, threads: int | None
) -> tuple[Metadata, Run, Run, int]:
    """What `ExportedModel` takes, for a file that ONNX Runtime runs on the CPU.

    Args:
        kind: What the file is to hold.
        path: File to load; nothing in it is executed but ONNX operators.
        threads: Cores that are used; all usable ones if not given.

    Raises:
        ModelFileError: If the file is missing, damaged, or holds something else.
        MissingExtraError: If ONNX Runtime is not installed.
    """
    file = path if isinstance(path, OpenedFile) else open_file(path)
    metadata = file.metadata
    if not isinstance(metadata, kind):
        there, wanted = ("a classifier", "a detector")[:: 1 if metadata.task == "classify" else -1]
        raise ModelFileError(
            f"{file.path}: holds {there}, not {wanted}; open it with knownot.runtime.open_onnx"
        )
    cores = threads or usable_cores()
    sessions = _start(file, cores)
    return metadata, sessions.run, sessions.run_on_one_core, cores


def _start(file: OpenedFile, cores: int) -> Sessions:
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        raise MissingExtraError("onnxruntime", "runtime", "an exported model") from None
    try:
        sessions = Sessions(file.data, cores)
    except Exception as error:  # ONNX Runtime's errors share no base of their own
        first_line = str(error).strip().splitlines()[0][:200]
        raise ModelFileError(f"{file.path}: ONNX Runtime cannot load it ({first_line})") from None
    if sessions.outputs != file.metadata.outputs:
        names = ", ".join(sessions.outputs)
        raise ModelFileError(f"{file.path}: has outputs {names}; export it anew")
    return sessions
