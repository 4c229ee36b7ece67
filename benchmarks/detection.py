"""Detectors with and without VOS on real photos with boxes: mAP, unknown boxes, cost.

    python benchmarks/detection.py --sets natural5 --seeds 0      # 320 px, 1 h on 2 cores
    python benchmarks/detection.py                                # both sets, 3 seeds: use a GPU
    python benchmarks/detection.py --cost                         # a step with and without, paired

The annotated validation photos are split in two by a fixed seed: one half calibrates, the other is
measured. OOD sets are those of the data's own notes. Baselines (MSP, plain energy, Mahalanobis,
kNN on box features) come from the same detector and the same boxes. Prints Markdown tables and
writes `<output>/detection.json` after every run; a run already there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

import knownot
from cats_dogs import default_data, machine, spread, with_earlier_runs
from knownot.cli.allocator import keep_freed_memory
from knownot.evaluation.evaluate_detector import evaluate_detector
from knownot.models.detector import UnknownAwareDetector
from knownot.models.torchvision_faster_rcnn import FasterRCNNRegions, FasterRCNNSettings
from knownot.training.config import DetectionConfig
from knownot.training.train_detector import train_detector

OOD = {"fod_a": ("ood_fod_a", "ood_coco"), "natural5": ("ood_coco", "ood_fod_a")}
METHODS: dict[str, dict[str, Any]] = {"CE": {"vos_weight": 0.0}, "VOS": {}}
SCORES = ("msp", "energy", "vos", "mahalanobis", "knn", "combined")


def main() -> None:
    options = _options()
    keep_freed_memory()
    options.output.mkdir(parents=True, exist_ok=True)
    settings = {"image_size": options.image_size, "epochs": options.epochs}
    file = options.output / "detection.json"
    results = with_earlier_runs(file, {"settings": settings, "machine": machine(), "runs": {}})
    if options.cost:
        results["cost"] = cost(options.image_size)
        file.write_text(json.dumps(results, indent=1) + "\n")
    else:
        for name in options.sets:
            for seed in options.seeds:
                for method, changes in METHODS.items():
                    key = f"{name}, {method}, seed {seed}"
                    if key not in results["runs"]:
                        run = measure(options.data / "detection", name, seed, settings | changes)
                        results["runs"][key] = {"set": name, "method": method, **run}
                        file.write_text(json.dumps(results, indent=1) + "\n")
                    print(f"{key}: mAP {100 * results['runs'][key]['map']:.1f}", flush=True)
    report(results)
    print(f"\nall numbers: {file}")


def measure(data: Path, name: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Train one detector and measure it on the photos that did not calibrate it."""
    with tempfile.TemporaryDirectory() as scratch:
        split = halve(data / name, Path(scratch, name))
        config = DetectionConfig(data=split, output=Path(scratch, "model"), seed=seed, **settings)
        started = time.monotonic()
        train_detector(config)
        seconds = time.monotonic() - started
        model = knownot.load(config.output, device="auto")
        assert isinstance(model, UnknownAwareDetector)
        summary = evaluate_detector(model, split, [data / ood for ood in OOD[name]]).summary
    return {key: summary[key] for key in summary if key not in ("skipped", "problems")} | {
        "seconds": seconds
    }


def halve(source: Path, target: Path) -> Path:
    """A copy of a COCO set whose validation photos are split into `val` and `test`."""
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
    """Markdown tables: mAP and flagged boxes, FPR95 of every score, open-set measures, cost."""
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
    if "cost" in results:
        print("\n| | with VOS, s | without, s | ratio |\n|---|---|---|---|")
        for title, row in results["cost"].items():
            print(
                f"| {title} | {row['with_vos_s']:.3f} | {row['without_s']:.3f} | {row['ratio']:.3f} |"
            )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--sets", nargs="+", choices=OOD, default=list(OOD))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--cost", action="store_true", help="measure the cost alone")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
