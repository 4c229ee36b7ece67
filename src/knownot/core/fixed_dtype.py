"""Buffers and constants that follow their module to a device but keep their own dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class FixedDtypeModule(nn.Module):
    """A module some of whose buffers keep their dtype through `.half()`, `.bfloat16()`, `.float()`.

    Running sums lose their meaning in half precision, and a mixed-precision trainer may cast the
    whole module. On a device without float64 (Apple's MPS) such buffers are held in float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fixed_dtypes: dict[str, torch.dtype] = {}

    def register_fixed(self, name: str, tensor: Tensor, persistent: bool = True) -> None:
        """Register `tensor` as a buffer whose present dtype is kept."""
        self.register_buffer(name, tensor, persistent=persistent)
        self._fixed_dtypes[name] = tensor.dtype

    def set_constant(self, name: str, tensor: Tensor) -> None:
        """Hold `tensor`, whose present dtype is kept, as an attribute that is no buffer.

        Of a buffer that no file holds, libraries that fill a module from one leave what is in memory.
        """
        setattr(self, name, tensor)
        self._fixed_dtypes[name] = tensor.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        fixed = {name: getattr(self, name) for name in self._fixed_dtypes}
        buffers = {name: self._buffers.pop(name) for name in fixed if name in self._buffers}
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:  # a device that is not there, or full, leaves the module as it was
            self._buffers.update(buffers)
        for name, tensor in fixed.items():
            self._move(name, fn(torch.empty(0, device=tensor.device)).device)
        return self

    def _move(self, name: str, device: torch.device) -> None:
        dtype = self._fixed_dtypes[name]
        if dtype == torch.float64 and device.type == "mps":
            dtype = torch.float32
        setattr(self, name, getattr(self, name).to(device=device, dtype=dtype))
