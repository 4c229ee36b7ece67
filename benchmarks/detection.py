"""Detectors with and without VOS on real photos with boxes: mAP, unknown boxes.

    python benchmarks/detection.py --sets natural5 --seeds 0      # 256 px, both methods
    python benchmarks/detection.py                                # both sets, 2 seeds

The annotated validation photos are split in two by a fixed seed: one half calibrates, the other is
measured. OOD sets are those of the data's own notes; `--sets bccd` is a hard case, blood cells whose
platelets are in every photo and never labelled. Until VOS starts both methods are the same
computation, so they share it: the run with VOS goes on from the other's checkpoint. Baselines (MSP,
plain energy, Mahalanobis, kNN on box features) come from the same detector and the same boxes; the
model's own Mahalanobis and kNN read the backbone's maps.
Prints Markdown tables and writes `<output>/detection.json` after every run; a run already there is
not repeated. `--models FOLDER` keeps the trained detectors, and measures those that it finds there.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import getitem
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, LambdaCallback
from torch import Tensor

import knownot
from cats_dogs import default_data, machine, spread, with_earlier_runs
from detection_sets import LEFT_OUT, OOD, found_in, halve, hide_class
from knownot.cli.allocator import keep_freed_memory
from knownot.core.calibration import flagged
from knownot.core.columns import joined
from knownot.core.scores import FeatureScores
from knownot.data.detection_folder import read_detection
from knownot.evaluation.evaluate_detector import FurtherScores, evaluate_detector
from knownot.models.detector import UnknownAwareDetector
from knownot.models.regions import Detections
from knownot.training.config import DetectionConfig
from knownot.training.fit import Silent
from knownot.training.result import TrainResult
from knownot.training.run_folder import RunFolder
from knownot.training.train_detector import train_detector

METHODS: dict[str, dict[str, Any]] = {
    "CE": {"vos_weight": 0.0},
    "VOS": {},
    "VOS, weight 1": {"vos_weight": 1.0},
    "VOS, 16 outliers": {"outliers_per_class": 16},
    "VOS, 16 outliers, weight 1": {"outliers_per_class": 16, "vos_weight": 1.0},
}
BEFORE = "CE"  # its epochs before VOS are everyone's
# With 6 fod_a is hardly learnt: mAP 31.
EPOCHS = {"fod_a": 9, "natural5": 9, "bccd": 12}
ON_BOX_FEATURES = {name: f"{name}, box features" for name in ("mahalanobis", "knn")}
SCORES = ("msp", "energy", *ON_BOX_FEATURES.values(), "vos", *ON_BOX_FEATURES, "combined")


def main() -> None:
    options = options_of(__doc__, ["CE", "VOS"])
    keep_freed_memory()
    options.output.mkdir(parents=True, exist_ok=True)
    settings = {"image_size": options.image_size, "epochs": options.epochs or EPOCHS}
    file = options.output / "detection.json"
    fresh = {"settings": settings, "machine": machine(), "runs": {}}
    for name, seed in itertools.product(options.sets, options.seeds):
        keys = run_keys(name, options.methods, seed)
        if not set(keys.values()) <= set(with_earlier_runs(file, fresh)["runs"]):
            epochs = options.epochs or EPOCHS[name]
            common = {"image_size": options.image_size, "epochs": epochs, "seed": seed}
            with kept_or_scratch(options.models, f"{name}-{seed}") as folder:
                data = options.data / "detection"
                models = train(data / name, folder, common, options.methods)
                runs = {method: measure(data, folder, model) for method, model in models.items()}
            results = with_earlier_runs(file, fresh)  # another process may measure another set
            for method, run in runs.items():
                results["runs"][keys[method]] = {"set": name, "method": method, **run}
            file.write_text(json.dumps(results, indent=1) + "\n")
        runs = with_earlier_runs(file, fresh)["runs"]
        for key in keys.values():
            print(f"{key}: mAP {100 * runs[key]['map']:.1f}", flush=True)
    report(with_earlier_runs(file, fresh))
    print(f"\nall numbers: {file}")


def run_keys(name: str, methods: Sequence[str], seed: int) -> dict[str, str]:
    return {method: f"{name}, {method}, seed {seed}" for method in methods}


@contextmanager
def kept_or_scratch(models: Path | None, name: str) -> Iterator[Path]:
    """A folder for detectors: one that stays, or one that is removed."""
    if models is not None:
        yield (models / name).resolve()
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield (Path(scratch) / name).resolve()


def train(
    data: Path, folder: Path, common: dict[str, Any], methods: Sequence[str]
) -> dict[str, Path]:
    """One detector by each method, in model folders; calibrated on half of the validation photos."""
    split = (hide_class if data.name in LEFT_OUT else halve)(data, folder / data.name)
    first_epoch = common["epochs"] * 2 // 3
    # A little above the whole epoch, as rounding down follows.
    common = {**common, "data": split, "vos_start": (first_epoch + 0.001) / common["epochs"]}
    configs = {
        method: DetectionConfig(output=folder / method, **common, **METHODS[method])
        for method in dict.fromkeys((BEFORE, *methods))
    }
    plain = configs.pop(BEFORE)
    if not is_trained(plain):
        left = [config for config in configs.values() if not is_trained(config)]
        train_detector(plain, Branching(plain, left, first_epoch))
    for config in configs.values():
        if not is_trained(config):
            train_detector(config.model_copy(update={"resume": True}))
    return {method: folder / method for method in methods}


def is_trained(config: DetectionConfig) -> bool:
    return (config.output / "config.json").is_file()


def measure(data: Path, folder: Path, trained: Path) -> dict[str, Any]:
    """A detector, measured on photos that did not calibrate it."""
    name = folder.name.rsplit("-", 1)[0]
    model = knownot.load(trained, device="auto")
    assert isinstance(model, UnknownAwareDetector)
    ood_sets = [folder / o if (folder / o).exists() else data / o for o in OOD[name]]
    baselines = on_box_features(model, folder / name)
    report = evaluate_detector(model, folder / name, ood_sets, proposals=True, further=baselines)
    summary = report.summary
    kept = {key: summary[key] for key in summary if key not in ("skipped", "problems")}
    kept["flagged_id_new_splits"] = flagged_on_new_splits(model, folder / name)
    # Of VOS, the part after the branching.
    return kept | {"seconds": TrainResult.read(trained).metrics["seconds"]}


def on_box_features(model: UnknownAwareDetector, data: Path) -> FurtherScores:
    """Mahalanobis and kNN on the penultimate features of boxes, as the model's own are fitted."""
    found = joined(found_in(model, read_detection(data, model.classes, "train")))
    right = found["right"]
    scores = FeatureScores.fit(found["features"][right], found["labels"][right], len(model.classes))

    def of(boxes: Detections) -> dict[str, Tensor]:
        measured = scores(boxes["features"])
        return {title: measured[name] for name, title in ON_BOX_FEATURES.items()}

    return of


def flagged_on_new_splits(
    model: UnknownAwareDetector, data: Path, splits: int = 200
) -> dict[str, float]:
    """Boxes around known objects called unknown, over new halves of validation and test photos.

    Shows whether one half's share is more than the chance of its split.
    """
    parts = [
        boxes
        for split in ("val", "test")
        for boxes in found_in(model, read_detection(data, model.classes, split))
    ]
    anew, score = copy.deepcopy(model), model.default_score
    singles = [name for name in model.calibrations if name != "combined"]

    def columns(photos: list[int]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        boxes = joined([parts[i] for i in photos])
        scores = {name: boxes[f"ood.{name}"] for name in singles}
        known = boxes["right"] & (boxes["scores"] >= model.box_threshold)
        return scores, model.groups(boxes["boxes"], boxes["labels"]), known

    shares = []
    for seed in range(splits):
        order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(seed)).tolist()
        anew.calibrate_scores(*columns(order[: len(order) // 2]))
        scores, groups, known = columns(order[len(order) // 2 :])
        assert anew.combined is not None
        scores["combined"] = anew.combined(scores)
        unknown = flagged(anew.row_p_values(scores, score, groups), model.alpha)
        shares.append(float(unknown[known].double().mean()))
    return {"mean": mean(shares), "std": stdev(shares)}


class Branching(Silent):
    """Leaves interrupted runs behind that stand where an epoch of this one begins."""

    def __init__(self, config: DetectionConfig, others: list[DetectionConfig], epoch: int) -> None:
        self.run, self.others = RunFolder(config), [RunFolder(other) for other in others]
        self.epoch = epoch

    def callbacks(self, steps: str = "training steps") -> list[Callback]:
        """The copies, made when the epoch begins."""
        return [LambdaCallback(on_train_epoch_start=self._copy)]

    def _copy(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            for other in self.others:
                shutil.copytree(self.run.root, other.root)
                (other.root / "config.yaml").write_text(other.config.to_yaml())


def report(results: dict[str, Any]) -> None:
    """Markdown tables: mAP and flagged boxes, FPR95 of every score, open-set measures."""
    print(f"\nsettings {results['settings']}, {results['machine']}")
    for name in OOD:
        runs = [run for run in results["runs"].values() if run["set"] == name]
        by = {m: [run for run in runs if run["method"] == m] for m in METHODS}
        by = {method: of_method for method, of_method in by.items() if of_method}
        if by:
            print(f"\n### {name}\n")
            print("| |", " | ".join(f"{m} ({len(r)} seeds)" for m, r in by.items()), "|")
            print("|---|" + "---|" * len(by))
            report_set(name, list(by.values()))
            if {"CE", "VOS"} <= by.keys():
                report_pairs(name, by["CE"], by["VOS"])


def report_set(name: str, columns: list[list[dict[str, Any]]]) -> None:
    """The rows of a set's table: a column holds the runs of a method."""

    def row(title: str, *keys: str) -> None:
        values = [[reduce(getitem, keys, run) or 0.0 for run in column] for column in columns]
        print(f"| {title}, % | " + " | ".join(spread(100 * v for v in vs) for vs in values) + " |")

    row("mAP", "map")
    row("mAP, IoU .5", "map_50")
    row("flagged ID boxes", "flagged_id")
    row("the same, mean over 200 new splits", "flagged_id_new_splits", "mean")
    row("ID photos with a proposal", "photos_with_proposals")
    for ood in OOD[name]:
        for score in SCORES:
            row(f"FPR95, {ood}, {score}", "ood", ood, "scores", score, "fpr95")
        for score in SCORES:
            row(f"FPR95, found, {ood}, {score}", "ood", ood, "scores", score, "fpr95_found")
        for title, key in (("unknown recall", "unknown_recall"), ("AP of unknown", "unknown_ap")):
            row(f"{title}, {ood}", "ood", ood, "open_set", key)
            row(f"{title}, proposals, {ood}", "ood", ood, "open_set_with_proposals", key)
        aose = [mean(run["ood"][ood]["open_set"]["aose"] for run in column) for column in columns]
        print(f"| AOSE, {ood} | " + " | ".join(f"{value:.0f}" for value in aose) + " |")


def report_pairs(name: str, plain: list[dict[str, Any]], vos: list[dict[str, Any]]) -> None:
    """How much lower FPR95 is with VOS, in points: pairs of a seed and an OOD set."""

    def rates(runs: list[dict[str, Any]], score: str) -> list[float]:
        return [
            100 * run["ood"][ood]["scores"][score]["fpr95"] for ood in OOD[name] for run in runs
        ]

    energy = rates(plain, "energy")
    for title, others in (
        ("energy with VOS", rates(vos, "energy")),
        ("the default with VOS", rates(vos, "combined")),
        ("the default without", rates(plain, "combined")),
    ):
        gains = [a - b for a, b in zip(energy, others, strict=True)]
        lower = sum(gain > 0 for gain in gains)
        print(
            f"\nbelow plain energy, {title}: {mean(gains):.1f} points on average, {min(gains):.1f} "
            f"at least, lower in {lower} of {len(gains)} pairs"
        )


def options_of(about: str, methods: list[str]) -> argparse.Namespace:
    """Options of a benchmark that trains detectors, by these methods if not told."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--sets", nargs="+", choices=OOD, default=["natural5", "fod_a"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, help="9, for bccd 12")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=methods)
    parser.add_argument("--models", type=Path, help="keep the detectors in this folder")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
