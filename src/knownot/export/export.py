"""Write a model as one file for other runtimes, kept only if that gives the model's own answers."""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import knownot
from knownot.errors import ConfigError, DataError, MissingExtraError
from knownot.export.calibration_summary import summarise
from knownot.export.graph import ClassifierGraph
from knownot.export.onnx import onnx_writer
from knownot.export.parity import check_parity
from knownot.export.torch_program import load_program, program_writer
from knownot.export.trace import trace
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.unknown_aware import UnknownAwareModel
from knownot.runtime.classifier import OnnxClassifier
from knownot.runtime.metadata import ExportMetadata

FormatName = Literal["onnx", "torch"]
ENDINGS: dict[FormatName, str] = {"onnx": ".onnx", "torch": ".pt2"}
_WRITERS = {"onnx": onnx_writer, "torch": program_writer}
_READERS = {"onnx": OnnxClassifier, "torch": load_program}
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
) -> ExportMetadata:
    """Write `model` to `output`, compare the answers, and keep the file only if they agree.

    Args:
        model: A calibrated classifier.
        output: File to write, under a temporary name beside it until the comparison has passed.
        form: "onnx", or "torch" for a `torch.export` program.
        photos: Photo files for the comparison, beside generated ones.
        overwrite: Replace a file that exists.
        advance: Called with the number of photos compared.

    Returns:
        What the file says about itself, the comparison included.

    Raises:
        ConfigError: If the model is no classifier.
        DataError: If `output` exists or cannot be written, or no given photo can be read.
        ExportError: If the answers differ.
        MissingExtraError: If a package for the export is missing.
        ModelFileError: If the model is not calibrated.
    """
    output = Path(output)
    check_output(output, overwrite)
    for package in _NEEDS[form]:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "export", "the export")
    if not isinstance(model, UnknownAwareClassifier):
        raise ConfigError("export: only classifiers can be exported yet, and this is a detector")
    model.calibration(model.default_score)
    model = copy.deepcopy(model).cpu().eval()
    metadata = _describe(model, _NEEDS[form])
    write = _WRITERS[form](trace(ClassifierGraph(model)), metadata)
    temporary = output.with_name(f".{output.name}.part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(write(metadata))
        parity = check_parity(model, _READERS[form](temporary), photos, advance)
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


def _describe(model: UnknownAwareClassifier, packages: Sequence[str]) -> ExportMetadata:
    threshold = model.threshold()
    return ExportMetadata(
        classes=model.classes,
        scores=list(model.calibrations),
        default_score=model.default_score,
        alpha=model.alpha,
        threshold=threshold if math.isfinite(threshold) else None,
        classwise=model.classwise,
        image_size=model.preprocessing.image_size,
        crop=model.preprocessing.crop,
        mean=list(model.preprocessing.mean),
        std=list(model.preprocessing.std),
        calibration=summarise(model),
        versions={"knownot": knownot.__version__}
        | {name: version(name) for name in ("torch", "timm", "pillow", *packages)},
    )
