"""Write a model as one file for other runtimes, kept only if that gives the model's own answers."""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import knownot
from knownot.errors import ConfigError, DataError, MissingExtraError
from knownot.export.calibration_summary import summarise
from knownot.export.detector_graph import DetectorGraph
from knownot.export.detector_parity import check_detector_parity
from knownot.export.graph import ClassifierGraph
from knownot.export.onnx import onnx_writer
from knownot.export.parity import Parity, check_parity
from knownot.export.torch_program import load_program, program_writer
from knownot.export.trace import trace
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.detector import SIZE_BORDERS, UnknownAwareDetector
from knownot.models.unknown_aware import UnknownAwareModel
from knownot.runtime import open_onnx
from knownot.runtime.metadata import ClassifierMetadata, DetectorMetadata

FormatName = Literal["onnx", "torch"]
ENDINGS: dict[FormatName, str] = {"onnx": ".onnx", "torch": ".pt2"}
_WRITERS: dict[FormatName, Any] = {"onnx": onnx_writer, "torch": program_writer}
_READERS: dict[FormatName, Any] = {"onnx": open_onnx, "torch": load_program}
_NEEDS: dict[FormatName, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "torch": (),
}


def export_model(
    model: UnknownAwareModel,
    output: str | Path,
    *,
    form: FormatName = "onnx",
    photos: Sequence[Path] = (),
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda done: None,
) -> ClassifierMetadata | DetectorMetadata:
    """Write `model` to `output`, compare the answers, and keep the file only if they agree.

    Args:
        model: A calibrated classifier, or a Faster R-CNN detector.
        output: File to write, under a temporary name beside it until the comparison has passed.
        form: "onnx", or for a classifier "torch": a `torch.export` program.
        photos: Photo files for the comparison, beside generated ones.
        overwrite: Replace a file that exists.
        advance: Called with the number of photos compared.

    Returns:
        What the file says about itself, the comparison included.

    Raises:
        ConfigError: If it is a detector of another kind, or to be a `torch.export` program.
        DataError: If `output` exists or cannot be written, no given photo can be read, or a
            detector found no box to compare.
        ExportError: If the answers differ.
        MissingExtraError: If a package for the export is missing.
        ModelFileError: If the model is not calibrated.
    """
    output = Path(output)
    check_output(output, overwrite)
    if form == "torch" and isinstance(model, UnknownAwareDetector):
        raise ConfigError("format: a detector can be exported as onnx only, leave --format out")
    for package in _NEEDS[form]:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "export", "the export")
    model.calibration(model.default_score)
    model = copy.deepcopy(model).cpu().eval()
    graph = _graph(model)
    metadata = _describe(model, _NEEDS[form])
    write = _WRITERS[form](trace(graph), metadata)
    temporary = output.with_name(f".{output.name}.part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(write(metadata))
        parity = _compared(model, _READERS[form](temporary), photos, advance)
        metadata.parity.update(parity.to_dict())
        temporary.write_bytes(write(metadata))
        temporary.replace(output)
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)
    return metadata


def check_output(output: Path, overwrite: bool) -> None:
    """Raise `DataError` unless a model may be written to `output`."""
    if output.is_dir():
        raise DataError(f"{output}: is a folder; give the name of a file, such as model.onnx")
    if output.exists() and not overwrite:
        raise DataError(f"{output}: exists; choose another name with -o, or add --overwrite")


def _graph(model: UnknownAwareModel) -> ClassifierGraph | DetectorGraph:
    if isinstance(model, UnknownAwareDetector):
        return DetectorGraph(model)
    assert isinstance(model, UnknownAwareClassifier)
    return ClassifierGraph(model)


def _compared(
    model: UnknownAwareModel, exported: Any, photos: Sequence[Path], advance: Callable[[int], None]
) -> Parity:
    if isinstance(model, UnknownAwareDetector):
        return check_detector_parity(model, exported, photos, advance)
    assert isinstance(model, UnknownAwareClassifier)
    return check_parity(model, exported, photos, advance)


def _describe(
    model: UnknownAwareModel, packages: Sequence[str]
) -> ClassifierMetadata | DetectorMetadata:
    threshold = model.threshold()
    names = ["torch", "torchvision", "timm", "pillow", *packages]
    shared: dict[str, Any] = {
        "classes": model.classes,
        "scores": list(model.calibrations),
        "default_score": model.default_score,
        "alpha": model.alpha,
        "threshold": threshold if math.isfinite(threshold) else None,
        "classwise": model.classwise,
        "versions": {"knownot": knownot.__version__} | {name: version(name) for name in names},
    }
    if isinstance(model, UnknownAwareDetector):
        transform: Any = model.regions.get_submodule("model.transform")
        return DetectorMetadata(
            **shared,
            image_size=transform.min_size[-1],
            longest_side=transform.max_size,
            box_threshold=model.box_threshold,
            mean=list(transform.image_mean),
            std=list(transform.image_std),
            calibration=summarise(model, len(model.classes) * (len(SIZE_BORDERS) + 1)),
        )
    assert isinstance(model, UnknownAwareClassifier)
    preprocessing = model.preprocessing
    return ClassifierMetadata(
        **shared,
        image_size=preprocessing.image_size,
        crop=preprocessing.crop,
        mean=list(preprocessing.mean),
        std=list(preprocessing.std),
        calibration=summarise(model, len(model.classes)),
    )
