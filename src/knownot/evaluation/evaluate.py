"""A model against ID test photos and OOD folders: every score, every metric, one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from knownot.core import metrics
from knownot.core.calibration import flagged
from knownot.data.image_folder import list_photos, read_labelled
from knownot.data.reading import read_batches
from knownot.errors import DataError
from knownot.evaluation.measures import binomial_interval, separation
from knownot.evaluation.report import Progress, save_report, set_names
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.cpu_workers import cpu_workers
from knownot.models.modes import evaluating


@dataclass(frozen=True)
class Scored:
    """A set of photos after one forward pass.

    Attributes:
        name: Name of the set.
        paths: Photos that could be read, N of them.
        predicted: Most likely class of each (N,), int64.
        confidence: Its softmax probability (N,).
        scores: Every ood_score (N,) by name.
        p_values: p-value of the deciding score (N,), float64.
        labels: True classes (N,), int64; empty for OOD photos.
        skipped: Path and reason of photos that could not be read.
    """

    name: str
    paths: list[Path]
    predicted: Tensor
    confidence: Tensor
    scores: dict[str, Tensor]
    p_values: Tensor
    labels: Tensor
    skipped: dict[Path, str] = field(default_factory=dict)

    @property
    def correct(self) -> Tensor:
        """Whether each photo was classified correctly (N,), bool."""
        return self.predicted == self.labels


@dataclass(frozen=True)
class Report:
    """Result of an evaluation.

    Attributes:
        summary: The object that `metrics.json` holds, and `knownot evaluate --json` prints.
        id_set: The ID test photos with their scores.
        ood_sets: The OOD photos with their scores, one entry for each folder.
        score: Name of the score that decides.
        threshold: Its pooled threshold.
        classes: The model's class names.
    """

    summary: dict[str, Any]
    id_set: Scored
    ood_sets: list[Scored]
    score: str
    threshold: float
    classes: list[str]

    def save(self, folder: str | Path) -> Path:
        """Write `metrics.json` and `report.html` to a folder; returns the report's path."""
        from knownot.evaluation.html import write_html

        return save_report(self.summary, folder, lambda page: write_html(self, page))


def evaluate(
    model: UnknownAwareClassifier,
    id_folder: str | Path,
    ood_folders: Sequence[str | Path] = (),
    *,
    score: str | None = None,
    alpha: float | None = None,
    progress: Progress | None = None,
) -> Report:
    """Score ID test photos and OOD photos and compute all metrics.

    Args:
        model: A calibrated model.
        id_folder: `<class>/` folders of test photos of the model's classes.
        ood_folders: Folders of photos of none of the classes; sub-folders are included.
        score: Score that decides; the model's default if not given.
        alpha: Share of ID photos that may be called unknown; the model's own if not given.
        progress: Called with name and size of a set, returns a callback for photos done.

    Returns:
        Numbers and the scores behind them.

    Raises:
        DataError: If a folder is missing, empty, or holds no readable photo.
    """
    score = score or model.default_score
    alpha = model.valid_alpha(alpha)
    threshold = model.threshold(alpha, score)
    known = read_labelled(id_folder, model.classes)
    # All folders are looked at before any photo is read: a wrong path is told at once.
    folders = {name: list_photos(folder) for name, folder in set_names(ood_folders).items()}
    how: dict[str, Any] = {"score": score, "alpha": alpha, "progress": progress}
    id_set = score_photos(model, "ID", known.paths, known.labels, **how)
    ood_sets = [score_photos(model, name, paths, **how) for name, paths in folders.items()]
    summary = _summary(model, id_set, ood_sets, score, alpha, threshold)
    return Report(summary, id_set, ood_sets, score, threshold, model.classes)


@torch.no_grad()
def score_photos(
    model: UnknownAwareClassifier,
    name: str,
    paths: Sequence[Path],
    labels: Sequence[int] = (),
    *,
    score: str,
    alpha: float | None = None,
    progress: Progress | None = None,
) -> Scored:
    """Run one set of photos through the model.

    Raises:
        DataError: If none of the photos can be read.
    """
    advance = progress(name, len(paths)) if progress else lambda done: None
    skipped: dict[Path, str] = {}
    indices: list[int] = []
    predicted, confidence, p_values = [], [], []
    scores: dict[str, list[Tensor]] = {}
    size = model.batch_size
    batches = read_batches(paths, model.preprocessing.read, size, skipped)

    def scored(photos: Tensor) -> _Batch:
        return _scored(model, photos, score, alpha)

    with evaluating(model), cpu_workers(model.device, len(paths), size) as workers:
        for batch, found in workers.spread(batches, scored):
            predicted.append(found.predicted)
            confidence.append(found.confidence)
            p_values.append(found.p_values)
            for key, values in found.scores.items():
                scores.setdefault(key, []).append(values)
            indices += batch
            advance(len(batch))
    advance(len(skipped))
    if not indices:
        first = next(iter(skipped.values()), "it is empty")
        raise DataError(
            f"set {name!r}: none of its {len(paths)} photos can be read; first: {first}"
        )
    return Scored(
        name,
        [paths[i] for i in indices],
        torch.cat(predicted),
        torch.cat(confidence),
        {key: torch.cat(values) for key, values in scores.items()},
        torch.cat(p_values),
        torch.tensor([labels[i] for i in indices] if labels else [], dtype=torch.int64),
        skipped,
    )


class _Batch(NamedTuple):
    """What `Scored` holds, of one batch."""

    predicted: Tensor
    confidence: Tensor
    scores: dict[str, Tensor]
    p_values: Tensor


@torch.no_grad()
def _scored(
    model: UnknownAwareClassifier, photos: Tensor, score: str, alpha: float | None
) -> _Batch:
    output = model(photos.to(model.device))
    scores = model.scores(output)
    confidence, predicted = output.logits.float().softmax(1).max(1)
    p_values = model.p_values(output, scores, score, alpha)
    on_host = {key: values.cpu() for key, values in scores.items()}
    return _Batch(predicted.cpu(), confidence.cpu(), on_host, p_values)


def _summary(
    model: UnknownAwareClassifier,
    id_set: Scored,
    ood_sets: list[Scored],
    score: str,
    alpha: float,
    threshold: float,
) -> dict[str, Any]:
    unknown = flagged(id_set.p_values, alpha)
    summary: dict[str, Any] = {
        "task": "classify",
        "n_id": len(id_set.paths),
        "id_acc": float(id_set.correct.double().mean()),
        "alpha": alpha,
        "score": score,
        "threshold": threshold,
        "threshold_range": [*model.threshold_range(alpha, score)],
        "flagged_id": float(unknown.double().mean()),
        "flagged_id_interval": binomial_interval(int(unknown.sum()), len(unknown)),
        "ood": {},
        "skipped": {
            str(path): reason
            for scored in (id_set, *ood_sets)
            for path, reason in scored.skipped.items()
        },
    }
    for ood in ood_sets:
        by_score = {
            name: separation(id_set.scores[name], values) for name, values in ood.scores.items()
        }
        summary["ood"][ood.name] = {
            "n": len(ood.paths),
            **by_score[score],
            "oscr": metrics.oscr(id_set.scores[score], id_set.correct, ood.scores[score]),
            "flagged": float(flagged(ood.p_values, alpha).double().mean()),
            "scores": by_score,
        }
    if ood_sets:
        summary["mean_fpr95"] = float(np.mean([s["fpr95"] for s in summary["ood"].values()]))
        summary["mean_auroc"] = float(np.mean([s["auroc"] for s in summary["ood"].values()]))
    return summary
