"""What a training run is going to do, said before it starts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from knownot.core.alpha import least_calibration
from knownot.data.detection_folder import DetectionSplits
from knownot.data.image_folder import Splits
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.detector import UnknownAwareDetector
from knownot.training.batches import joint_batches
from knownot.training.config import CommonConfig, DetectionConfig, TrainConfig

# Below this the median virtual outlier lies among the data's own outer tenth even for wide
# features, and the loss has hardly anything to tell apart.
_USEFUL_RADIUS_RATIO = 1.15

_SEEN = (
    "if the network was trained on these photos, new ones of its classes may be called unknown too "
    "often: "
)
_OF_FINE_TUNING = ("head_first", "fix_norms", "backbone_lr")
_OF_BOTTLENECK = ("standardise", "bottleneck_relu")


@dataclass(frozen=True)
class Plan:
    """The plan of a training run.

    Attributes:
        summary: What is trained, in a few words.
        classes: For each class its name, its numbers of training and validation examples, the step
            from which outliers are drawn around it, and the step at which its window is full.
        steps: Number of training steps.
        start_step: Step at which the uncertainty loss starts.
        feature_dim: Width D of the features in which virtual outliers are drawn.
        radius_ratio: Median outlier radius over median data radius, where there is a law of it.
        window_mib: Memory of the windows.
        device: Where training runs.
        notes: What the user should know or change.
    """

    summary: str
    classes: list[dict[str, Any]]
    steps: int
    start_step: int
    feature_dim: int
    radius_ratio: float | None
    window_mib: float
    device: str
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self)


def make_plan(
    model: UnknownAwareClassifier, splits: Splits, config: TrainConfig, device: str
) -> Plan:
    """The plan of training a classifier; `splits` holds the photos that can be read."""
    steps = training_steps(len(splits.train), config)
    notes = [*splits.warnings, *_idle(model, config)]
    if config.finetune == "none" and splits.set_aside:
        notes.append(f"{_SEEN}put photos that it never saw into val/<class>/")
    ways = {"head": "head trained", "all": "all trained", "none": "nothing trained"}
    return _plan(
        model,
        f"{model.architecture}, {ways[config.finetune]}"
        + (", the head first" if config.finetune == "all" and config.head_first else ""),
        (splits.train.counts(), splits.val.counts()),
        min(config.n_batch, len(splits.train)),
        steps,
        config,
        device,
        notes,
    )


def _idle(model: UnknownAwareClassifier, config: TrainConfig) -> list[str]:
    """Settings that were given and do nothing in this run, with the reason."""
    said = {
        name
        for name in (*_OF_FINE_TUNING, *_OF_BOTTLENECK)
        if bool(getattr(config, name)) != bool(type(config).model_fields[name].default)
    }
    reasons: list[tuple[tuple[str, ...], str]] = []
    if config.finetune == "head":
        reasons.append((_OF_FINE_TUNING, "while the backbone is frozen (--finetune head)"))
    if model.bottleneck is None:
        reasons.append((_OF_BOTTLENECK, "without a bottleneck (--bottleneck)"))
    return [
        f"{', '.join(idle)}: does nothing {reason}"
        for names, reason in reasons
        if (idle := [name for name in names if name in said])
    ]


def make_detection_plan(
    model: UnknownAwareDetector, splits: DetectionSplits, config: DetectionConfig, device: str
) -> Plan:
    """The plan of training a detector; examples are boxes.

    Each box gives a step one feature at least, the box itself; most give several.
    """
    steps = training_steps(len(splits.train), config)
    counts = splits.train.counts(), splits.val.counts()
    boxes_a_step = sum(counts[0].values()) * config.n_batch / max(1, len(splits.train))
    summary = f"{model.regions.architecture}, {len(splits.train)} photos"
    notes = splits.warnings
    if config.finetune == "none":
        summary += ", nothing trained"
        if splits.set_aside:
            notes = [*notes, f"{_SEEN}give annotated photos that it never saw as the val split"]
    return _plan(model, summary, counts, boxes_a_step, steps, config, device, notes)


def _plan(
    model: UnknownAwareClassifier | UnknownAwareDetector,
    summary: str,
    counts: tuple[dict[str, int], dict[str, int]],
    examples_a_step: float,
    steps: int,
    config: CommonConfig,
    device: str,
    notes: list[str],
) -> Plan:
    train, val = counts
    start = config.start_step(steps)
    examples = max(1, sum(train.values()))
    classes: list[dict[str, Any]] = [
        {
            "name": name,
            "train": count,
            "val": val.get(name, 0),
            "ready_step": _steps_until(model.vos.min_count, count / examples * examples_a_step),
            "window_full_step": _steps_until(config.queue_size, count / examples * examples_a_step),
        }
        for name, count in train.items()
    ]
    window = 0.0
    if model.vos_settings.gaussians == "window":
        window = 4 * len(classes) * config.queue_size * model.vos.feature_dim / 2**20
    return Plan(
        f"{summary}, {config.n_epochs} epochs" if steps else summary,
        classes,
        steps,
        start,
        model.vos.feature_dim,
        model.vos.radius_ratio,
        window,
        device,
        [*notes, *_notes(model, classes, sum(val.values()), max(start, steps // 2), steps, config)],
    )


def _notes(
    model: UnknownAwareClassifier | UnknownAwareDetector,
    classes: list[dict[str, Any]],
    val: int,
    late_step: int,
    steps: int,
    config: CommonConfig,
) -> list[str]:
    notes = []
    least = least_calibration(config.alpha)
    if val < least:
        notes.append(
            f"nothing can be called unknown: alpha {config.alpha:g} takes at least "
            f"{least} validation photos; add photos, or raise --alpha"
        )
    if not steps:
        return notes
    if config.vos_weight == 0:
        notes.append("vos_weight is 0: trained without VOS")
    elif (ratio := model.vos.radius_ratio) is not None and ratio < _USEFUL_RADIUS_RATIO:
        narrower = "--bottleneck 64, or "
        if isinstance(config, DetectionConfig):  # one that is there keeps its width
            narrower = "" if config.start_from else "--box-features 128, or "
        notes.append(
            f"radius ratio {ratio:.2f}: at width {model.vos.feature_dim} virtual "
            f"outliers hardly leave the data; use {narrower}--radius-ratio 1.4"
        )
    late = [str(c["name"]) for c in classes if (c["ready_step"] or steps) > late_step]
    if late and config.vos_weight:
        notes.append(f"rare classes get virtual outliers late or never: {', '.join(late)}")
    return notes


def training_steps(photos: int, config: CommonConfig) -> int:
    """Optimiser steps of all epochs."""
    return len(joint_batches(photos, config)) * config.n_epochs


def _steps_until(features: int, per_step: float) -> int | None:
    return math.ceil(features / per_step) if per_step > 0 else None
