"""What exported classifiers and detectors share: settings, and the file that ONNX Runtime runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from knownot.errors import ConfigError, MissingExtraError, ModelFileError
from knownot.runtime.metadata import ClassifierMetadata, DetectorMetadata, ExportMetadata
from knownot.runtime.onnx_file import unsealed

UNKNOWN = "unknown"
Pixels = NDArray[np.uint8]
Run = Callable[[dict[str, NDArray[Any]]], Sequence[NDArray[Any]]]
Metadata = TypeVar("Metadata", bound=ExportMetadata)


class ExportedModel(Generic[Metadata]):
    """A model whose graph some runtime runs.

    Args:
        metadata: What the file says about itself.
        run: Maps arrays by name of input to the list of outputs, in order.

    Attributes:
        metadata: Classes, threshold, versions, and what the comparison with torch measured.
    """

    def __init__(self, metadata: Metadata, run: Run) -> None:
        self.metadata = metadata
        self._run = run

    @property
    def classes(self) -> list[str]:
        """Class names."""
        return self.metadata.classes

    @property
    def alpha(self) -> float:
        """Share of in-distribution photos, or boxes, that may be called unknown."""
        return self.metadata.alpha

    @property
    def default_score(self) -> str:
        """Name of the score that decides."""
        return self.metadata.default_score

    def _settings(self, alpha: float | None, score: str | None) -> dict[str, NDArray[Any]]:
        alpha = self.alpha if alpha is None else alpha
        if not 0 < alpha < 1:
            raise ConfigError(f"alpha: expected a fraction in (0, 1), got {alpha}")
        score = score or self.default_score
        names = self.metadata.scores
        if score not in names:
            raise ConfigError(f"score: expected one of {', '.join(names)}, got {score!r}")
        return {"score": np.array(names.index(score)), "alpha": np.array(alpha)}

    def _outputs(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(zip(self.metadata.outputs, self._run(feeds), strict=True))


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


def start(file: OpenedFile, threads: int | None) -> Run:
    """An ONNX Runtime session for the file's graph, on the CPU.

    Args:
        file: The file; nothing in it is executed but ONNX operators.
        threads: Threads of ONNX Runtime; all cores if not given.

    Raises:
        ModelFileError: If ONNX Runtime cannot load it, or it holds another graph.
        MissingExtraError: If ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime", "runtime", "an exported model") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4  # what goes wrong is raised, too
    try:
        session = onnxruntime.InferenceSession(
            file.data, options, providers=["CPUExecutionProvider"]
        )
        names = tuple(output.name for output in session.get_outputs())
    except Exception as error:  # ONNX Runtime's errors share no base of their own
        first_line = str(error).strip().splitlines()[0][:200]
        raise ModelFileError(f"{file.path}: ONNX Runtime cannot load it ({first_line})") from None
    if names != file.metadata.outputs:
        raise ModelFileError(f"{file.path}: has outputs {', '.join(names)}; export it anew")
    return lambda feeds: session.run(None, feeds)
