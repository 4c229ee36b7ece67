"""Detectors with and without VOS on real photos with boxes: mAP, unknown boxes, cost.

    python benchmarks/detection.py --sets natural5 --seeds 0      # 256 px, both methods
    python benchmarks/detection.py                                # both sets, 2 seeds
    python benchmarks/detection.py --sets natural5 --seeds 10 11 --choose   # settings of VOS
    python benchmarks/detection.py --cost models/natural5-0/VOS   # a step with and without, paired

The annotated validation photos are split in two by a fixed seed: one half calibrates, the other is
measured. OOD sets are those of the data's own notes; `--sets bccd` is a hard case, blood cells whose
platelets are in every photo and never labelled. Until VOS starts both methods are the same
computation, so they share it: the run with VOS goes on from the other's checkpoint. Baselines (MSP,
plain energy, Mahalanobis, kNN on box features) come from the same detector and the same boxes; the
model's own Mahalanobis and kNN read the backbone's maps.
Prints Markdown tables and writes `<output>/detection.json` after every run; a run already there is
not repeated. `--models FOLDER` keeps the trained detectors, and measures those that it finds there.

`--choose` trains with several settings of VOS and lets ID photos alone choose, by the rule of
`knownot.training.altered_rule`, with mAP in place of accuracy and the boxes above the box threshold in
place of photos; it writes `<output>/detection_choice.json` and measures no OOD photo.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import getitem
from pathlib import Path
from statistics import mean, median, quantiles, stdev
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, LambdaCallback
from torch import Tensor
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.transforms.functional import pil_to_tensor

import knownot
from cats_dogs import default_data, machine, spread, with_earlier_runs
from knownot.cli.allocator import keep_freed_memory
from knownot.core.calibration import flagged
from knownot.core.scores import FeatureScores
from knownot.data.detection_folder import read_detection
from knownot.data.photo import open_photo
from knownot.evaluation.detect_set import detect_photos, finds_object, joined
from knownot.evaluation.evaluate_detector import FurtherScores, evaluate_detector
from knownot.models.detector import UnknownAwareDetector
from knownot.models.regions import Detections
from knownot.training.altered_rule import ACCURACY, ALTERED, choose
from knownot.training.config import DetectionConfig
from knownot.training.fit import Silent
from knownot.training.result import TrainResult
from knownot.training.run_folder import RunFolder
from knownot.training.train_detector import train_detector

OOD = {
    "fod_a": ("ood_fod_a", "ood_coco"),
    "natural5": ("ood_coco", "ood_fod_a"),
    "bccd": ("left_out", "ood_coco"),
}
# A class whose objects are in the photos, unlabelled: it is learnt as background. "left_out" is the
# test set with its boxes.
LEFT_OUT = {"bccd": "Platelets"}
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
CHOOSING = ("val_map", "altered_fpr95")
ON_BOX_FEATURES = {name: f"{name}, box features" for name in ("mahalanobis", "knn")}
SCORES = ("msp", "energy", *ON_BOX_FEATURES.values(), "vos", *ON_BOX_FEATURES, "combined")


def main() -> None:
    options = _options()
    keep_freed_memory()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.cost:
        report_cost(options)
        return
    if options.choose:
        report_choice(options)
        return
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
    photos = read_detection(data, model.classes, "train")
    found = list(detect_photos(model, photos.paths, {}))
    right = [finds_object(boxes, photos.objects[i]) for i, boxes in found]
    features, labels = (
        torch.cat([boxes[key][kept] for (_, boxes), kept in zip(found, right, strict=True)])
        for key in ("features", "labels")
    )
    scores = FeatureScores.fit(features, labels, len(model.classes))

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
    parts = []
    for split in ("val", "test"):
        photos = read_detection(data, model.classes, split)
        for i, boxes in detect_photos(model, photos.paths, {}):
            right = finds_object(boxes, photos.objects[i])
            boxes["known"] = right & (boxes["scores"] >= model.box_threshold)
            parts.append(boxes)
    anew, score = copy.deepcopy(model), model.default_score
    singles = [name for name in model.calibrations if name != "combined"]

    def columns(photos: list[int]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        boxes = joined([parts[i] for i in photos])
        scores = {name: boxes[f"ood.{name}"] for name in singles}
        return scores, model.groups(boxes["boxes"], boxes["labels"]), boxes["known"]

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


def report_choice(options: argparse.Namespace) -> None:
    """Train by every method that was named, print what altered photos say, and their choice."""
    file = options.output / "detection_choice.json"
    fresh = {"machine": machine(), "runs": {}}
    for name, seed in itertools.product(options.sets, options.seeds):
        keys = run_keys(name, options.methods, seed)
        if set(keys.values()) <= set(with_earlier_runs(file, fresh)["runs"]):
            continue
        epochs = options.epochs or EPOCHS[name]
        common = {"image_size": options.image_size, "epochs": epochs, "seed": seed}
        with kept_or_scratch(options.models, f"{name}-{seed}") as folder:
            models = train(options.data / "detection" / name, folder, common, options.methods)
            results = with_earlier_runs(file, fresh)
            for method, model in models.items():
                told = TrainResult.read(model).metrics
                kept = {key: told[key] for key in (*CHOOSING, "n_altered_boxes", "n_val")}
                run = {"set": name, "method": method, "seed": seed, **kept}
                results["runs"][keys[method]] = run
        file.write_text(json.dumps(results, indent=1) + "\n")
    runs = with_earlier_runs(file, fresh)["runs"]
    for name in options.sets:
        print(
            f"\n### {name}\n\n| | validation mAP | FPR95 of energy, altered photos |\n|---|---|---|"
        )
        measured = {}
        for method in options.methods:
            keys = [run_keys(name, [method], seed)[method] for seed in options.seeds]
            of_method = [runs[key] for key in keys]
            columns = [[run[key] for run in of_method] for key in CHOOSING]
            print("|", method, *("| " + spread(100 * v for v in c) for c in columns), "|")
            if method != BEFORE:
                measured[method] = dict(zip((ACCURACY, ALTERED), columns, strict=True))
        if len(measured) > 1:
            photos = of_method[0]["n_val"]
            print("\nchosen:", choose(measured, "VOS", photos, photos))
    print(f"\nall numbers: {file}")


def halve(source: Path, target: Path) -> Path:
    """A copy of a COCO set whose validation photos are split into `val` and `test`."""
    whole = read_annotations(source, "val")
    order = torch.randperm(len(whole["images"]), generator=torch.Generator().manual_seed(0))
    middle = len(order) // 2
    parts = {"train": read_annotations(source, "train")}
    for split, indices in (("val", order[:middle]), ("test", order[middle:])):
        images = [whole["images"][i] for i in sorted(indices.tolist())]
        ids = {image["id"] for image in images}
        boxes = [a for a in whole["annotations"] if a["image_id"] in ids]
        parts[split] = {**whole, "images": images, "annotations": boxes}
    return write_coco(target, source / "images", parts)


def hide_class(source: Path, target: Path) -> Path:
    """A copy of a COCO set without the labels of one class; beside it `left_out`, with them."""
    parts = {}
    for split in ("train", "val", "test"):
        whole = read_annotations(source, split)
        known = [c for c in whole["categories"] if c["name"] != LEFT_OUT[source.name]]
        ids = {category["id"] for category in known}
        boxes = [a for a in whole["annotations"] if a["category_id"] in ids]
        parts[split] = {**whole, "categories": known, "annotations": boxes}
    write_coco(target.parent / "left_out", source / "images", {"ood": whole})
    return write_coco(target, source / "images", parts)


def read_annotations(source: Path, split: str) -> dict[str, Any]:
    annotations: dict[str, Any] = json.loads((source / f"annotations/{split}.json").read_text())
    return annotations


def write_coco(target: Path, photos: Path, parts: dict[str, dict[str, Any]]) -> Path:
    if not target.exists():
        (target / "annotations").mkdir(parents=True)
        (target / "images").symlink_to(photos.resolve())
        for split, part in parts.items():
            (target / "annotations" / f"{split}.json").write_text(json.dumps(part))
    return target


def cost(folder: Path, data: Path, batch: int = 4, rounds: int = 100) -> dict[str, Any]:
    """A training step and a detection with VOS and without, in turn, on the same photos.

    "Without" is torchvision's own Faster R-CNN around the same weights.
    """
    model = knownot.load(folder)
    assert isinstance(model, UnknownAwareDetector)
    photos = read_detection(data, model.classes)
    plain = plain_torchvision(model.regions.model)
    steps = []
    for first in range(0, batch * rounds, batch):
        rows = [(first + i) % len(photos) for i in range(batch)]
        pixels = [pil_to_tensor(open_photo(photos.paths[row])) for row in rows]
        objects = [photos.objects[row] for row in rows]
        steps.append((pixels, [{"boxes": o.boxes, "labels": o.labels} for o in objects]))

    def with_vos(pixels: list[Tensor], targets: Any) -> None:
        torch.stack(list(model.losses(pixels, targets).values())).sum().backward()

    def without(pixels: list[Tensor], targets: Any) -> None:
        shifted = [{"boxes": t["boxes"], "labels": t["labels"] + 1} for t in targets]
        losses = plain([p / 255 for p in pixels], shifted)
        torch.stack(list(losses.values())).sum().backward()

    def detect_with(pixels: list[Tensor], _: Any) -> None:
        model(pixels)

    @torch.no_grad()
    def detect_without(pixels: list[Tensor], _: Any) -> None:
        plain([p / 255 for p in pixels])

    results = {}
    pairs = {"training step": (with_vos, without), "detection": (detect_with, detect_without)}
    for title, pair in pairs.items():
        seconds: list[list[float]] = [[], []]
        plain.train(title == "training step")
        for i, step in enumerate([*steps[:2], *steps]):  # two to warm up
            # The order within a pair alternates: whoever comes second finds a warmer machine.
            for which in ((0, 1), (1, 0))[i % 2]:
                torch.manual_seed(i)  # the same proposals are sampled
                started = time.perf_counter()
                pair[which](*step)
                seconds[which].append(time.perf_counter() - started)
        ratios = [a / b for a, b in zip(*(s[2:] for s in seconds), strict=True)]
        results[title] = {
            "with_vos_s": median(seconds[0][2:]),
            "without_s": median(seconds[1][2:]),
            "ratio": median(ratios),
            "ratio_quartiles": quantiles(ratios),
            "pairs": len(ratios),
        }
    return results


def plain_torchvision(model: FasterRCNN) -> FasterRCNN:
    """The same modules, in torchvision's own classes."""
    plain = copy.copy(model)
    plain._modules = dict(model._modules)
    for name, kind in (("rpn", RegionProposalNetwork), ("roi_heads", RoIHeads)):
        part = kind.__new__(kind)
        part.__dict__ = getattr(model, name).__dict__.copy()
        plain._modules[name] = part
    return plain


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


def report_cost(options: argparse.Namespace) -> None:
    """Measure the cost, print it as a Markdown table, write `<output>/detection_cost.json`."""
    rows = cost(options.cost, options.data / "detection" / "natural5")
    file = options.output / "detection_cost.json"
    file.write_text(json.dumps({"machine": machine(), **rows}, indent=1) + "\n")
    print("| | with VOS, s | without, s | ratio | quartiles |\n|---|---|---|---|---|")
    for title, row in rows.items():
        low, _, high = row["ratio_quartiles"]
        print(
            f"| {title} | {row['with_vos_s']:.3f} | {row['without_s']:.3f} | {row['ratio']:.3f} "
            f"| {low:.3f} to {high:.3f} |"
        )
    print(f"\nall numbers: {file}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--sets", nargs="+", choices=OOD, default=["natural5", "fod_a"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, help="9, for bccd 12")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="CE VOS; all to choose from")
    parser.add_argument("--choose", action="store_true", help="by ID photos, no OOD photo measured")
    parser.add_argument("--cost", type=Path, metavar="MODEL", help="cost alone, of this detector")
    parser.add_argument("--models", type=Path, help="keep the detectors in this folder")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.methods = options.methods or (list(METHODS) if options.choose else ["CE", "VOS"])
    return options


if __name__ == "__main__":
    main()
