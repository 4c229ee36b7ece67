"""A detector against annotated ID photos and OOD photos, by the paper's protocol over boxes.

Every box above the box threshold counts: one on an ID photo as in-distribution, one on an OOD photo
as out-of-distribution. Such a protocol never counts an unknown object that no box covers, so where
unknown objects are annotated the open-set measures stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from knownot.core.calibration import flagged
from knownot.core.metrics import fpr95
from knownot.data.box_checks import problem
from knownot.data.detection_folder import looks_like_detection, read_detection
from knownot.data.detection_set import DetectionSet, Objects
from knownot.data.image_folder import list_photos
from knownot.errors import DataError
from knownot.evaluation.box_matching import Boxes, on_known_object
from knownot.evaluation.box_metrics import mean_average_precision
from knownot.evaluation.detect_set import as_boxes, detect_photos, finds_object
from knownot.evaluation.measures import binomial_interval, separation
from knownot.evaluation.open_set import open_set_measures
from knownot.evaluation.report import Progress, save_report, set_names
from knownot.models.detector import UnknownAwareDetector
from knownot.models.regions import Detections
from knownot.models.shown_boxes import without_repeats

_KEPT = ("boxes", "labels", "scores")

FurtherScores = Callable[[Detections], Mapping[str, Tensor]]


@dataclass(frozen=True)
class ScoredBoxes:
    """A set of photos after one pass of the detector; a box is a row.

    Attributes:
        name: Name of the set.
        paths: Photos that could be read.
        truth: What is annotated in each; unknown objects have label -1. Empty without annotations.
        found: Boxes of each photo that the detector gave at all.
        unknown: Which of them are called unknown, for each photo (B,), bool.
        p_values: Their p-values, for each photo (B,), float64.
        threshold: Box threshold.
        is_ood: Whether its boxes stand for the unknown.
        proposals: Proposals that no class claims and that are shown as unknown, for each photo
            `boxes` (M, 4) and `p_values` (M,); empty if they were not asked for.
        skipped: Path and reason of photos that could not be read.
    """

    name: str
    paths: list[Path]
    truth: list[Objects]
    found: list[Detections]
    unknown: list[Tensor]
    p_values: list[Tensor]
    threshold: float
    is_ood: bool
    proposals: list[Detections] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)

    @cached_property
    def counted(self) -> list[Tensor]:
        """Which boxes count, for each photo (B,), bool.

        Those above the threshold; on an OOD photo not those around an object of a known class, if
        one is annotated there.
        """
        above = [found["scores"] >= self.threshold for found in self.found]
        if not self.is_ood:
            return above
        return [
            kept & ~on_known_object(found["boxes"], truth)
            for kept, found, truth in zip(above, self.found, self.truth, strict=True)
        ]

    @property
    def scores(self) -> dict[str, Tensor]:
        """Every ood_score of the boxes that count, all photos together (M,), by name."""
        names = [key for key in self.found[0] if key.startswith("ood.")]
        return {
            name.removeprefix("ood."): torch.cat(
                [found[name][kept] for found, kept in zip(self.found, self.counted, strict=True)]
            )
            for name in names
        }

    @cached_property
    def shown(self) -> list[Tensor]:
        """Rows shown of each photo (S,): boxes above the threshold, unknown objects once."""
        shown = []
        for found, unknown in zip(self.found, self.unknown, strict=True):
            above = torch.where(found["scores"] >= self.threshold)[0]
            kept = without_repeats(found["boxes"][above], found["scores"][above], unknown[above])
            shown.append(above[kept])
        return shown

    @cached_property
    def right(self) -> list[Tensor]:
        """Boxes above the threshold on an annotated object of their class, for each photo (B,)."""
        return [
            (found["scores"] >= self.threshold) & finds_object(found, truth)
            for found, truth in zip(self.found, self.truth, strict=True)
        ]


@dataclass(frozen=True)
class DetectionReport:
    """Result of an evaluation.

    Attributes:
        summary: The object that `metrics.json` holds.
        id_set: The ID photos with their boxes.
        ood_sets: The OOD photos with their boxes, one entry for each set.
        score: Name of the score that decides.
        threshold: Its pooled threshold.
        classes: The model's class names.
    """

    summary: dict[str, Any]
    id_set: ScoredBoxes
    ood_sets: list[ScoredBoxes]
    score: str
    threshold: float
    classes: list[str]

    def save(self, folder: str | Path) -> Path:
        """Write `metrics.json` and `report.html` to a folder; returns the report's path."""
        from knownot.evaluation.detection_html import write_detection_html

        return save_report(self.summary, folder, lambda page: write_detection_html(self, page))


def evaluate_detector(
    model: UnknownAwareDetector,
    id_data: str | Path,
    ood_data: Sequence[str | Path] = (),
    *,
    score: str | None = None,
    alpha: float | None = None,
    box_threshold: float | None = None,
    proposals: bool = False,
    further: FurtherScores | None = None,
    progress: Progress | None = None,
) -> DetectionReport:
    """Measure a detector.

    Args:
        model: A calibrated detector.
        id_data: COCO or VOC annotations of photos of the model's classes.
        ood_data: Photos without any object of these classes: folders of photos, or annotated sets,
            whose objects of other classes are then the unknown ones.
        score: Score that decides; the model's default if not given.
        alpha: Share of boxes around known objects that may be called unknown.
        box_threshold: Least score of a box that counts; the model's own if not given.
        proposals: Also measure the proposals that no class claims, shown as unknown.
        further: Scores (B,) by name, of a photo's boxes, to be measured beside the model's own.
        progress: Called with name and size of a set, returns a callback for photos done.

    Returns:
        Numbers and the boxes behind them.

    Raises:
        DataError: If a set is missing, empty, or holds no readable photo.
        ConfigError: If a setting is wrong, or proposals were not calibrated.
    """
    score = score or model.default_score
    alpha = model.valid_alpha(alpha)
    threshold = model.threshold(alpha, score)
    least = model.box_threshold if box_threshold is None else box_threshold
    known = read_detection(Path(id_data), model.classes)
    # All sets are looked at before any photo is read: a wrong path is told at once.
    sets = {name: _ood_set(path, model.classes) for name, path in set_names(ood_data).items()}

    def scored(name: str, photos: DetectionSet, is_ood: bool) -> ScoredBoxes:
        empty = ScoredBoxes(name, [], [], [], [], [], least, is_ood)
        return _fill(empty, model, photos, score, alpha, proposals, further, progress)

    id_set = scored("ID", known, False)
    ood_sets = [scored(name, photos, True) for name, photos in sets.items()]
    summary = _summary(model, id_set, ood_sets, score, alpha, threshold)
    summary["problems"] = [one for photos in (known, *sets.values()) for one in photos.problems]
    return DetectionReport(summary, id_set, ood_sets, score, threshold, model.classes)


def _ood_set(path: Path, classes: list[str]) -> DetectionSet:
    """Photos of an OOD set; objects that the model does not know get label -1."""
    if not looks_like_detection(path):
        paths = list_photos(path)
        return DetectionSet(paths, [Objects.none() for _ in paths], [])
    photos = read_detection(path)
    known = [classes.index(name) if name in classes else -1 for name in photos.classes]
    of_model = torch.tensor([*known, -1])
    objects = [Objects(o.boxes, of_model[o.labels], o.ignore) for o in photos.objects]
    problems = [*photos.problems, *_nearly_known(photos.classes, classes, path)]
    return DetectionSet(photos.paths, objects, photos.classes, problems)


def _nearly_known(names: list[str], classes: list[str], source: Path) -> list[str]:
    """A sentence for each annotated category that is spelt all but as a class."""
    plain = {name.strip().casefold(): name for name in classes}
    return [
        problem(
            "category nearly a class",
            str(source),
            f"{name!r} counts as unknown, the detector's class is {plain[name.strip().casefold()]!r}; "
            "name it so if it is the same",
        )
        for name in names
        if name not in classes and name.strip().casefold() in plain
    ]


def _fill(
    scored: ScoredBoxes,
    model: UnknownAwareDetector,
    photos: DetectionSet,
    score: str,
    alpha: float,
    proposals: bool,
    further: FurtherScores | None,
    progress: Progress | None,
) -> ScoredBoxes:
    advance = progress(scored.name, len(photos)) if progress else None
    skipped = scored.skipped
    for index, found in detect_photos(model, photos.paths, skipped, advance, proposals):
        if proposals:
            rows, p_of_proposals = model.unclaimed_proposals(found, alpha)
            boxes = found["proposals"][rows]
            scored.proposals.append({"boxes": boxes, "p_values": p_of_proposals})
        p_values = model.p_values(found, score, alpha)
        more = further(found) if further else {}
        found |= {f"ood.{name}": values for name, values in more.items()}
        scored.paths.append(photos.paths[index])
        scored.truth.append(photos.objects[index])
        scored.found.append(
            {key: v for key, v in found.items() if key in _KEPT or key.startswith("ood.")}
        )
        scored.unknown.append(flagged(p_values, alpha))
        scored.p_values.append(p_values)
    if not scored.paths:
        first = next(iter(skipped.values()), "it is empty")
        raise DataError(
            f"set {scored.name!r}: none of its {len(photos)} photos can be read; first: {first}"
        )
    return scored


def _summary(
    model: UnknownAwareDetector,
    id_set: ScoredBoxes,
    ood_sets: list[ScoredBoxes],
    score: str,
    alpha: float,
    threshold: float,
) -> dict[str, Any]:
    boxes = [as_boxes(found) for found in id_set.found]
    measured = mean_average_precision(boxes, id_set.truth, model.classes)
    right = id_set.right
    unknown = torch.cat([u[r] for u, r in zip(id_set.unknown, right, strict=True)])
    summary: dict[str, Any] = {
        "task": "detect",
        "n_id": len(id_set.paths),
        "map": measured["map"],
        "map_50": measured["map_50"],
        "map_per_class": measured["per_class"],
        "box_threshold": id_set.threshold,
        "alpha": alpha,
        "score": score,
        "threshold": threshold,
        "threshold_range": [*model.threshold_range(alpha, score)],
        "n_id_boxes": int(sum(kept.sum() for kept in id_set.counted)),
        "n_id_objects_found": len(unknown),
        "flagged_id": float(unknown.double().mean()) if len(unknown) else None,
        "flagged_id_interval": binomial_interval(int(unknown.sum()), len(unknown))
        if len(unknown)
        else None,
        **({"photos_with_proposals": _share_with_proposals(id_set)} if id_set.proposals else {}),
        "ood": {ood.name: _ood_summary(id_set, ood, score, len(model.classes)) for ood in ood_sets},
        "skipped": {
            str(path): reason
            for scored in (id_set, *ood_sets)
            for path, reason in scored.skipped.items()
        },
    }
    compared = [row for row in summary["ood"].values() if row["fpr95"] is not None]
    if compared:
        summary["mean_fpr95"] = sum(row["fpr95"] for row in compared) / len(compared)
        summary["mean_auroc"] = sum(row["auroc"] for row in compared) / len(compared)
    return summary


def _ood_summary(
    id_set: ScoredBoxes, ood: ScoredBoxes, score: str, num_classes: int
) -> dict[str, Any]:
    counted = torch.cat(ood.counted)
    unknown = torch.cat(ood.unknown)[counted]
    id_scores, ood_scores = id_set.scores, ood.scores
    measured = len(id_scores[score]) and len(ood_scores[score])
    by_score: dict[str, dict[str, float | None]] = {
        name: {**separation(id_scores[name], values)} if measured else dict.fromkeys(_MEASURES)
        for name, values in ood_scores.items()
    }
    found = torch.cat([r[c] for r, c in zip(id_set.right, id_set.counted, strict=True)])
    for name, row in by_score.items():
        has_both = measured and found.any()
        row["fpr95_found"] = fpr95(id_scores[name][found], ood_scores[name]) if has_both else None
    open_set: dict[str, Any] = {"open_set": _open_set(id_set, ood, num_classes, _by_score(score))}
    if ood.proposals:
        open_set["open_set_with_proposals"] = _open_set(id_set, ood, num_classes, _with_proposals)
        open_set["photos_with_proposals"] = _share_with_proposals(ood)
    return {
        "n": len(ood.paths),
        "n_boxes": len(unknown),
        **by_score[score],
        "flagged": float(unknown.double().mean()) if len(unknown) else None,
        "scores": by_score,
        **open_set,
    }


_Shown = tuple[Boxes, Tensor]


def _open_set(
    id_set: ScoredBoxes,
    ood: ScoredBoxes,
    num_classes: int,
    shown: Callable[[ScoredBoxes, int], _Shown],
) -> dict[str, float | int | None]:
    """Over ID and OOD photos together: a known object called unknown is a mistake too.

    `shown` gives the boxes (S) of a photo and how unknown each is (S,).
    """
    photos = [shown(scored, i) for scored in (id_set, ood) for i in range(len(scored.paths))]
    boxes, unknown_scores = zip(*photos, strict=True)
    return open_set_measures(boxes, [*id_set.truth, *ood.truth], unknown_scores, num_classes)


def _by_score(score: str) -> Callable[[ScoredBoxes, int], _Shown]:
    def shown(scored: ScoredBoxes, i: int) -> _Shown:
        rows = scored.shown[i]
        boxes = as_boxes(scored.found[i], scored.unknown[i]).select(rows)
        return boxes, scored.found[i][f"ood.{score}"][rows]

    return shown


def _with_proposals(scored: ScoredBoxes, i: int) -> _Shown:
    """Ranked by p-value, as a box and a proposal have no score in common."""
    rows, added = scored.shown[i], scored.proposals[i]
    boxes = as_boxes(scored.found[i], scored.unknown[i]).select(rows)
    number = len(added["boxes"])
    together = Boxes(
        torch.cat([boxes.boxes, added["boxes"]]),
        torch.cat([boxes.labels, boxes.labels.new_zeros(number)]),
        torch.cat([boxes.scores, boxes.scores.new_ones(number)]),
        torch.cat([boxes.unknown, torch.ones(number, dtype=torch.bool)]),
    )
    return together, 1 - torch.cat([scored.p_values[i][rows], added["p_values"]])


def _share_with_proposals(scored: ScoredBoxes) -> float:
    return sum(len(added["boxes"]) > 0 for added in scored.proposals) / len(scored.proposals)


_MEASURES = ("fpr95", "fpr95_ood_positive", "auroc", "aupr_in", "aupr_out")
