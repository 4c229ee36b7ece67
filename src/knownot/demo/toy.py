"""Three Gaussian classes in the plane: where a network is sure, with and without VOS."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knownot.core.virtual_outlier_loss import VirtualOutlierLoss

_CENTRES = torch.tensor([[0.0, 2.0], [-1.7, -1.0], [1.7, -1.0]])
_SPREAD = 0.35
_PER_CLASS = 200
_STEPS, _VOS_START = 1500, 300
EXTENT = 6.0
_GRID = 161


@dataclass(frozen=True)
class Toy:
    """Points, and two maps of confidence over the square from -EXTENT to EXTENT.

    Attributes:
        points: Training points (N, 2).
        labels: Their classes (N,).
        outliers: Virtual outliers (M, 2) of the trained loss.
        plain: Largest softmax probability of plain training (G, G), rows from bottom to top.
        vos: p(ID | x) of training with VOS (G, G).
        far: Mean of both maps over the grid points far from all data, by name.
    """

    points: Tensor
    labels: Tensor
    outliers: Tensor
    plain: Tensor
    vos: Tensor
    far: dict[str, float]


def run_toy(seed: int) -> Toy:
    """Train both networks on the same points and map their confidence."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat_interleave(_PER_CLASS)
    points = _CENTRES[labels] + _SPREAD * torch.randn(len(labels), 2, generator=random)
    axis = torch.linspace(-EXTENT, EXTENT, _GRID)
    grid = torch.cartesian_prod(axis, axis).flip(1)
    plain_head, _ = _train(points, labels, seed, weight=0.0)
    vos_head, vos = _train(points, labels, seed, weight=1.0)
    with torch.no_grad():
        plain = plain_head(grid).softmax(1).amax(1)
        p_id = torch.sigmoid(-vos.ood_score(vos_head(grid)))
    # Eight standard deviations from every centre: no training point lies there.
    far = torch.cdist(grid, _CENTRES).amin(1) > 8 * _SPREAD
    return Toy(
        points,
        labels,
        vos.sample_outliers(random),
        plain.view(_GRID, _GRID),
        p_id.view(_GRID, _GRID),
        {"plain": float(plain[far].mean()), "vos": float(p_id[far].mean())},
    )


def _train(
    points: Tensor, labels: Tensor, seed: int, weight: float
) -> tuple[nn.Module, VirtualOutlierLoss]:
    """The point itself is the penultimate feature, so that the Gaussians live in the picture."""
    torch.manual_seed(seed)
    head = nn.Sequential(
        nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
    )
    vos = VirtualOutlierLoss(
        head=head,
        num_classes=3,
        feature_dim=2,
        weight=weight,
        start_step=_VOS_START,
        queue_size=_PER_CLASS,
        outliers_per_class=20,
    )
    optimizer = torch.optim.Adam([*head.parameters(), *vos.parameters()], lr=3e-3)
    for _ in range(_STEPS):
        batch = torch.randint(len(points), (128,))
        logits = head(points[batch])
        loss = F.cross_entropy(logits, labels[batch]) + vos(points[batch], logits, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head, vos
