"""A backbone in 16 or 8 bits; all that stands around it stays in float32."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torchvision.ops import FrozenBatchNorm2d

from knownot.errors import ExportError

PrecisionName = Literal["float32", "float16", "int8"]
# Where the graphs of classifiers and of detectors have it, or a part of it that is called by itself.
_BACKBONE = re.compile(r"'(detect\.)?model\.backbone['.]")
# Pooling is left out: the features that distances are measured on are means in float32.
_IN_INT8 = ("Add", "Clip", "Conv", "Gemm", "MatMul", "MaxPool", "Relu")


def halve_backbone(graph: nn.Module) -> None:
    """Put the backbone of the graph of a classifier or a detector into float16."""
    network: Any = graph.detect if hasattr(graph, "detect") else graph
    network.model.backbone = _HalfBackbone(network.model.backbone)


class _HalfBackbone(nn.Module):
    """A backbone in float16 between images and features, or maps by name, in float32.

    Args:
        backbone: Changed in place. Its batch norms stay in float32, where small variances live.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        _thaw(backbone)
        self.backbone: Any = backbone.half()
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()

    def forward(self, images: Tensor) -> Any:
        """What the backbone gives for images (N, 3, H, W)."""
        return tree_map(Tensor.float, self.backbone(images.half()))

    def forward_intermediates(self, images: Tensor, **how: Any) -> Any:
        """The last map of a timm backbone, and those asked for."""
        return tree_map(Tensor.float, self.backbone.forward_intermediates(images.half(), **how))

    def forward_head(self, last: Tensor) -> Tensor:
        """The features that a timm backbone makes of its last map."""
        features: Tensor = self.backbone.forward_head(last.half())
        return features.float()


def _thaw(module: nn.Module) -> None:
    """torchvision's frozen norms take no values of another format than their own; batch norms do."""
    for name, child in module.named_children():
        if isinstance(child, FrozenBatchNorm2d):
            norm = nn.BatchNorm2d(len(child.weight), eps=child.eps).eval()
            norm.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, norm)
        else:
            _thaw(child)


def in_int8(model: bytes, inputs: Iterable[dict[str, Any]]) -> bytes:
    """The graph of a model with weights and activations of its backbone in 8 bits.

    Args:
        model: The ONNX model, in float32.
        inputs: Of the graph, for photos with the known classes: between what limits the activations
            lie.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    graph = onnx.load_model_from_string(model)
    nodes = sorted(node.name for node in graph.graph.node if _is_backbone(node))
    if not nodes:  # none would mean all, scores included
        raise ExportError("int8: the backbone was not found in the graph; export in float32")

    class Inputs(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(inputs)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as scratch, _quiet():
        file = Path(scratch, "model.onnx")
        quantize_static(
            graph,
            file,
            Inputs(),
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
    return any(_BACKBONE.search(scope) for scope in scopes)


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
