"""Batches of decoded photos as tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from knownot.data.read_ahead import read_ahead

Photo = TypeVar("Photo")


def read_batches(
    photos: Sequence[Photo],
    read: Callable[[Photo], Tensor],
    batch_size: int,
    skipped: dict[Photo, str],
    workers: int | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """`read_ahead` for photos that `read` decodes to tensors (3, H, W) of one size.

    Yields:
        Indices into `photos` and the stacked photos (N, 3, H, W); batches without any are left out.
    """
    for indices, pixels in read_ahead(photos, read, batch_size, skipped, workers):
        yield indices, torch.stack(pixels)
