"""Photos that a model was trained and validated on, as its folder's record names them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from knownot.data.detection_folder import looks_like_detection, read_detection_splits
from knownot.data.detection_set import DetectionSet
from knownot.data.image_folder import names_digest, read_splits
from knownot.errors import KnownotError
from knownot.training.result import METRICS, SETTINGS, SKIPPED, TRAINING

_MOST_IN_TRAINING = 64
_UNREADABLE = (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, KnownotError)


def classifier_photos(model: Path, classes: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Some photos that a classifier was trained on, and all that it was calibrated on.

    Args:
        model: Model folder.
        classes: Its classes.

    Returns:
        Up to 64 files, and the files of validation; none if there is no record, the data are no
        longer there or no longer the same, or they have other classes.
    """
    try:
        splits = read_splits(*_record(model))
        same = _are_held_out(splits.val.paths, model)
    except _UNREADABLE:
        return [], []
    if splits.train.classes != list(classes) or not same:
        return [], []
    return spread(splits.train.paths, _MOST_IN_TRAINING), splits.val.paths


def detector_photos(model: Path, classes: Sequence[str]) -> tuple[list[Path], DetectionSet]:
    """Some photos that a detector was trained on, and all that it was calibrated on.

    Args:
        model: Model folder.
        classes: Its classes.

    Returns:
        Up to 64 files with objects, and the validation set; none if there is no record, the data are
        no longer there or no longer the same, or they have other classes.
    """
    nothing = DetectionSet([], [], list(classes))
    try:
        splits = read_detection_splits(*_record(model))
        same = _are_held_out(splits.val.paths, model)
    except _UNREADABLE:
        return [], nothing
    if splits.val.classes != nothing.classes or not same:
        return [], nothing
    return spread(with_objects(splits.train), _MOST_IN_TRAINING), splits.val


def seen_before(model: Path, photos: Sequence[Path]) -> tuple[int, int]:
    """How many of the photos a model was trained on, and how many it was calibrated on.

    Args:
        model: Model folder.
        photos: Files.

    Returns:
        Both numbers; zeros if there is no record, or the data are no longer there or no longer the same.
    """
    try:
        data, *how = _record(model)
        read = read_detection_splits if looks_like_detection(Path(data)) else read_splits
        splits = read(data, *how)
        if not _are_held_out(splits.val.paths, model):
            return 0, 0
    except _UNREADABLE:
        return 0, 0
    given = {os.path.realpath(path) for path in photos}
    trained, calibrated = (
        len(given.intersection(map(os.path.realpath, split.paths)))
        for split in (splits.train, splits.val)
    )
    return trained, calibrated


def with_objects(photos: DetectionSet) -> list[Path]:
    """The files that show an object."""
    return [path for path, of in zip(photos.paths, photos.objects, strict=True) if len(of)]


def spread(paths: list[Path], most: int) -> list[Path]:
    """At most so many of the files, at even distances."""
    return paths[:: -(-len(paths) // most) or 1]


def _are_held_out(paths: list[Path], model: Path) -> bool:
    """Whether these photos are those that were held out.

    Where a share of the photos was set aside, one photo more or less sets others aside.
    """
    training = model / TRAINING
    metrics = training / METRICS
    digest = json.loads(metrics.read_text()).get("val_digest") if metrics.is_file() else None
    if digest is None:  # a model from before it was noted
        return True
    data = Path(_record(model)[0])
    skipped = {os.path.relpath(path, data) for path in json.loads((training / SKIPPED).read_text())}
    kept = [path for path in paths if os.path.relpath(path, data) not in skipped]
    return bool(digest == names_digest(kept, data))


def _record(model: Path) -> tuple[Any, ...]:
    record = yaml.safe_load((model / TRAINING / SETTINGS).read_text(encoding="utf-8"))
    return tuple(record[name] for name in ("data", "val_fraction", "seed"))
