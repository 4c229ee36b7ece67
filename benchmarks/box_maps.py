"""What should the feature scores of a detector read? Judged by in-distribution photos alone.

    python benchmarks/box_maps.py models/natural5-10/CE models/natural5-11/CE

takes plain detectors of `benchmarks/detection.py` and compares their box features with the backbone's
maps, averaged over the box, by two tests that need no OOD photo:

- altered: boxes above the box threshold on validation photos against those on the same photos altered
  until they show no class (`knownot.data.altered`);
- a class left out: the scores are fitted without one class, whose found objects are the outliers, in turn.
  This one is unfair to maps against box features, which were trained to tell just these classes apart.

Prints a Markdown table of FPR95 and writes `<output>/box_maps.json`. `--ood ood_coco ood_fod_a` measures
afterwards, by the paper's protocol over boxes, what each choice would have given; it chooses nothing.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

import knownot
from cats_dogs import default_data, machine, spread
from detection_sets import found_in
from knownot.core.columns import joined
from knownot.core.metrics import fpr95
from knownot.core.scores import FeatureScores
from knownot.data.detection_folder import read_detection_splits
from knownot.evaluation.evaluate_detector import evaluate_detector
from knownot.models.detector import UnknownAwareDetector
from knownot.models.regions import Detections
from knownot.training.altered import altered_boxes
from knownot.training.config import make_config
from knownot.training.fit import Silent

NAMES = ("mahalanobis", "knn")


def main() -> None:
    options = _options()
    torch.manual_seed(0)
    sets = [options.data / "detection" / name for name in options.ood]
    runs = {str(folder): measure(folder, sets) for folder in options.models}
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "box_maps.json"
    file.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")
    report(list(runs.values()))
    print(f"\nall numbers: {file}")


def measure(folder: Path, ood_sets: list[Path]) -> dict[str, dict[str, dict[str, float]]]:
    """FPR95 by what is read, test and score, of one detector."""
    model = knownot.load(folder)
    assert isinstance(model, UnknownAwareDetector)
    data = make_config({}, folder / "training" / "config.yaml").data
    splits = read_detection_splits(data)
    learned = joined(found_in(model, splits.train))
    held_out = above(model, joined(found_in(model, splits.val)))
    strange = above(model, joined(altered_boxes(model, splits.val.paths, Silent().stage)))
    results: dict[str, dict[str, dict[str, float]]] = {}
    fits = {}
    for name, columns in choices(widths(model)).items():
        fits[name] = fitted = fit(rows(learned, columns), learned, len(model.classes))
        known, unknown = (fitted(rows(boxes, columns)) for boxes in (held_out, strange))
        results[name] = {
            "altered": {score: fpr95(known[score], unknown[score]) for score in NAMES},
            "class left out": without_a_class(model, learned, held_out, columns),
        }
    if not ood_sets:
        return results

    def further(boxes: Detections) -> dict[str, Tensor]:
        found = {
            name: fits[name](rows(boxes, columns))
            for name, columns in choices(widths(model)).items()
        }
        return {f"{name}, {score}": found[name][score] for name in found for score in NAMES}

    summary = evaluate_detector(model, data, ood_sets, further=further).summary
    for ood, measured in summary["ood"].items():
        for name, row in results.items():
            row[ood] = {s: measured["scores"][f"{name}, {s}"]["fpr95"] for s in NAMES}
    return results


def above(model: UnknownAwareDetector, boxes: Detections) -> Detections:
    """The boxes that count."""
    kept = boxes["scores"] >= model.box_threshold
    return {name: values[kept] for name, values in boxes.items()}


def widths(model: UnknownAwareDetector) -> dict[int, slice]:
    """The columns of each map in the scored features, by its stride."""
    backbone = model.regions.model.backbone
    channels = [backbone.body.feature_info.channels()[level] for level in backbone.levels]
    ends = [sum(channels[:i]) for i in range(len(channels) + 1)]
    columns = (slice(*pair) for pair in pairwise(ends))
    return dict(zip(model.regions.settings.scored_strides, columns, strict=True))


def choices(levels: dict[int, slice]) -> dict[str, list[slice] | None]:
    """Columns of the scored features that are read together; None for the box features."""
    alone: dict[str, list[slice] | None] = {
        f"map of stride {stride}": [columns] for stride, columns in levels.items()
    }
    coarse = [levels[stride] for stride in sorted(levels)[1:]]
    together = {"the two coarsest": coarse, "all three": list(levels.values())}
    return {"box features": None, **alone, **together}


def rows(boxes: Detections, columns: list[slice] | None) -> Tensor:
    if columns is None:
        return boxes["features"]
    return torch.cat([boxes["scored_features"][:, part] for part in columns], 1)


def fit(
    features: Tensor, boxes: Detections, num_classes: int, left_out: int | None = None
) -> FeatureScores:
    kept, labels = boxes["right"], boxes["labels"]
    if left_out is not None:
        kept = kept & (labels != left_out)
        labels = labels - (labels > left_out).long()
        num_classes -= 1
    return FeatureScores.fit(features[kept], labels[kept], num_classes)


def without_a_class(
    model: UnknownAwareDetector,
    learned: Detections,
    held_out: Detections,
    columns: list[slice] | None,
) -> dict[str, float]:
    """Mean FPR95 over the classes, each taken for unknown in turn."""
    found = held_out["right"]
    features, classes = rows(held_out, columns)[found], held_out["labels"][found]
    rates: dict[str, list[float]] = {name: [] for name in NAMES}
    for left_out in range(len(model.classes)):
        scores = fit(rows(learned, columns), learned, len(model.classes), left_out)(features)
        strange = classes == left_out
        for name in NAMES:
            rates[name].append(fpr95(scores[name][~strange], scores[name][strange]))
    return {name: mean(values) for name, values in rates.items()}


def report(runs: list[dict[str, dict[str, dict[str, float]]]]) -> None:
    tests = list(next(iter(runs[0].values())))
    print("| FPR95, % |", " | ".join(f"{test}: {name}" for test in tests for name in NAMES), "|")
    print("|---|" + "---|" * len(tests) * len(NAMES))
    for what in runs[0]:
        cells = [
            spread(100 * run[what][test][name] for run in runs) for test in tests for name in NAMES
        ]
        print(f"| {what} |", " | ".join(cells), "|")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", help="plain detectors, trained")
    parser.add_argument("--ood", nargs="*", default=[], help="OOD sets to measure afterwards")
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
