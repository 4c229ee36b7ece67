"""From a folder of photos to a model folder: the whole of `knownot train`."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from knownot.data.image_folder import PhotoSet, Splits, read_splits
from knownot.errors import ConfigError, DataError
from knownot.models.backbones import create_backbone, feature_width
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.model_folder import CONFIG, check_free, choose_device, save
from knownot.models.preprocessing import Preprocessing
from knownot.training.config import TrainConfig
from knownot.training.feature_cache import default_cache, extract_features
from knownot.training.lightning_module import (
    AugmentedPhotos,
    FeatureRows,
    VosTraining,
    readable,
)
from knownot.training.model_card import model_card
from knownot.training.plan import Plan, make_plan, steps_per_epoch

# Settings that may differ when an interrupted run goes on: they do not touch its result.
_FREE_ON_RESUME = {"device", "workers", "resume", "overwrite", "alpha", "classwise", "knn_k"}


class Reporter(Protocol):
    """What training tells its caller as it goes; the command line draws it."""

    def plan(self, plan: Plan, config: TrainConfig) -> None:
        """The plan, before anything is computed."""

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """A stage of `total` photos begins; the result is called with photos done."""

    def callbacks(self) -> list[Callback]:
        """Lightning callbacks, such as a progress bar."""


class Silent:
    """A reporter that says nothing."""

    def plan(self, plan: Plan, config: TrainConfig) -> None:
        """Say nothing."""

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """Count nothing."""
        return lambda done: None

    def callbacks(self) -> list[Callback]:
        """No callbacks."""
        return []


@dataclass(frozen=True)
class TrainResult:
    """What a training run leaves behind.

    Attributes:
        folder: The model folder.
        metrics: The numbers of `training/metrics.json`.
        skipped: Path and reason of every photo that could not be used.
    """

    folder: Path
    metrics: dict[str, Any]
    skipped: dict[Path, str] = field(default_factory=dict)


def train(
    config: TrainConfig,
    reporter: Reporter | None = None,
    backbone: torch.nn.Module | None = None,
    cache: Path | None = None,
) -> TrainResult:
    """Train, calibrate and save a classifier.

    Args:
        config: Settings.
        reporter: Told about plan and progress.
        backbone: A module of your own that maps images (N, 3, S, S) to features (N, D), instead of
            `config.arch`; give it again to `load`.
        cache: Folder for cached features; the user's cache by default.

    Returns:
        Folder, numbers and skipped photos.

    Raises:
        DataError: If the photos cannot be used at all.
        ConfigError: If settings contradict each other.
        TrainingError: If the loss is not finite.
    """
    started = time.monotonic()
    reporter = reporter or Silent()
    run = _RunFolder(config)
    check_free(config.output, config.overwrite)
    splits = read_splits(config.data, config.val_fraction, config.seed)
    L.seed_everything(config.seed, verbose=False)
    device = choose_device(config.device)
    model = _build(config, splits.train.classes, backbone).to(device)
    if config.finetune == "all":
        splits, skipped = _without_bad_photos(splits)
    else:
        skipped = {}
    reporter.plan(make_plan(model, splits, config, str(device)), config)
    run.open()

    cache = cache or default_cache()
    if config.finetune == "head":
        train_rows, train_labels = _features(
            model, splits.train, cache, reporter, skipped, "features of training photos"
        )
        val_rows, val_labels = _features(
            model, splits.val, cache, reporter, skipped, "features of validation photos"
        )
        _check_left(train_labels, val_labels, model.classes, config.data)
        _fit(model, FeatureRows(train_rows, train_labels), config, run, reporter)
    else:
        _check_left(
            torch.tensor(splits.train.labels),
            torch.tensor(splits.val.labels),
            model.classes,
            config.data,
        )
        _fit(model, AugmentedPhotos(splits.train, model), config, run, reporter)
        model.to(device)
        train_rows, train_labels = _features(
            model, splits.train, None, reporter, skipped, "features of training photos"
        )
        val_rows, val_labels = _features(
            model, splits.val, None, reporter, skipped, "features of validation photos"
        )
    model.to(device).eval()
    model.fit_scores(train_rows, train_labels, config.knn_k)
    model.calibrate(val_rows, config.classwise)
    metrics = _metrics(model, train_labels, val_rows, val_labels, time.monotonic() - started)

    def add_training_files(folder: Path) -> None:
        training = folder / "training"
        training.mkdir()
        (training / "config.yaml").write_text(config.to_yaml())
        (training / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        listed = {str(path): reason for path, reason in skipped.items()}
        (training / "skipped.json").write_text(json.dumps(listed, indent=2) + "\n")
        run.copy_logs(training)
        (folder / "README.md").write_text(model_card(model, config, metrics))

    save(model, config.output, overwrite=config.overwrite, extra=add_training_files)
    run.remove()
    return TrainResult(config.output, metrics, skipped)


def _build(
    config: TrainConfig, classes: list[str], backbone: torch.nn.Module | None
) -> UnknownAwareClassifier:
    architecture, preprocessing = "custom", Preprocessing()
    if backbone is None:
        architecture = config.arch
        backbone, preprocessing = create_backbone(config.arch, config.weights)
    if config.image_size is not None:
        preprocessing = preprocessing.model_copy(update={"image_size": config.image_size})
    width = feature_width(backbone, preprocessing.image_size)
    bottleneck = config.bottleneck_for(width)
    model = UnknownAwareClassifier(
        backbone,
        width,
        classes,
        preprocessing,
        bottleneck=bottleneck,
        standardise=config.standardised,
        vos=config.vos_settings(len(classes), bottleneck or width),
        architecture=architecture,
        alpha=config.alpha,
    )
    return model.to(memory_format=torch.channels_last)


def _without_bad_photos(splits: Splits) -> tuple[Splits, dict[Path, str]]:
    train, bad_train = readable(splits.train)
    val, bad_val = readable(splits.val)
    return Splits(train, val, splits.warnings), bad_train | bad_val


def _features(
    model: UnknownAwareClassifier,
    photos: PhotoSet,
    cache: Path | None,
    reporter: Reporter,
    skipped: dict[Path, str],
    stage: str,
) -> tuple[Tensor, Tensor]:
    progress = reporter.stage(stage, len(photos))
    features = extract_features(model, photos.paths, cache, progress)
    skipped.update(features.skipped)
    return features.rows, torch.tensor(photos.labels, dtype=torch.int64)[features.indices]


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
    run: _RunFolder,
    reporter: Reporter,
) -> None:
    steps = steps_per_epoch(len(dataset), config) * config.n_epochs
    model.vos.start_step = int(config.vos_start_share * steps)
    module = VosTraining(model, dataset, config, steps)
    device = choose_device(config.device).type
    with _quiet():
        trainer = L.Trainer(
            max_epochs=config.n_epochs,
            accelerator="gpu" if device == "cuda" else device,
            devices=1,
            precision=config.precision,  # type: ignore[arg-type]
            logger=[CSVLogger(run.logs, "", "csv"), TensorBoardLogger(run.logs, "", "tensorboard")],
            callbacks=[
                ModelCheckpoint(
                    run.checkpoints,
                    filename="last",
                    save_on_train_epoch_end=True,
                    enable_version_counter=False,
                ),
                *reporter.callbacks(),
            ],
            enable_progress_bar=False,  # the reporter draws its own
            enable_model_summary=False,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
        )
        with _plain_interrupt():
            trainer.fit(module, ckpt_path=run.checkpoint())
    if trainer.interrupted:  # some versions of Lightning return as if nothing had happened
        raise KeyboardInterrupt


@torch.no_grad()
def _metrics(
    model: UnknownAwareClassifier,
    train_labels: Tensor,
    val_rows: Tensor,
    val_labels: Tensor,
    seconds: float,
) -> dict[str, Any]:
    output = model.classify(val_rows.to(model.device))
    correct = output.logits.argmax(1).cpu() == val_labels
    return {
        "task": "classify",
        "n_train": len(train_labels),
        "n_val": len(val_labels),
        "val_accuracy": float(correct.double().mean()),
        "val_accuracy_per_class": {
            name: float(correct[val_labels == k].double().mean())
            for k, name in enumerate(model.classes)
            if (val_labels == k).any()
        },
        "alpha": model.alpha,
        "score": model.default_score,
        "threshold": model.threshold(),
        "radius_ratio": model.vos.radius_ratio,
        "vos_started": model.vos.started,
        "seconds": seconds,
    }


class _RunFolder:
    """Checkpoint and logs of a run in progress, beside the model folder to be."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.root = config.output.parent / f".{config.output.name}.run"
        self.logs = self.root / "logs"
        self.checkpoints = self.root / "checkpoints"
        if config.resume and not self.root.is_dir():
            finished = (config.output / CONFIG).is_file()
            remedy = "it is finished" if finished else "leave --resume out to start one"
            raise ConfigError(f"resume: no interrupted run for {config.output}; {remedy}")
        if config.resume:
            self._check_same()
        elif self.checkpoint() and not config.overwrite:
            raise ConfigError(
                f"{config.output}: an interrupted run is kept; add --resume to go on with it, or "
                "--overwrite to start anew"
            )

    def open(self) -> None:
        """Make the folder; what an earlier run left is removed unless this one resumes it."""
        try:
            if not self.config.resume:
                shutil.rmtree(self.root, ignore_errors=True)
            self.logs.mkdir(parents=True, exist_ok=True)
            (self.root / "config.yaml").write_text(self.config.to_yaml())
        except OSError as error:
            raise DataError(f"{self.root}: cannot be written ({error.strerror})") from None

    def checkpoint(self) -> Path | None:
        """The last complete epoch, or None."""
        last = self.checkpoints / "last.ckpt"
        return last if last.is_file() else None

    def copy_logs(self, training: Path) -> None:
        """Put CSV and TensorBoard logs into the model folder."""
        for name in ("csv", "tensorboard"):
            if (self.logs / name).is_dir():
                shutil.copytree(self.logs / name, training / name)

    def remove(self) -> None:
        """The run is complete."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _check_same(self) -> None:
        try:
            before = TrainConfig(**yaml.safe_load((self.root / "config.yaml").read_text()))
        except (OSError, TypeError, ValueError) as error:
            raise ConfigError(f"resume: {self.root}/config.yaml is damaged ({error})") from None
        now, then = self.config.model_dump(), before.model_dump()
        changed = [
            f"{key} ({then[key]} -> {now[key]})"
            for key in now
            if now[key] != then[key] and key not in _FREE_ON_RESUME
        ]
        if changed:
            raise ConfigError(
                f"resume: settings differ from the interrupted run: {', '.join(changed)}; use the "
                "same ones, or leave --resume out to start anew"
            )


@contextmanager
def _plain_interrupt() -> Iterator[None]:
    """Undo what Lightning does on Ctrl-C: it ignores all further ones and exits the process."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except (SystemExit, RuntimeError) as error:
        # A RuntimeError: its clean-up fails when no batch has been read yet.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's advertising and hints that do not concern the user."""
    loggers = [logging.getLogger(n) for n in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*isinstance.*LeafSpec.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
