"""A backbone in 16 or 8 bits; all that stands around it stays in float32."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from knownot.runtime.exported import Pixels

PrecisionName = Literal["float32", "float16", "int8"]
_BACKBONE = "'model.backbone'"
# Pooling is left out: the features that distances are measured on are means in float32.
_IN_INT8 = ("Add", "Clip", "Conv", "Gemm", "MatMul", "MaxPool", "Relu")


class HalfBackbone(nn.Module):
    """A backbone in float16 between images and features in float32.

    Args:
        backbone: Changed in place. Its batch norms stay in float32, where small variances live.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.half()
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, B) of images (N, 3, S, S)."""
        features: Tensor = self.backbone(images.half())
        return features.float()


def in_int8(model: bytes, squares: Sequence[Pixels]) -> bytes:
    """The graph of a classifier with weights and activations of its backbone in 8 bits.

    Args:
        model: The ONNX model, in float32.
        squares: Photos (S, S, 3), uint8, as the network sees them, of the known classes: between
            what limits the activations lie.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    graph = onnx.load_model_from_string(model)
    nodes = sorted(node.name for node in graph.graph.node if _is_backbone(node))

    class Squares(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(squares)

        def get_next(self) -> dict[str, Any] | None:
            square = next(self.left, None)
            if square is None:
                return None
            return {"photos": square[None], "prepared": np.array(True)}

    with tempfile.TemporaryDirectory() as scratch, _quiet():
        file = Path(scratch, "model.onnx")
        quantize_static(
            graph,
            file,
            Squares(),
            op_types_to_quantize=_IN_INT8,
            nodes_to_quantize=nodes,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            # Sums of 8-bit weights overflow on processors without VNNI: the file is for any.
            reduce_range=True,
        )
        return file.read_bytes()


def _is_backbone(node: Any) -> bool:
    scopes = (p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes")
    return any(_BACKBONE in scope for scope in scopes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without advice to whoever would call the converter by hand."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        onnxruntime.set_default_logger_severity(2)
