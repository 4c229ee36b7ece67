"""Altered validation photos, whose features or boxes choose the parts of the combined score.

One entry for each of `knownot.data.altered.ALTERATIONS`, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import resize

from knownot.core.columns import joined
from knownot.data.altered import ALTERATIONS, alter
from knownot.errors import DataError
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.detector import UnknownAwareDetector
from knownot.models.regions import Detections
from knownot.training.feature_cache import extract_features

# More choose no better, and each is sent through the network seven times.
_PHOTOS, _DETECTOR_PHOTOS = 256, 64
_KEPT = ("boxes", "labels", "scores", "logits", "features", "scored_features")

Progress = Callable[[int], None]


def chosen_photos(paths: Sequence[Path], most: int) -> list[Path]:
    """At most so many of the photos, always the same."""
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))[:most]
    return [paths[i] for i in order.tolist()]


def altered_features(
    model: UnknownAwareClassifier,
    paths: Sequence[Path],
    cache: Path | None,
    stage: Callable[[str, int], Progress],
) -> list[Tensor]:
    """Features (n, S) of altered photos, in evaluation mode; unreadable ones are left out.

    Args:
        model: Whose backbone, preprocessing and device are used.
        paths: Validation photos; at most 256 of them are used.
        cache: Folder where features are kept, or None.
        stage: Begins a stage of progress.
    """
    paths = chosen_photos(paths, _PHOTOS)
    progress = stage("features of altered photos", len(paths))
    return list(extract_features(model, paths, cache, progress, ALTERATIONS).rows.unbind(1))


def altered_boxes(
    model: UnknownAwareDetector, paths: Sequence[Path], stage: Callable[[str, int], Progress]
) -> list[Detections]:
    """Boxes on altered photos; unreadable ones are left out.

    Args:
        model: The detector, in evaluation mode.
        paths: Validation photos; at most 64 of them are used.
        stage: Begins a stage of progress.
    """
    paths = chosen_photos(paths, _DETECTOR_PHOTOS)
    progress = stage("altered validation photos", len(paths))
    found: dict[str, list[Detections]] = {name: [] for name in ALTERATIONS}
    before: Tensor | None = None
    for number, path in enumerate(paths):
        photo = _pixels(model, path)
        if photo is not None:
            # The photo before takes part where two are mixed.
            other = photo if before is None else resize(before, list(photo.shape[1:]))
            for name in ALTERATIONS:
                altered = alter(name, torch.stack([photo, other]), seed=number)[0]
                (boxes,) = model([altered.to(model.device) / 255])
                found[name].append({key: boxes[key].cpu() for key in _KEPT})
            before = photo
        progress(1)
    return [joined(parts) for parts in found.values() if parts]


def _pixels(model: UnknownAwareDetector, path: Path) -> Tensor | None:
    try:
        return model.pixels(path)
    except DataError:  # skipped, and said so, when it was scored
        return None
