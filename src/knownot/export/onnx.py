"""A traced program as one ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from knownot.export.batch_norms import fold_batch_norms
from knownot.export.trace import quiet
from knownot.runtime.metadata import DetectorMetadata, ExportMetadata
from knownot.runtime.onnx_file import sealed


def onnx_writer(
    program: ExportedProgram,
    metadata: ExportMetadata,
    convert: Callable[[bytes], bytes] = bytes,
) -> Callable[[ExportMetadata], bytes]:
    """A function from the final metadata to the bytes of the ONNX file; `program` is changed."""
    fold_batch_norms(program)
    with quiet():
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            input_names=metadata.inputs,
            output_names=metadata.outputs,
            verbose=False,
        )
    assert onnx_program is not None
    model = convert(_with_defaults(onnx_program.model_proto, metadata))
    return lambda final: sealed(model, final.to_json())


def _with_defaults(proto: Any, metadata: ExportMetadata) -> bytes:
    """Serialise, with defaults for every input but the photos, and names for the free sizes."""
    from onnx import numpy_helper

    defaults = {
        "prepared": np.array(False),
        "score": np.array(metadata.scores.index(metadata.default_score)),
        "alpha": np.array(metadata.alpha),
    }
    axes, rows = "NHW", ""
    if isinstance(metadata, DetectorMetadata):
        defaults["box_threshold"] = np.array(metadata.box_threshold, np.float32)
        axes, rows = "HW", "B"
    # An initialiser with the name of an input is what the input is when it is not given.
    proto.graph.initializer.extend(
        numpy_helper.from_array(value, name)
        for name, value in defaults.items()
        if name in metadata.inputs
    )
    names: dict[str, str] = {}
    for axis, dim in zip(axes, proto.graph.input[0].type.tensor_type.shape.dim, strict=False):
        names[dim.dim_param] = axis
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, rows or dim.dim_param)
    del proto.graph.value_info[:]
    proto.producer_name = "knownot"
    return bytes(proto.SerializeToString())
