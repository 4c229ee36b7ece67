"""Trace a graph module to a `torch.export` program with free sizes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from knownot.export.graph import ClassifierGraph


def trace(graph: ClassifierGraph) -> ExportedProgram:
    """The graph as a program for any number N of photos of any height H and width W."""
    # Not square, and more than one: equal sizes, or a size of 1, would be taken for constants.
    sample = torch.zeros(2, 60, 50, 3, dtype=torch.uint8)
    scalars = torch.tensor(False), torch.tensor(0), torch.tensor(0.5, dtype=torch.float64)
    free = {axis: Dim(name) for axis, name in enumerate("NHW")}
    with torch.no_grad(), quiet():
        program = torch.export.export(
            graph.eval(), (sample, *scalars), dynamic_shapes=(free, None, None, None)
        )
        decomposed: ExportedProgram = program.run_decompositions(
            {torch.ops.aten.cdist.default: _cdist}
        )
    return decomposed


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notes of the exporter, which speak to its developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _cdist(a: Tensor, b: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """`torch.cdist` in operations that ONNX has; the model asks for no other p."""
    return (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1).sqrt()
