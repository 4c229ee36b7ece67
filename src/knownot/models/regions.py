"""The seam between detectors and the method: what a detector must offer to know the unknown.

A detector is adapted in one file, by a `RegionModel` that hands out, beside losses and boxes, the
penultimate features and logits behind them. `UnknownAwareDetector` does the rest. Model folders hold
any detector that is adapted in `knownot.models`, one a module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from knownot.errors import ConfigError

Detections = dict[str, Tensor]
Targets = list[dict[str, Tensor]]


@dataclass(frozen=True)
class MatchedRegions:
    """Regions of a training step that were matched with an annotated object: the ID instances.

    Attributes:
        features: Penultimate features (M, D), attached to the graph.
        logits: Class logits (M, C), a background column included where there is one.
        labels: Class of the matched object (M,), int64, in [0, K).
    """

    features: Tensor
    logits: Tensor
    labels: Tensor


class RegionModel(nn.Module):
    """A detector of K classes.

    Attributes:
        num_classes: Number of classes K.
        feature_dim: Width D of the penultimate features.
        scored_dim: Width S of what the feature scores read; D where it is the penultimate features.
        background_index: Column of the logits that stands for "no object", or None.
        architecture: Kind and backbone in words.
        image_size: Shorter side of a photo as the network sees it, pixels.
    """

    num_classes: int
    feature_dim: int
    scored_dim: int
    background_index: int | None
    architecture: str
    image_size: int

    def refuse_size(self, size: tuple[int, int], name: str) -> None:
        """Raise `DataError`, with the name, if a photo of that size in pixels cannot be looked at."""

    def class_head(self, features: Tensor) -> Tensor:
        """The last layer: penultimate features (M, D) to class logits (M, C)."""
        raise NotImplementedError  # abstract

    def losses(
        self, images: list[Tensor], targets: Targets
    ) -> tuple[dict[str, Tensor], MatchedRegions]:
        """Losses of a training step, scalars by name, and the matched regions.

        Args:
            images: Photos (3, H, W), floats in [0, 1], of any sizes.
            targets: For each photo `boxes` (B, 4), corners in pixels, and `labels` (B,) in [0, K).
        """
        raise NotImplementedError  # abstract

    def detect(self, images: list[Tensor], proposals: bool = False) -> list[Detections]:
        """Boxes of photos (3, H, W), floats in [0, 1]; called without gradients.

        Args:
            images: The photos.
            proposals: Whether to add region proposals, where the detector has any.

        Returns:
            For each photo `boxes` (B, 4), corners in pixels; `labels` (B,) in [0, K); `scores`
            (B,) in [0, 1], descending; the `logits` (B, C) and `features` (B, D) behind them; and
            where feature scores read anything else, that, as `scored_features` (B, S).
            If asked for, all region proposals: `proposals` (P, 4), corners in pixels, and their
            `objectness` (P,) in [0, 1].
        """
        raise NotImplementedError  # abstract

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Trainable parameters of the pretrained part, and of the rest."""
        raise NotImplementedError  # abstract

    def describe(self) -> dict[str, Any]:
        """What `rebuild` makes the same detector from, weights apart; values as JSON has them."""
        raise NotImplementedError  # abstract

    @classmethod
    def rebuild(cls, num_classes: int, description: dict[str, Any]) -> RegionModel:
        """A detector of K classes with random weights; nothing is downloaded.

        The description may be a stranger's.

        Raises:
            ConfigError: If it cannot be built.
            ValueError: The same, of settings that Pydantic refuses.
        """
        raise NotImplementedError  # abstract

    @classmethod
    def rebuild_around(
        cls, network: nn.Module, num_classes: int, description: dict[str, Any]
    ) -> RegionModel:
        """The same of a detector that was made of a module of the caller's, which is given again.

        Raises:
            ConfigError: If it was made of none.
            ValueError: As `rebuild`.
        """
        raise ConfigError("is rebuilt by itself; load it without backbone=")
