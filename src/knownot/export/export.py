"""Write a model as one file for other runtimes, kept only if that gives the model's own answers."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

import knownot
from knownot.data.detection_set import DetectionSet
from knownot.errors import ConfigError, DataError, MissingExtraError
from knownot.export.agreement import (
    LEAST_PHOTOS,
    Agreement,
    calibrate_boxes_by,
    calibrate_by,
    check_agreement,
)
from knownot.export.calibration_summary import summarise
from knownot.export.detector_graph import DetectorGraph
from knownot.export.detector_parity import check_detector_parity
from knownot.export.graph import ClassifierGraph
from knownot.export.onnx import onnx_writer
from knownot.export.parity import Parity, check_parity, readable_photos
from knownot.export.precision import PrecisionName, halve_backbone, in_int8
from knownot.export.torch_program import load_program, program_writer
from knownot.export.trace import trace
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.detector import SIZE_BORDERS, UnknownAwareDetector
from knownot.models.unknown_aware import UnknownAwareModel
from knownot.runtime import open_onnx
from knownot.runtime.metadata import ClassifierMetadata, DetectorMetadata, ExportMetadata

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
    precision: PrecisionName = "float32",
    photos: Sequence[Path] = (),
    trained_on: Sequence[Path] = (),
    validated_on: Sequence[Path] | DetectionSet = (),
    nearest: bool = False,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda done: None,
) -> ClassifierMetadata | DetectorMetadata:
    """Write `model` to `output`, compare the answers, and keep the file only if they agree.

    Args:
        model: A calibrated classifier, or a Faster R-CNN detector.
        output: File to write, under a temporary name beside it until the comparison has passed.
        form: "onnx", or for a classifier "torch": a `torch.export` program.
        precision: Number format of the backbone. What is not "float32" is calibrated anew on
            `validated_on`, and must give most photos, or boxes, the same label instead of all.
        photos: Photo files for the comparison, beside generated ones. With a precision of 16 or 8
            bits, of the known classes; those of `validated_on` if not given.
        trained_on: For "int8": photos of the known classes that set the limits of activations, best
            some that the model was trained on; `photos` if not given.
        validated_on: Photo files that the model was calibrated on, of a detector with their objects;
            the calibration stays what it is if not given.
        nearest: Whether a classifier's file says, too, which of the training photos that the kNN score
            remembers are the nearest; `knownot serve` shows thumbnails of them.
        overwrite: Replace a file that exists.
        advance: Called with the number of photos compared.

    Returns:
        What the file says about itself, the comparison included.

    Raises:
        ConfigError: If it is a detector of another kind, or to be a `torch.export` program, or if
            this format has no such precision.
        DataError: If `output` exists or cannot be written, no given photo can be read, a detector
            found no box to compare, or there are too few photos to compare a reduced precision on.
        ExportError: If the answers differ.
        MissingExtraError: If a package for the export is missing.
        ModelFileError: If the model is not calibrated.
    """
    output = Path(output)
    check_output(output, overwrite, form)
    if form == "torch" and isinstance(model, UnknownAwareDetector):
        raise ConfigError("format: a detector can be exported as onnx only, leave --format out")
    if precision != "float32" and form != "onnx":
        raise ConfigError(
            "precision: a torch.export program is exported in float32 only, leave --precision out"
        )
    model.calibration(model.default_score)
    model = copy.deepcopy(model).cpu().eval()
    temporary = output.with_name(f".{output.name}.part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if precision == "float32":
            graph = _graph(model, nearest)  # refuses what cannot be exported
            metadata = _describe(model, _NEEDS[form], nearest)
            write = _WRITERS[form](trace(graph), metadata)
            temporary.write_bytes(write(metadata))
            compared: Any = _compared(model, _READERS[form](temporary), photos, advance)
        else:
            held_out = _paths(validated_on)
            sets = photos or held_out, trained_on or photos or held_out, validated_on
            metadata, write, compared = _reduced(
                model, precision, temporary, *sets, nearest, advance
            )
        metadata.parity.update(compared.to_dict())
        temporary.write_bytes(write(metadata))
        temporary.replace(output)
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error.strerror})") from None
    finally:
        with suppress(OSError):  # where nothing can be written nothing is to be removed
            temporary.unlink(missing_ok=True)
    return metadata


def _reduced(
    model: Any,
    precision: PrecisionName,
    file: Path,
    compared_on: Sequence[Path],
    ranged_on: Sequence[Path],
    validated_on: Sequence[Path] | DetectionSet,
    nearest: bool,
    advance: Callable[[int], None],
) -> tuple[Any, Callable[[ExportMetadata], bytes], Agreement]:
    """Write to `file`, calibrate anew, write again, and compare."""
    if len(compared_on) < LEAST_PHOTOS:
        raise DataError(
            f"precision: {precision} needs {LEAST_PHOTOS} photos of the known classes or more to "
            f"compare answers on, found {len(compared_on)} (by default those of the validation, "
            "where they are still the same); name some by --photos"
        )
    reduced = copy.deepcopy(model)

    def written() -> tuple[Any, Any, Any]:
        graph = _graph(copy.deepcopy(reduced), nearest)
        convert: Callable[[bytes], bytes] = bytes
        if precision == "float16":
            halve_backbone(graph)
        else:
            convert = partial(in_int8, inputs=_inputs(reduced, ranged_on))
        metadata = _describe(reduced, _NEEDS["onnx"], nearest)
        metadata = dataclasses.replace(metadata, precision=precision)
        write = onnx_writer(trace(graph), metadata, convert)
        file.write_bytes(write(metadata))
        return metadata, write, open_onnx(file)

    metadata, write, exported = written()
    count = 0
    if len(validated_on):
        calibrate: Any = calibrate_boxes_by if model.task == "detect" else calibrate_by
        count = calibrate(reduced, exported, validated_on)
        metadata, write, exported = written()
    agreement = check_agreement(model, exported, compared_on, advance)
    agreement.calibrated_on = count
    return metadata, write, agreement


def _paths(photos: Sequence[Path] | DetectionSet) -> Sequence[Path]:
    return photos.paths if isinstance(photos, DetectionSet) else photos


def _inputs(model: UnknownAwareModel, photos: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Of the exported graph, for the photos that can be read."""
    for _, image in readable_photos(photos):
        if isinstance(model, UnknownAwareDetector):
            yield {"photo": np.asarray(image)}
        else:
            assert isinstance(model, UnknownAwareClassifier)
            square = model.preprocessing.from_pil(image).permute(1, 2, 0).numpy()
            yield {"photos": square[None], "prepared": np.array(True)}


def check_output(output: Path, overwrite: bool, form: FormatName) -> None:
    """Before anything is loaded: can a model be written to `output`?

    Raises:
        ConfigError: If its name ends as that of the other form.
        DataError: If it exists.
        MissingExtraError: If a package for the export is missing.
    """
    others = {ending: name for name, ending in ENDINGS.items() if name != form}
    if (other := others.get(output.suffix)) is not None:
        raise ConfigError(
            f"{output}: such names are of files in the form {other}; ask for --format {other}, or "
            f"choose a name that ends in {ENDINGS[form]}"
        )
    for package in _NEEDS[form]:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "export", "the export")
    if output.is_dir():
        raise DataError(f"{output}: is a folder; give the name of a file, such as model.onnx")
    if output.exists() and not overwrite:
        raise DataError(
            f"{output}: exists; choose another name with -o, or add --overwrite (in Python overwrite=True)"
        )


def _graph(model: UnknownAwareModel, nearest: bool) -> ClassifierGraph | DetectorGraph:
    if isinstance(model, UnknownAwareDetector):
        return DetectorGraph(model)
    assert isinstance(model, UnknownAwareClassifier)
    return ClassifierGraph(model, nearest)


def _compared(
    model: UnknownAwareModel, exported: Any, photos: Sequence[Path], advance: Callable[[int], None]
) -> Parity:
    if isinstance(model, UnknownAwareDetector):
        return check_detector_parity(model, exported, photos, advance)
    assert isinstance(model, UnknownAwareClassifier)
    return check_parity(model, exported, photos, advance)


def _describe(
    model: UnknownAwareModel, packages: Sequence[str], nearest: bool
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
        bank_rows=len(model.feature_scores.bank) if nearest and model.feature_scores else 0,
        mean=list(preprocessing.mean),
        std=list(preprocessing.std),
        calibration=summarise(model, len(model.classes)),
    )
