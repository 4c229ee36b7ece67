"""An exported model against the model it came from: the same answers, and how much faster.

    python benchmarks/export.py                     # about 5 min on 2 idle cores
    python benchmarks/export.py --photos 100        # a quick look
    python benchmarks/export.py --task detect       # 200 photos, boxes; about 15 min

Trains on cats and dogs with a frozen backbone, or a detector for two epochs on `natural5` (its boxes are
poor, and compared like any others), exports, and compares both on photos that it was not trained on and
on photos of anything else, in equal parts from all sets. Photos per second are those of `predict` on
files, in rounds that take turns, so that a busy machine slows both: the ratio is the figure to read.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

import knownot
from knownot.cli.allocator import keep_freed_memory
from knownot.data.coco import read_coco
from knownot.data.image_folder import list_photos
from knownot.export.detector_parity import DetectorParity
from knownot.export.export import export_model
from knownot.runtime import open_onnx
from knownot.training.config import DetectionConfig, make_config
from knownot.training.train import train
from knownot.training.train_detector import train_detector


def main() -> None:
    options = _options()
    keep_freed_memory()
    detect = options.task == "detect"
    photos = (detection_sample if detect else sample)(options.data, options.photos)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or Path(scratch, "model")
        if options.model is None and detect:
            settings = {"data": options.data / "detection" / "natural5", "output": folder}
            settings |= {"image_size": 256, "epochs": 2, "device": "cpu"}
            train_detector(DetectionConfig(**settings))
        elif options.model is None:
            settings = {"data": options.data / "cats_dogs", "output": folder, "finetune": "head"}
            train(make_config(settings | {"device": "cpu"}))
        model = knownot.load(folder)
        file = Path(scratch, "model.onnx")
        started = time.perf_counter()
        metadata = export_model(model, file, photos=photos)
        seconds = time.perf_counter() - started
        exported = open_onnx(file, threads=torch.get_num_threads())
        gaps = (box_differences if detect else differences)(model, exported, photos)
        timed = photos[: options.timed]
        seconds = rounds({"torch": model, "ONNX Runtime": exported}, timed, options.rounds)
        result = {
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                **{name: version(name) for name in ("knownot", "torch", "onnxruntime", "pillow")},
            },
            "photos": len(photos),
            "export_s": seconds,
            "mebibytes": file.stat().st_size / 2**20,
            "gate": metadata.parity,
            "predict_on_files": gaps,
            "speed": {
                "photos": len(timed),
                "rounds": options.rounds,
                "photos_per_second": {n: len(timed) / median(s) for n, s in seconds.items()},
                "ratio_quartiles": ratios(*seconds.values()),
            },
        }
    options.output.mkdir(parents=True, exist_ok=True)
    name = "export_detector.json" if detect else "export.json"
    (options.output / name).write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['machine']}\n")
    print("| | |\n|---|---|")
    print(f"| photos compared, by `predict` on files | {gaps['photos']} |")
    if detect:
        print(f"| boxes, in photos that show any | {gaps['boxes']}, {gaps['with_boxes']} |")
        gap = gaps["max_box_difference"]
        print(f"| largest difference of a corner, as a share of the longer side | {gap:.1e} |")
    print(
        f"| photos with the same labels and flags | {100 * gaps['same'] / gaps['photos']:.1f} % |"
    )
    print(f"| largest difference of the score | {gaps['max_difference']:.1e} |")
    print(f"| largest difference of any score, relative | {gaps['max_relative']:.1e} |")
    speed = result["speed"]
    low, middle, high = speed["ratio_quartiles"]
    for name, rate in speed["photos_per_second"].items():
        print(f"| photos per second, {name} | {rate:.0f} |")
    print(f"| ratio, median and quartiles of the rounds | {middle:.2f} ({low:.2f} to {high:.2f}) |")


def sample(data: Path, number: int) -> list[Path]:
    """`number` photos: half of known classes, half of all other sets, spread over each folder."""
    known = list_photos(data / "cats_dogs" / "test")
    others = [list_photos(path) for path in sorted((data / "ood").iterdir()) if path.is_dir()]
    share = -(-(number - number // 2) // len(others))
    strange = [path for paths in others for path in spread(paths, share)]
    return [*spread(known, number // 2), *spread(strange, number - number // 2)]


def detection_sample(data: Path, number: int) -> list[Path]:
    """`number` photos: half with objects of known classes, from validation, half of other sets."""
    sets = data / "detection"
    known = read_coco(sets / "natural5" / "annotations" / "val.json").paths
    others = [list_photos(sets / name / "images") for name in ("ood_coco", "ood_fod_a")]
    share = (number - number // 2) // 2
    strange = [path for paths in others for path in spread(paths, share)]
    return [*spread(known, number - len(strange)), *strange]


def spread(paths: Sequence[Path], number: int) -> list[Path]:
    """`number` of the paths, evenly from first to last."""
    number = min(number, len(paths))
    return [paths[i * len(paths) // number] for i in range(number)]


def differences(model: Any, exported: Any, photos: list[Path]) -> dict[str, Any]:
    """Answers of both for the same files, as `predict` gives them."""
    same, largest, relative = 0, 0.0, 0.0
    for one, other in zip(model.predict_iter(photos), exported.predict_iter(photos), strict=True):
        if one.error:
            raise SystemExit(one.error)
        same += (one.label, one.is_unknown) == (other.label, other.is_unknown)
        largest = max(largest, abs(one.ood_score - other.ood_score))
        for name, value in one.scores.items():
            relative = max(relative, abs(value - other.scores[name]) / max(1.0, abs(value)))
    return {
        "photos": len(photos),
        "same": same,
        "max_difference": largest,
        "max_relative": relative,
    }


def box_differences(model: Any, exported: Any, photos: list[Path]) -> dict[str, Any]:
    """The same for detectors; a box that one of them does not show makes the photo another."""
    parity, same, boxes, with_boxes = DetectorParity(), 0, 0, 0
    for one, other in zip(model.predict_iter(photos), exported.predict_iter(photos), strict=True):
        if one.error:
            raise SystemExit(one.error)
        before = len(parity.differences)
        parity.compare_boxes(str(one.path), one, other)
        same += len(parity.differences) == before
        boxes += len(one.boxes)
        with_boxes += bool(one.boxes)
    return {
        "photos": len(photos),
        "same": same,
        "boxes": boxes,
        "with_boxes": with_boxes,
        "max_box_difference": parity.max_box_difference,
        "max_difference": parity.max_difference,
        "max_relative": parity.max_relative_parts,
        "differences": parity.differences,
    }


def rounds(models: dict[str, Any], photos: list[Path], number: int) -> dict[str, list[float]]:
    """Seconds of each round of `predict` on files; the models take turns, after a round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(number + 1):
        for name, model in models.items():
            started = time.perf_counter()
            model.predict(photos)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(reference: list[float], seconds: list[float]) -> list[float]:
    """Quartiles of how much faster than the reference the rounds were."""
    return quantiles([a / b for a, b in zip(reference, seconds, strict=True)])


def default_data() -> Path:
    """Where the photos are: `KNOWNOT_DATA`, or beside the checkout."""
    return Path(os.environ.get("KNOWNOT_DATA", Path(__file__).parents[2] / "shared" / "data"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--model", type=Path, help="model folder, instead of training one")
    parser.add_argument("--task", choices=("classify", "detect"), default="classify")
    parser.add_argument("--photos", type=int, help="photos to compare on (default: 1000, or 200)")
    parser.add_argument("--timed", type=int, default=64, help="of these, photos in a timed round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.photos = options.photos or (200 if options.task == "detect" else 1000)
    if options.photos < 30 or options.rounds < 2:
        parser.error("expected at least 30 photos and 2 rounds")
    return options


if __name__ == "__main__":
    main()
