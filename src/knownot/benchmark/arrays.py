"""What every score reads: logits and features of a set of images, computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from knownot.models.classifier import UnknownAwareClassifier


@dataclass(frozen=True)
class Arrays:
    """One set of N images after one forward pass, on the CPU.

    Attributes:
        logits: Class logits (N, K).
        features: Penultimate features, which the head reads (N, D).
        scored_features: What the model's own feature scores read (N, S).
        labels: True classes (N,), int64; -1 for OOD images.
        pixels: The images (N, 3, S, S), uint8, where they are kept: loads them.
        scores: The model's own scores (N,) by name, once one of them was asked for.
    """

    logits: Tensor
    features: Tensor
    scored_features: Tensor
    labels: Tensor
    pixels: Callable[[], Tensor] | None = None
    scores: dict[str, Tensor] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.logits)


@dataclass(frozen=True)
class Fitted:
    """What a score may be fitted to: ID data alone.

    Attributes:
        model: The trained model, calibrated, in evaluation mode, on the CPU.
        train: ID training images, in evaluation mode (not augmented).
        val: Held-out ID images.
    """

    model: UnknownAwareClassifier
    train: Arrays
    val: Arrays


@torch.no_grad()
def from_scored_features(
    model: UnknownAwareClassifier,
    rows: Tensor,
    labels: Tensor | None,
    pixels: Callable[[], Tensor] | None = None,
) -> Arrays:
    """Bottleneck and head on features (N, S) of `scored_features`; labels (N,) are -1 if not given."""
    output = model.classify(rows)
    if labels is None:
        labels = torch.full((len(rows),), -1, dtype=torch.int64)
    return Arrays(output.logits, output.features, rows, labels, pixels)
