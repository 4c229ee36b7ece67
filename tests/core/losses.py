"""Small losses, and batches for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from knownot.core.virtual_outlier_loss import VirtualOutlierLoss

PHIS = ["monotone", "monotone-mlp", "shift", "free", "free-mlp"]


def make(classes: int = 3, dim: int = 4, **options) -> tuple[nn.Linear, VirtualOutlierLoss]:
    head = nn.Linear(dim, classes)
    return head, VirtualOutlierLoss(head=head, num_classes=classes, feature_dim=dim, **options)


def batch(n: int = 30, classes: int = 3, dim: int = 4) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % classes
    return torch.randn(n, dim) + labels.unsqueeze(1), labels


def with_logits(head: nn.Module, features: Tensor, labels: Tensor):
    return features, head(features), labels
