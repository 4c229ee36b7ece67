"""Rows as columns by name, such as the scores or the boxes of some photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Columns of several parts, (n, ...) each, as one; the first part says which."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
