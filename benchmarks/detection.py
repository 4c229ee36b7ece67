"""Detectors with and without VOS on real photos with boxes: mAP, unknown boxes, cost.

    python benchmarks/detection.py --sets natural5 --seeds 0      # 256 px, half an hour on a core
    python benchmarks/detection.py                                # both sets, 2 seeds
    python benchmarks/detection.py --cost                         # a step with and without, paired

The annotated validation photos are split in two by a fixed seed: one half calibrates, the other is
measured. OOD sets are those of the data's own notes. Until VOS starts both methods are the same
computation, so they share it: the run with VOS goes on from the other's checkpoint. Baselines (MSP,
plain energy, Mahalanobis, kNN on box features) come from the same detector and the same boxes.
Prints Markdown tables and writes `<output>/detection.json` after every run; a run already there is
not repeated. `--models FOLDER` keeps the trained detectors.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, LambdaCallback

import knownot
from cats_dogs import default_data, machine, spread, with_earlier_runs
from knownot.cli.allocator import keep_freed_memory
from knownot.evaluation.evaluate_detector import evaluate_detector
from knownot.models.detector import UnknownAwareDetector
from knownot.models.torchvision_faster_rcnn import FasterRCNNRegions, FasterRCNNSettings
from knownot.training.config import DetectionConfig
from knownot.training.fit import Silent
from knownot.training.run_folder import RunFolder
from knownot.training.train_detector import train_detector

OOD = {"fod_a": ("ood_fod_a", "ood_coco"), "natural5": ("ood_coco", "ood_fod_a")}
METHODS: dict[str, dict[str, Any]] = {"CE": {"vos_weight": 0.0}, "VOS": {}}
# One object on tarmac is learnt sooner than five kinds of things anywhere.
EPOCHS = {"fod_a": 6, "natural5": 9}
SCORES = ("msp", "energy", "vos", "mahalanobis", "knn", "combined")


def main() -> None:
    options = _options()
    keep_freed_memory()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.cost:
        report_cost(options)
        return
    settings = {"image_size": options.image_size, "epochs": options.epochs or EPOCHS}
    file = options.output / "detection.json"
    fresh = {"settings": settings, "machine": machine(), "runs": {}}
    for name, seed in itertools.product(options.sets, options.seeds):
        keys = {method: f"{name}, {method}, seed {seed}" for method in METHODS}
        if not set(keys.values()) <= set(with_earlier_runs(file, fresh)["runs"]):
            epochs = options.epochs or EPOCHS[name]
            common = {"image_size": options.image_size, "epochs": epochs, "seed": seed}
            with tempfile.TemporaryDirectory() as scratch:
                folder = options.models / f"{name}-{seed}" if options.models else Path(scratch)
                runs = measure(options.data / "detection", name, folder.resolve(), common)
            results = with_earlier_runs(file, fresh)  # another process may measure another set
            for method, run in runs.items():
                results["runs"][keys[method]] = {"set": name, "method": method, **run}
            file.write_text(json.dumps(results, indent=1) + "\n")
        runs = with_earlier_runs(file, fresh)["runs"]
        for key in keys.values():
            print(f"{key}: mAP {100 * runs[key]['map']:.1f}", flush=True)
    report(with_earlier_runs(file, fresh))
    print(f"\nall numbers: {file}")


def measure(
    data: Path, name: str, folder: Path, common: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Train one detector by each method, measure both on photos that did not calibrate them."""
    split = halve(data / name, folder / name)
    first_epoch = common["epochs"] * 2 // 3
    # A little above the whole epoch, as rounding down follows.
    common = {**common, "data": split, "vos_start": (first_epoch + 0.001) / common["epochs"]}
    configs = {
        method: DetectionConfig(output=folder / method, **common, **changes)
        for method, changes in METHODS.items()
    }
    runs = {}
    for method, config in configs.items():
        started = time.monotonic()
        if method == "CE":
            train_detector(config, Branching(config, configs["VOS"], first_epoch))
        else:
            train_detector(config.model_copy(update={"resume": True}))
        seconds = time.monotonic() - started
        model = knownot.load(config.output, device="auto")
        assert isinstance(model, UnknownAwareDetector)
        summary = evaluate_detector(model, split, [data / ood for ood in OOD[name]]).summary
        kept = {key: summary[key] for key in summary if key not in ("skipped", "problems")}
        runs[method] = kept | {"seconds": seconds}
    return runs


class Branching(Silent):
    """Leaves a second, interrupted run behind that stands where an epoch of this one begins."""

    def __init__(self, config: DetectionConfig, other: DetectionConfig, epoch: int) -> None:
        self.folders = RunFolder(config), RunFolder(other)
        self.epoch = epoch

    def callbacks(self) -> list[Callback]:
        """The copy, made when the epoch begins."""
        return [LambdaCallback(on_train_epoch_start=self._copy)]

    def _copy(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            one, other = self.folders
            shutil.copytree(one.root, other.root)
            (other.root / "config.yaml").write_text(other.config.to_yaml())


def halve(source: Path, target: Path) -> Path:
    """A copy of a COCO set whose validation photos are split into `val` and `test`."""
    if target.exists():
        return target
    (target / "annotations").mkdir(parents=True)
    (target / "images").symlink_to((source / "images").resolve())
    train = (source / "annotations" / "train.json").read_text()
    (target / "annotations" / "train.json").write_text(train)
    whole = json.loads((source / "annotations" / "val.json").read_text())
    order = torch.randperm(len(whole["images"]), generator=torch.Generator().manual_seed(0))
    middle = len(order) // 2
    for split, indices in (("val", order[:middle]), ("test", order[middle:])):
        images = [whole["images"][i] for i in sorted(indices.tolist())]
        ids = {image["id"] for image in images}
        boxes = [a for a in whole["annotations"] if a["image_id"] in ids]
        part = {**whole, "images": images, "annotations": boxes}
        (target / "annotations" / f"{split}.json").write_text(json.dumps(part))
    return target


def cost(image_size: int, classes: int = 10, batch: int = 4, rounds: int = 15) -> dict[str, Any]:
    """A training step and a detection with VOS and without, in turn, on the same photos."""
    torch.manual_seed(0)
    settings = FasterRCNNSettings(image_size=image_size)
    names = [str(i) for i in range(classes)]
    model = UnknownAwareDetector(FasterRCNNRegions(classes, settings, "pypi"), names)
    images = [torch.rand(3, image_size, image_size) for _ in range(batch)]
    sides = torch.tensor([0.1, 0.1, 0.6, 0.7]) * image_size
    targets = [{"boxes": sides[None], "labels": torch.tensor([i % classes])} for i in range(batch)]
    model.fit_scores(torch.randn(1000, settings.feature_dim), torch.arange(1000) % classes)
    floats = [image.float() for image in images]

    def with_vos() -> None:
        sum(model.losses(images, targets).values()).backward()

    def without() -> None:
        losses, _ = model.regions.losses(floats, targets)
        sum(losses.values()).backward()

    def detect_with() -> None:
        model(images)

    @torch.no_grad()
    def detect_without() -> None:
        model.regions.model.eval()(floats)

    pairs = {"training step": (with_vos, without), "detection": (detect_with, detect_without)}
    results = {}
    for title, pair in pairs.items():
        seconds: list[list[float]] = [[], []]
        for i in range(2 * (rounds + 2)):
            # The order within a pair alternates: whoever comes second finds a warmer machine.
            for which in ((0, 1), (1, 0))[i % 2]:
                started = time.perf_counter()
                pair[which]()
                seconds[which].append(time.perf_counter() - started)
        ratios = [a / b for a, b in zip(*(s[4:] for s in seconds), strict=True)]
        results[title] = {
            "with_vos_s": median(seconds[0][4:]),
            "without_s": median(seconds[1][4:]),
            "ratio": median(ratios),
        }
    return results


def report(results: dict[str, Any]) -> None:
    """Markdown tables: mAP and flagged boxes, FPR95 of every score, open-set measures."""
    print(f"\nsettings {results['settings']}, {results['machine']}")
    runs = list(results["runs"].values())
    for name in dict.fromkeys(run["set"] for run in runs):
        by = {m: [r for r in runs if (r["set"], r["method"]) == (name, m)] for m in METHODS}
        by = {method: of_method for method, of_method in by.items() if of_method}
        print(
            f"\n### {name}\n\n| | "
            + " | ".join(f"{m} ({len(r)} seeds)" for m, r in by.items())
            + " |"
        )
        print("|---|" + "---|" * len(by))
        for title, key in (("mAP", "map"), ("mAP, IoU .5", "map_50"), ("flagged ID", "flagged_id")):
            cells = [spread(100 * r[key] for r in of_method) for of_method in by.values()]
            print(f"| {title}, % | " + " | ".join(cells) + " |")
        for ood in OOD[name]:
            for score in SCORES:
                cells = [
                    spread(100 * r["ood"][ood]["scores"][score]["fpr95"] for r in of_method)
                    for of_method in by.values()
                ]
                print(f"| FPR95, {ood}, {score}, % | " + " | ".join(cells) + " |")
            for title, key in (
                ("unknown recall", "unknown_recall"),
                ("AP of unknown", "unknown_ap"),
            ):
                cells = [
                    spread(100 * (r["ood"][ood]["open_set"][key] or 0.0) for r in of_method)
                    for of_method in by.values()
                ]
                print(f"| {title}, {ood}, % | " + " | ".join(cells) + " |")
            cells = [
                f"{mean(r['ood'][ood]['open_set']['aose'] for r in of_method):.0f}"
                for of_method in by.values()
            ]
            print(f"| AOSE, {ood} | " + " | ".join(cells) + " |")


def report_cost(options: argparse.Namespace) -> None:
    """Measure the cost, print it as a Markdown table, write `<output>/detection_cost.json`."""
    rows = cost(options.image_size)
    file = options.output / "detection_cost.json"
    file.write_text(json.dumps({"machine": machine(), **rows}, indent=1) + "\n")
    print("| | with VOS, s | without, s | ratio |\n|---|---|---|---|")
    for title, row in rows.items():
        print(
            f"| {title} | {row['with_vos_s']:.3f} | {row['without_s']:.3f} | {row['ratio']:.3f} |"
        )
    print(f"\nall numbers: {file}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--sets", nargs="+", choices=OOD, default=list(OOD))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, help="9 for natural5, 6 for fod_a")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--cost", action="store_true", help="measure the cost alone")
    parser.add_argument("--models", type=Path, help="keep the detectors in this folder")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
