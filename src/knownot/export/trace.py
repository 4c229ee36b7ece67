"""Trace a graph module to a `torch.export` program with free sizes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

_TALKATIVE = ("torch.onnx", "onnx_ir")


class Traceable(Protocol):
    """A module that knows with what it is traced."""

    def example(self) -> tuple[tuple[Tensor, ...], tuple[dict[int, Dim] | None, ...]]:
        """Inputs, and which of their sizes are free."""


def trace(graph: Traceable) -> ExportedProgram:
    """The graph as a program for inputs of any sizes, where these are free; nothing in place."""
    assert isinstance(graph, nn.Module)
    inputs, free = graph.example()
    for module in graph.modules():
        if hasattr(module, "inplace"):
            # Each is an operation more to take apart: a quarter of the time of an export.
            setattr(module, "inplace", False)  # noqa: B010
    with torch.no_grad(), quiet():
        return torch.export.export(graph.eval(), inputs, dynamic_shapes=free, strict=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notes of the exporter, which speak to its developers."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in _TALKATIVE}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
