"""What VOS costs a detector: a training step and a detection with it and without, paired.

    python benchmarks/detection_cost.py models/natural5-3/VOS
    python benchmarks/detection_cost.py resnet50/ --image-size 800 --batch 1 --pairs 25 --name NAME

"Without" is torchvision's own Faster R-CNN around the same weights. Prints a Markdown table and writes
`<output>/<name>.json`.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.transforms.functional import pil_to_tensor

import knownot
from cats_dogs import default_data, machine
from knownot.cli.allocator import keep_freed_memory
from knownot.data.detection_folder import read_detection
from knownot.data.photo import open_photo
from knownot.models.detector import UnknownAwareDetector


def main() -> None:
    options = _options()
    keep_freed_memory()
    options.output.mkdir(parents=True, exist_ok=True)
    data = options.data / "detection" / "natural5"
    rows = cost(options.model, data, options.batch, options.pairs, options.image_size)
    file = options.output / f"{options.name}.json"
    setting = {"batch": options.batch, "image_size": options.image_size}
    file.write_text(json.dumps({"machine": machine(), **setting, **rows}, indent=1) + "\n")
    print("| | with VOS, s | without, s | ratio | quartiles |\n|---|---|---|---|---|")
    for title, row in rows.items():
        low, _, high = row["ratio_quartiles"]
        print(
            f"| {title} | {row['with_vos_s']:.3f} | {row['without_s']:.3f} | {row['ratio']:.3f} "
            f"| {low:.3f} to {high:.3f} |"
        )
    print(f"\nall numbers: {file}")


def cost(
    folder: Path, data: Path, batch: int, rounds: int, image_size: int | None
) -> dict[str, Any]:
    """A training step and a detection with VOS and without, in turn, on the same photos."""
    model = knownot.load(folder)
    assert isinstance(model, UnknownAwareDetector)
    if image_size:
        transform = model.regions.model.transform
        transform.min_size, transform.max_size = (image_size,), image_size * 5 // 3
    photos = read_detection(data, model.classes)
    plain = plain_torchvision(model.regions.model)
    steps = []
    for first in range(0, batch * rounds, batch):
        rows = [(first + i) % len(photos) for i in range(batch)]
        pixels = [pil_to_tensor(open_photo(photos.paths[row])) for row in rows]
        objects = [photos.objects[row] for row in rows]
        steps.append((pixels, [{"boxes": o.boxes, "labels": o.labels} for o in objects]))

    boxes: list[float] = []  # a photo, that scores are computed of

    def with_vos(pixels: list[Tensor], targets: Any) -> None:
        torch.stack(list(model.losses(pixels, targets).values())).sum().backward()

    def without(pixels: list[Tensor], targets: Any) -> None:
        shifted = [{"boxes": t["boxes"], "labels": t["labels"] + 1} for t in targets]
        losses = plain([p / 255 for p in pixels], shifted)
        torch.stack(list(losses.values())).sum().backward()

    def detect_with(pixels: list[Tensor], _: Any) -> None:
        boxes.append(sum(len(found["boxes"]) for found in model(pixels)) / len(pixels))

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
    results["detection"]["boxes"] = fmean(boxes)
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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="detector trained on natural5")
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--image-size", type=int, help="shorter side in pixels, not the detector's")
    parser.add_argument("--batch", type=int, default=4, help="photos together")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--name", default="detection_cost", help="of the file with the numbers")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
