"""From photos with boxes to a model folder: `knownot train` for detectors."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from knownot.core.columns import joined
from knownot.core.energy import energy
from knownot.core.metrics import fpr95
from knownot.data.detection_folder import DetectionSplits, read_detection_splits, require_clean
from knownot.data.detection_set import DetectionSet
from knownot.errors import ConfigError, DataError, TrainingError
from knownot.evaluation.box_metrics import best_f1_threshold, mean_average_precision
from knownot.evaluation.detect_set import as_boxes, detect_photos, finds_object
from knownot.evaluation.measures import binomial_interval
from knownot.models.detector import UnknownAwareDetector
from knownot.models.model_card import model_card
from knownot.models.model_folder import check_free, save
from knownot.models.regions import Detections, RegionModel
from knownot.training.altered import altered_boxes
from knownot.training.batches import readable
from knownot.training.build_detector import (
    build_detector,
    check_box_order,
    detector_to_start_from,
    finished_regions,
    how_built,
    new_regions,
    refuse_built_otherwise,
)
from knownot.training.config import DetectionConfig
from knownot.training.detection_module import DetectionTraining
from knownot.training.fit import Reporter, Silent, fit
from knownot.training.plan import make_detection_plan
from knownot.training.ranks import Ranks, check_shares, find_ranks
from knownot.training.result import (
    TRAINING,
    TrainResult,
    held_out_digest,
    write_training_files,
)
from knownot.training.run_folder import RunFolder

# Training photos that the feature scores are fitted on: more make them no better.
_FITTED_PHOTOS = 4000
_ROWS = ("boxes", "labels", "scores", "logits", "scored_features")
_PROPOSALS = ("proposals", "objectness")


def train_detector(
    config: DetectionConfig,
    reporter: Reporter | None = None,
    regions: RegionModel | None = None,
) -> TrainResult:
    """Train, calibrate and save a detector; several processes are as in `train`.

    Args:
        config: Settings.
        reporter: Told about plan and progress.
        regions: A detector of your own, adapted, instead of `config.arch`; with finetune none one that is
            trained already.

    Returns:
        Folder, numbers and skipped photos.

    Raises:
        DataError: If the photos or annotations cannot be used at all.
        ConfigError: If settings contradict each other.
        TrainingError: If the loss is not finite, or the detector finds nothing in the end.
    """
    ranks = find_ranks(config)
    config = ranks.settled(config)
    reporter = reporter if reporter and ranks.first else Silent()
    if config.finetune == "none" and ranks.several:
        raise ConfigError("devices: nothing is trained with finetune none; start one process")
    device = ranks.device(config.device)
    ranks.wait()
    with RunFolder(config) as run:
        return _train(config, run, ranks, device, reporter, regions)


def _train(
    config: DetectionConfig,
    run: RunFolder,
    ranks: Ranks,
    device: torch.device,
    reporter: Reporter,
    regions: RegionModel | None,
) -> TrainResult:
    started = time.monotonic()
    check_free(config.output, config.overwrite)
    skipped: dict[Path, str] = {} if ranks.first else run.skipped()
    splits = read_detection_splits(config.data, config.val_fraction, config.seed)
    if config.strict:
        require_clean(splits)
    L.seed_everything(config.seed, verbose=False)
    old = detector_to_start_from(config, splits.train.classes)
    if old:
        config = config.model_copy(update=how_built(old))
        regions = copy.deepcopy(old.regions)
    elif config.finetune == "none":
        regions, splits = finished_regions(config, splits, regions)
    elif regions:
        refuse_built_otherwise(config, regions)
    regions = regions or new_regions(config, splits.train.classes)
    model = build_detector(config, splits.train.classes, regions).to(device)
    splits = _usable(splits, model, skipped, config.data, tried=not ranks.first)
    if config.strict and skipped:
        raise DataError(f"{len(skipped)} photo(s) cannot be used: {'; '.join(skipped.values())}")
    check_shares(config, len(splits.train))
    model = model.to(memory_format=torch.channels_last)  # an eighth faster on a CPU
    reporter.plan(make_detection_plan(model, splits, config, str(device)))
    before = None
    if ranks.first:
        run.open(skipped, model.classes, splits.train.digest(config.data))
        before = _Before(old.to(device), splits.val, reporter, skipped) if old else None
    if config.finetune != "none":
        module = DetectionTraining(model, splits, config)
        model.vos.start_step = config.start_step(module.total_steps)
        fit(module, config, run, reporter.callbacks(), ranks, gradient_clip_val=config.clip)
    model.to(device).eval()
    found = _detect(model, splits.val, "validation photos", reporter, skipped)
    measured = _map(found, splits.val)
    comparison = before.compare(measured["map"], config.map_tolerance) if before else {}
    if before is not None and comparison["kept_old_weights"]:
        model, found, measured = before.model.to(device), before.found, before.measured
        model.alpha = config.alpha
        on_altered = {}
    else:
        on_altered = _calibrate(model, splits, found, config, reporter, skipped)
    metrics = {
        **_metrics(model, splits, found, measured),
        **on_altered,
        **comparison,
        **held_out_digest(splits.val.paths, config.data, skipped),
        "finetune": config.finetune,
        "seconds": time.monotonic() - started,
    }
    model.card = model_card(model, metrics)

    def add_training_files(folder: Path) -> None:
        write_training_files(folder / TRAINING, config, metrics, skipped)
        run.copy_logs(folder / TRAINING)

    save(model, config.output, overwrite=config.overwrite, extra=add_training_files)
    run.remove()
    return TrainResult(config.output, metrics, skipped)


class _Before:
    """The finished detector that VOS is added to, kept as it was, its boxes and its mAP."""

    def __init__(
        self,
        model: UnknownAwareDetector,
        val: DetectionSet,
        reporter: Reporter,
        skipped: dict[Path, str],
    ) -> None:
        self.found = _detect(model, val, "validation photos, before", reporter, skipped)
        self.measured = _map(self.found, val)
        self.model = model.cpu()

    def compare(self, after: float | None, tolerance: float) -> dict[str, Any]:
        """Both figures, and whether the loss is more than was allowed."""
        before, after = self.measured["map"] or 0.0, after or 0.0
        return {
            "val_map_before": before,
            "val_map_after": after,
            "map_tolerance": tolerance,
            "kept_old_weights": after < before - tolerance,
        }


def _usable(
    splits: DetectionSplits,
    model: UnknownAwareDetector,
    skipped: dict[Path, str],
    data: Path,
    tried: bool,
) -> DetectionSplits:
    """The photos that the model can be trained on; the others go to `skipped`."""
    known = skipped if tried else None
    train, bad_train = readable(splits.train, known, model.regions.refuse_size)
    val, bad_val = readable(splits.val, known, model.regions.refuse_size)
    skipped.update(bad_train | bad_val)
    for name, left in (("training", train), ("validation", val)):
        if sum(left.counts().values()) == 0:
            raise DataError(f"{data}: no readable {name} photo with a box")
    return replace(
        splits,
        train=replace(train, problems=splits.train.problems),
        val=replace(val, problems=splits.val.problems),
    )


def _calibrate(
    model: UnknownAwareDetector,
    splits: DetectionSplits,
    found: dict[int, Detections],
    config: DetectionConfig,
    reporter: Reporter,
    skipped: dict[Path, str],
) -> dict[str, Any]:
    """Box threshold, feature scores and calibration; `found` are the validation photos' boxes.

    Returns:
        How well energy tells boxes on altered photos from those on validation photos.
    """
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(splits.train), generator=generator)[:_FITTED_PHOTOS].tolist()
    learned = splits.train.subset(chosen)
    found_on_train = _detect(model, learned, "features of training photos", reporter, skipped)
    if config.finetune == "none":
        check_box_order(model, learned, found_on_train, config.outputs)
    on_train = _found_objects(learned, found_on_train)
    boxes = [as_boxes(found[i]) for i in found]
    truth = [splits.val.objects[i] for i in found]
    model.box_threshold = best_f1_threshold(boxes, truth, len(model.classes))
    held_out = joined([{name: found[i][name] for name in _ROWS} for i in found])
    known = torch.cat([finds_object(found[i], splits.val.objects[i]) for i in found])
    known &= held_out["scores"] >= model.box_threshold
    if on_train is None or not known.any():
        remedy = (
            "are weights, outputs and pixels those that it was trained with?"
            if config.finetune == "none"
            else "train longer (--epochs), with a higher --lr, or larger photos (--image-size)"
        )
        raise TrainingError(f"the detector finds none of the objects it was shown; {remedy}")
    model.fit_scores(on_train["scored_features"], on_train["labels"], config.knn_k)
    altered = altered_boxes(model, [splits.val.paths[i] for i in found], reporter.stage)
    model.calibrate(held_out, known, altered)
    if all(name in next(iter(found.values())) for name in _PROPOSALS):
        model.calibrate_proposals(list(found.values()))
    return _on_altered(model, held_out, altered)


@torch.no_grad()
def _on_altered(
    model: UnknownAwareDetector, held_out: Detections, altered: list[Detections]
) -> dict[str, Any]:
    """FPR95 of energy over all boxes above the box threshold; hardly any is left on some kinds."""

    def energies(found: Detections) -> Tensor:
        logits = found["logits"][found["scores"] >= model.box_threshold]
        return energy(model.vos.class_logits(logits.to(model.device))).cpu()

    strange = torch.cat([energies(found) for found in altered]) if altered else torch.empty(0)
    known = energies(held_out)
    return {
        "altered_fpr95": fpr95(known, strange) if len(known) and len(strange) else None,
        "n_altered_boxes": len(strange),
    }


def _detect(
    model: UnknownAwareDetector,
    photos: DetectionSet,
    stage: str,
    reporter: Reporter,
    skipped: dict[Path, str],
) -> dict[int, Detections]:
    progress = reporter.stage(stage, len(photos))
    return {
        index: {name: found[name] for name in (*_ROWS, *_PROPOSALS) if name in found}
        for index, found in detect_photos(model, photos.paths, skipped, progress, proposals=True)
    }


def _found_objects(photos: DetectionSet, found: dict[int, Detections]) -> Detections | None:
    parts = []
    for i, detections in found.items():
        right = finds_object(detections, photos.objects[i])
        parts.append({name: detections[name][right] for name in _ROWS})
    together = joined(parts)
    return together if len(together["labels"]) else None


def _metrics(
    model: UnknownAwareDetector,
    splits: DetectionSplits,
    found: dict[int, Detections],
    measured: dict[str, Any],
) -> dict[str, Any]:
    return {
        "task": "detect",
        "n_train": len(splits.train),
        "n_train_per_class": splits.train.counts(),
        "n_val": len(splits.val),
        "n_val_per_class": splits.val.counts(),
        **_found_share(found, splits.val, model.box_threshold),
        "val_map": measured["map"],
        "val_map_50": measured["map_50"],
        "val_map_per_class": measured["per_class"],
        "calibration_boxes": len(model.calibration(model.default_score)),
        "alpha": model.alpha,
        "score": model.default_score,
        "threshold": model.threshold(),
        "threshold_range": [*model.threshold_range()],
        "box_threshold": model.box_threshold,
        "radius_ratio": model.vos.radius_ratio,
        "vos_started": model.with_vos and model.vos.steps > model.vos.start_step,
    }


def _found_share(
    found: dict[int, Detections], photos: DetectionSet, box_threshold: float
) -> dict[str, Any]:
    """Share of the known objects that a box above the threshold finds, with its interval."""
    right = sum(
        int((finds_object(d, photos.objects[i]) & (d["scores"] >= box_threshold)).sum())
        for i, d in found.items()
    )
    objects = sum(photos.counts().values())
    return {
        "val_found": right / objects,
        "val_found_interval": binomial_interval(right, objects),
    }


def _map(found: dict[int, Detections], photos: DetectionSet) -> dict[str, Any]:
    boxes = [as_boxes(found[i]) for i in found]
    return mean_average_precision(boxes, [photos.objects[i] for i in found], photos.classes)
