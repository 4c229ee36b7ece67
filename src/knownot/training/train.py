"""From a folder of photos to a model folder: the whole of `knownot train`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L
import torch
from torch import Tensor

from knownot.core.energy import energy
from knownot.core.metrics import fpr95
from knownot.data.image_folder import PhotoSet, Splits, names_digest, read_splits
from knownot.data.thumbnails import FOLDER, write_thumbnails
from knownot.errors import ConfigError, DataError
from knownot.evaluation.measures import binomial_interval
from knownot.models.backbones import is_pretrained
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.model_card import model_card
from knownot.models.model_folder import check_free, save
from knownot.training.altered import altered_features
from knownot.training.batches import AugmentedPhotos, FeatureRows, readable
from knownot.training.build import build_classifier, check_order
from knownot.training.classification_module import ClassificationTraining
from knownot.training.config import TrainConfig
from knownot.training.feature_cache import default_cache, extract_features
from knownot.training.fit import Reporter, Silent, fit
from knownot.training.head_first import train_head
from knownot.training.plan import make_plan
from knownot.training.ranks import Ranks, check_shares, find_ranks
from knownot.training.result import (
    TRAINING,
    TrainResult,
    held_out_digest,
    write_training_files,
)
from knownot.training.run_folder import RunFolder
from knownot.training.weight_choice import train_with_chosen_weight

# Called as `VirtualOutlierLoss` is: features (N, D), logits (N, K), labels (N,) to a scalar loss.
PeerLoss = Callable[[UnknownAwareClassifier], torch.nn.Module]


def train(
    config: TrainConfig,
    reporter: Reporter | None = None,
    backbone: torch.nn.Module | None = None,
    cache: Path | None = None,
    peer: PeerLoss | None = None,
) -> TrainResult:
    """Train, calibrate and save a classifier.

    With several `config.devices` Lightning runs the calling script once more for each other process;
    those end in here, and the first alone returns. Under torchrun this is so from the start.

    Args:
        config: Settings.
        reporter: Told about plan and progress.
        backbone: A module of your own that maps images (N, 3, S, S) to features (N, D), instead of
            `config.arch`; give it again to `load`. `weights="none"` tells that it is not trained yet,
            where no batch norm does.
        cache: Folder for cached features; the user's cache by default.
        peer: Makes, for the model, another uncertainty loss to train with in place of its own; for
            comparisons.

    Returns:
        Folder, numbers and skipped photos.

    Raises:
        DataError: If the photos cannot be used at all.
        ConfigError: If settings contradict each other.
        TrainingError: If the loss is not finite.
    """
    ranks = find_ranks(config)
    config = ranks.settled(config)
    reporter = reporter if reporter and ranks.first else Silent()
    if config.vos_weight == "auto":
        again = partial(train, backbone=backbone, cache=cache, peer=peer)
        return train_with_chosen_weight(config, ranks, reporter, again)
    if config.finetune == "none" and ranks.several:
        raise ConfigError("devices: nothing is trained with finetune none; start one process")
    device = ranks.device(config.device)
    ranks.wait()
    with RunFolder(config) as run:
        return _train(config, run, ranks, device, reporter, backbone, cache, peer)


def _train(
    config: TrainConfig,
    run: RunFolder,
    ranks: Ranks,
    device: torch.device,
    reporter: Reporter,
    backbone: torch.nn.Module | None,
    cache: Path | None,
    peer: PeerLoss | None,
) -> TrainResult:
    started = time.monotonic()
    check_free(config.output, config.overwrite)
    splits = read_splits(config.data, config.val_fraction, config.seed)
    L.seed_everything(config.seed, verbose=False)
    model = build_classifier(config, splits.train.classes, backbone).to(device)
    config = config.for_backbone(is_pretrained(model.backbone, config.weights))
    skipped: dict[Path, str] = {} if ranks.first else run.skipped()
    if config.finetune == "all":
        splits = _readable_splits(splits, skipped, config.data, tried=not ranks.first)
    check_shares(config, len(splits.train))
    reporter.plan(make_plan(model, splits, config, str(device)))
    if ranks.first:
        run.open(skipped, model.classes, names_digest(splits.train.paths, config.data))

    if config.finetune != "all":
        cache = cache or default_cache()
        learned, val, paths = _features(model, splits, cache, reporter, skipped)
        _check_left(learned.labels, val.labels, model.classes, config.data)
        if config.finetune == "head":
            _fit(model, learned, config, run, reporter, ranks, peer)
        else:
            check_order(model, learned, config.outputs)
    else:
        if config.head_first and ranks.first and run.checkpoint() is None:
            # The other processes get it when they join.
            stored = cache or default_cache()
            begin, _ = _rows(model, splits.train, "training", stored, reporter, skipped)
            train_head(model, begin, config)
        photos = AugmentedPhotos(splits.train, model.preprocessing)
        _fit(model, photos, config, run, reporter, ranks, peer)
        learned, val, paths = _features(model.to(device), splits, None, reporter, skipped)
        _check_left(learned.labels, val.labels, model.classes, config.data)
    model.to(device).eval()
    model.fit_scores(learned.rows, learned.labels, config.knn_k)
    kept = cache if config.finetune != "all" else None
    altered = altered_features(model, splits.val.paths, kept, reporter.stage)
    model.calibrate(val.rows, config.classwise, altered)
    metrics = {
        **_metrics(model, learned, val),
        **_on_altered(model, val, altered),
        **held_out_digest(splits.val.paths, config.data, skipped),
        "finetune": config.finetune,
        "seconds": time.monotonic() - started,
    }
    model.card = model_card(model, metrics)

    def add_training_files(folder: Path) -> None:
        write_training_files(folder / TRAINING, config, metrics, skipped)
        run.copy_logs(folder / TRAINING)
        if config.keep_thumbnails:
            _write_thumbnails(folder / FOLDER, model, paths, learned.labels, reporter)

    save(model, config.output, overwrite=config.overwrite, extra=add_training_files)
    run.remove()
    return TrainResult(config.output, metrics, skipped)


def _readable_splits(splits: Splits, skipped: dict[Path, str], data: Path, tried: bool) -> Splits:
    known = skipped if tried else None
    train, bad_train = readable(splits.train, known)
    val, bad_val = readable(splits.val, known)
    skipped.update(bad_train | bad_val)
    _check_left(_labels(train), _labels(val), train.classes, data)
    return replace(splits, train=train, val=val)


def _labels(photos: PhotoSet) -> Tensor:
    return torch.tensor(photos.labels, dtype=torch.int64)


def _features(
    model: UnknownAwareClassifier,
    splits: Splits,
    cache: Path | None,
    reporter: Reporter,
    skipped: dict[Path, str],
) -> tuple[FeatureRows, FeatureRows, list[Path]]:
    """Features of training and validation photos, and paths of the former; adds to `skipped`."""

    given = cache, reporter, skipped
    learned, paths = _rows(model, splits.train, "training", *given)
    return learned, _rows(model, splits.val, "validation", *given)[0], paths


def _rows(
    model: UnknownAwareClassifier,
    photos: PhotoSet,
    kind: str,
    cache: Path | None,
    reporter: Reporter,
    skipped: dict[Path, str],
) -> tuple[FeatureRows, list[Path]]:
    """Features of photos, and the paths of those that could be read."""
    progress = reporter.stage(f"features of {kind} photos", len(photos))
    features = extract_features(model, photos.paths, cache, progress)
    skipped.update(features.skipped)
    labels = _labels(photos)[features.indices]
    return FeatureRows(features.rows, labels), [photos.paths[i] for i in features.indices]


def _write_thumbnails(
    folder: Path,
    model: UnknownAwareClassifier,
    paths: list[Path],
    labels: Tensor,
    reporter: Reporter,
) -> None:
    """Thumbnails of the photos that the kNN score remembers, numbered as it numbers them."""
    assert model.feature_scores is not None
    assert model.feature_scores.bank_rows is not None
    rows = model.feature_scores.bank_rows
    advance = reporter.stage("thumbnails", len(rows))
    write_thumbnails(folder, [paths[i] for i in rows], labels[rows].tolist(), advance)


def _check_left(train: Tensor, val: Tensor, classes: list[str], data: Path) -> None:
    left = torch.bincount(train, minlength=len(classes))
    gone = [name for name, count in zip(classes, left.tolist(), strict=True) if count == 0]
    if gone:
        raise DataError(f"{data}: no readable training photo of class {', '.join(gone)}")
    if len(val) == 0:
        raise DataError(f"{data}: no readable validation photo; calibration needs some")


def _fit(
    model: UnknownAwareClassifier,
    dataset: FeatureRows | AugmentedPhotos,
    config: TrainConfig,
    run: RunFolder,
    reporter: Reporter,
    ranks: Ranks,
    peer: PeerLoss | None,
) -> None:
    module = ClassificationTraining(model, dataset, config, None if peer is None else peer(model))
    model.vos.start_step = config.start_step(module.total_steps)
    fit(module, config, run, reporter.callbacks(), ranks)


@torch.no_grad()
def _metrics(
    model: UnknownAwareClassifier, learned: FeatureRows, val: FeatureRows
) -> dict[str, Any]:
    output = model.classify(val.rows.to(model.device))
    correct = output.logits.argmax(1).cpu() == val.labels
    of_class = {name: correct[val.labels == k] for k, name in enumerate(model.classes)}
    of_class = {name: right for name, right in of_class.items() if len(right)}
    return {
        "task": "classify",
        "n_train": len(learned),
        "n_train_per_class": _counts(learned.labels, model.classes),
        "n_val": len(val),
        "n_val_per_class": _counts(val.labels, model.classes),
        "val_accuracy": float(correct.double().mean()),
        "val_accuracy_interval": binomial_interval(int(correct.sum()), len(correct)),
        "val_accuracy_per_class": {n: float(r.double().mean()) for n, r in of_class.items()},
        "val_accuracy_interval_per_class": {
            name: binomial_interval(int(right.sum()), len(right))
            for name, right in of_class.items()
        },
        "alpha": model.alpha,
        "score": model.default_score,
        "threshold": model.threshold(),
        "threshold_range": [*model.threshold_range()],
        "radius_ratio": model.vos.radius_ratio,
        "vos_started": model.with_vos and model.vos.steps > model.vos.start_step,
    }


@torch.no_grad()
def _on_altered(
    model: UnknownAwareClassifier, val: FeatureRows, altered: list[Tensor]
) -> dict[str, Any]:
    """How well energy tells photos that show no class any more from validation photos."""

    def energies(rows: Tensor) -> Tensor:
        return energy(model.classify(rows.to(model.device)).logits).cpu()

    known = energies(val.rows)
    each = [fpr95(known, energies(rows)) for rows in altered if len(rows)]
    return {
        "altered_fpr95": mean(each) if each else None,
        "n_altered": len(altered[0]) if altered else 0,
    }


def _counts(labels: Tensor, classes: list[str]) -> dict[str, int]:
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    return dict(zip(classes, counts, strict=True))
