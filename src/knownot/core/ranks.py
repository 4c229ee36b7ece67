"""Data-parallel training as one: the ranks exchange the features of a step.

Every rank then holds the Gaussians that a single process with the joint batch would hold. In a step each
rank receives `(R - 1) * (B * (D + 1) * 4 + 8)` bytes, R ranks with at most B rows each.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

# From torch 2.14 on `all_gather_into_tensor` warns of its new name.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def world_size() -> int:
    """Number of ranks R that train together; 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def gather_rows(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of all ranks, in the order of the ranks; a rank may have fewer than others, or none.

    Every rank must call it in every step. With one rank the rows are returned as they are.

    Args:
        features: Rows of this rank (N, D), any floating dtype.
        labels: Their classes (N,), integers.

    Returns:
        Features (M, D), float32, and labels (M,), int64, the same on all ranks.
    """
    ranks = world_size()
    if ranks == 1:
        return features, labels
    size = torch.tensor([len(labels)], device=features.device)
    gathered = size.new_empty(ranks)
    _all_gather(gathered, size)
    sizes = gathered.tolist()
    most = max(sizes)
    # Labels travel as one more column, exact up to 2^24 classes: one exchange instead of two.
    rows = torch.cat([features.detach().float(), labels.unsqueeze(1).float()], dim=1)
    rows = F.pad(rows, (0, 0, 0, most - len(rows)))
    padded = rows.new_empty(ranks * most, rows.shape[1])
    _all_gather(padded, rows.contiguous())
    parts = padded.view(ranks, most, rows.shape[1])
    joint = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return joint[:, :-1], joint[:, -1].long()


def shared_seed(device: torch.device) -> int:
    """A seed that all ranks agree on: rank 0's."""
    seed = torch.tensor([torch.initial_seed() % 2**62], device=device)
    dist.broadcast(seed, src=0)
    return int(seed)
