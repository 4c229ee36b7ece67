"""Write a model as one ONNX file, kept only if ONNX Runtime gives the model's own answers."""

from __future__ import annotations

import copy
import importlib.util
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import knownot
from knownot.errors import ConfigError, DataError, MissingExtraError
from knownot.export.graph import ClassifierGraph
from knownot.export.parity import check_parity
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.unknown_aware import UnknownAwareModel
from knownot.runtime.classifier import OnnxClassifier
from knownot.runtime.metadata import INPUTS, OUTPUTS, ExportMetadata
from knownot.runtime.onnx_file import sealed

_PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "pillow")


def export_onnx(
    model: UnknownAwareModel,
    output: str | Path,
    *,
    photos: Sequence[Path] = (),
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda done: None,
) -> ExportMetadata:
    """Write `model` to `output`, compare the answers, and keep the file only if they agree.

    Args:
        model: A calibrated classifier.
        output: File to write, under a temporary name beside it until the comparison has passed.
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
    if not isinstance(model, UnknownAwareClassifier):
        raise ConfigError("export: only classifiers can be exported yet, and this is a detector")
    model.calibration(model.default_score)
    model = copy.deepcopy(model).cpu().eval()
    metadata = _describe(model)
    graph = _with_defaults(_trace(ClassifierGraph(model)), metadata)
    temporary = output.with_name(f".{output.name}.part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(sealed(graph, metadata.to_json()))
        parity = check_parity(model, OnnxClassifier(temporary), photos, advance)
        metadata.parity.update(parity.to_dict())
        temporary.write_bytes(sealed(graph, metadata.to_json()))
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


def _describe(model: UnknownAwareClassifier) -> ExportMetadata:
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
        versions={"knownot": knownot.__version__} | {name: version(name) for name in _PACKAGES},
    )


def _trace(graph: ClassifierGraph) -> Any:
    """The graph as an ONNX model in memory."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "export", "the export")
    # Two photos that are not square: a size of 1, or equal sizes, would be taken for constants.
    sample = torch.zeros(2, 60, 50, 3, dtype=torch.uint8)
    scalars = torch.tensor(False), torch.tensor(0), torch.tensor(0.5, dtype=torch.float64)
    dynamic = {axis: torch.export.Dim(name) for axis, name in enumerate("NHW")}
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                graph.eval(), (sample, *scalars), dynamic_shapes=(dynamic, None, None, None)
            )
            program = program.run_decompositions({torch.ops.aten.cdist.default: _cdist})
            onnx_program = torch.onnx.export(
                program,
                dynamo=True,
                input_names=INPUTS,
                output_names=OUTPUTS,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert onnx_program is not None
    return onnx_program.model_proto


def _cdist(a: Tensor, b: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """`torch.cdist` in operations that ONNX has; the model asks for no other p."""
    return (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1).sqrt()


def _with_defaults(proto: Any, metadata: ExportMetadata) -> bytes:
    """Serialise, with defaults for every input but the photos, and names for the free sizes."""
    from onnx import numpy_helper

    defaults = {
        "prepared": np.array(False),
        "score": np.array(metadata.scores.index(metadata.default_score)),
        "alpha": np.array(metadata.alpha),
    }
    # An initialiser with the name of an input is what the input is when it is not given.
    proto.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in defaults.items()
    )
    names: dict[str, str] = {}
    for axis, dim in zip("NHW", proto.graph.input[0].type.tensor_type.shape.dim, strict=False):
        names[dim.dim_param] = axis
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)
    del proto.graph.value_info[:]
    proto.producer_name = "knownot"
    return bytes(proto.SerializeToString())
