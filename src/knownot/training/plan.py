"""What a training run is going to do, said before it starts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from knownot.data.image_folder import Splits
from knownot.models.classifier import UnknownAwareClassifier
from knownot.training.config import TrainConfig

# Below this the median virtual outlier lies among the data's own outer tenth even for wide
# features, and the loss has hardly anything to tell apart.
_USEFUL_RADIUS_RATIO = 1.15


@dataclass(frozen=True)
class Plan:
    """The plan of a training run.

    Attributes:
        classes: For each class its name, its numbers of training and validation photos, the step
            from which outliers are drawn around it, and the step at which its window is full.
        steps: Number of training steps.
        start_step: Step at which the uncertainty loss starts.
        feature_dim: Width D of the features in which virtual outliers are drawn.
        radius_ratio: Median outlier radius over median data radius.
        window_mib: Memory of the windows.
        device: Where training runs.
        notes: What the user should know or change.
    """

    classes: list[dict[str, Any]]
    steps: int
    start_step: int
    feature_dim: int
    radius_ratio: float
    window_mib: float
    device: str
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self)


def make_plan(
    model: UnknownAwareClassifier, splits: Splits, config: TrainConfig, device: str
) -> Plan:
    """Work out the plan; `splits` holds the photos that can be read."""
    train, val = splits.train.counts(), splits.val.counts()
    per_epoch = steps_per_epoch(len(splits.train), config)
    steps = per_epoch * config.n_epochs
    start = config.start_step(steps)
    share = {name: count / max(1, len(splits.train)) for name, count in train.items()}
    batch = min(config.n_batch, len(splits.train))
    classes: list[dict[str, Any]] = [
        {
            "name": name,
            "train": count,
            "val": val.get(name, 0),
            "ready_step": _steps_until(model.vos.min_count, share[name] * batch),
            "window_full_step": _steps_until(config.queue_size, share[name] * batch),
        }
        for name, count in train.items()
    ]
    notes = list(splits.warnings)
    if len(splits.val) + 1 <= 1 / config.alpha:  # the smallest p-value is not below alpha
        notes.append(
            f"nothing can be called unknown: alpha {config.alpha:g} takes at least "
            f"{math.floor(1 / config.alpha)} validation photos; add photos, or raise --alpha"
        )
    if config.vos_weight == 0:
        notes.append("vos_weight is 0: trained with cross-entropy alone")
    elif model.vos.radius_ratio < _USEFUL_RADIUS_RATIO:
        notes.append(
            f"radius ratio {model.vos.radius_ratio:.2f}: at width {model.vos.feature_dim} virtual "
            "outliers hardly leave the data; use --bottleneck 64, or --radius-ratio 1.4"
        )
    late = [str(c["name"]) for c in classes if (c["ready_step"] or steps) > max(start, steps // 2)]
    if late:
        notes.append(f"rare classes get virtual outliers late or never: {', '.join(late)}")
    window = 0.0
    if model.vos_settings.gaussians == "window":
        window = 4 * len(classes) * config.queue_size * model.vos.feature_dim / 2**20
    return Plan(
        classes,
        steps,
        start,
        model.vos.feature_dim,
        model.vos.radius_ratio,
        window,
        device,
        notes,
    )


def steps_per_epoch(photos: int, config: TrainConfig) -> int:
    """Optimiser steps of one epoch."""
    full, rest = divmod(photos, config.n_batch)
    return full + (rest > 1 or full == 0)


def _steps_until(features: int, per_step: float) -> int | None:
    return math.ceil(features / per_step) if per_step > 0 else None
