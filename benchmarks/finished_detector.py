"""A detector that somebody else's loop trained, before and after `knownot train --finetune none`.

    python -m benchmarks finished_detector          # 2 seeds, some 25 min of a core each

The loop is what torchvision's tutorial has: a `FasterRCNN` around a timm EfficientNet-Lite0 with ImageNet's
weights and a feature pyramid, trained on apples, bananas, oranges, kangaroos and raccoons (natural5),
nothing of knownot in it. Compared are its boxes with those of the model folder, and over boxes the FPR95 of
what it offers by itself (softmax, energy) with that of the default score; and the same after two epochs
with VOS that begin with the same weights. The annotated validation photos are split in two: one half
calibrates, the other is measured. Prints a Markdown table and writes `<output>/finished_detector.json`.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor

import knownot
from cats_dogs import default_data, machine, spread, with_earlier_runs
from detection_sets import OOD, halve
from knownot.cli.allocator import keep_freed_memory
from knownot.data.detection_folder import read_detection
from knownot.data.photo import open_photo
from knownot.evaluation.evaluate_detector import evaluate_detector
from knownot.models.backbones import packaged_network
from knownot.models.finished_faster_rcnn import FinishedFasterRCNN
from knownot.training.config import DetectionConfig
from knownot.training.train_detector import train_detector

ARCH, SET = "tf_efficientnet_lite0", "natural5"
SIZE, EPOCHS, BATCH, RATE = 256, 4, 4, 3e-4
WAYS: dict[str, dict[str, Any]] = {
    "its weights as they are": {"finetune": "none"},
    "2 epochs more, with VOS": {"epochs": 2, "vos_start": 0.2, "image_size": SIZE},
}
SCORES = ("msp", "energy", "mahalanobis", "knn", "combined")


class Pyramid(nn.Module):
    """Three maps of a timm network, and a feature pyramid on them."""

    out_channels = 128

    def __init__(self) -> None:
        super().__init__()
        levels = (2, 3, 4)
        self.body = timm.create_model(ARCH, features_only=True, out_indices=levels)
        pretrained = packaged_network(ARCH).state_dict()
        self.body.load_state_dict({k: pretrained[k] for k in self.body.state_dict()})
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), self.out_channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = OrderedDict((str(i), values) for i, values in enumerate(self.body(images)))
        pyramid: dict[str, Tensor] = self.fpn(maps)
        return pyramid

    def train(self, mode: bool = True) -> Pyramid:
        """Batches of four are too small for statistics of their own."""
        super().train(mode)
        for module in self.body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class Photos(Dataset[Any]):
    """Photos with boxes as torchvision's detectors are trained on."""

    def __init__(self, data: Path) -> None:
        self.known = read_detection(data, split="train")
        self.augment = v2.Compose(
            [v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
        )

    def __len__(self) -> int:
        return len(self.known)

    def __getitem__(self, index: int) -> Any:
        photo = tv_tensors.Image(pil_to_tensor(open_photo(self.known.paths[index])))
        objects = self.known.objects[index]
        boxes = tv_tensors.BoundingBoxes(
            objects.boxes, format="XYXY", canvas_size=tuple(photo.shape[-2:])
        )
        return self.augment(photo, {"boxes": boxes, "labels": objects.labels + 1})


def main() -> None:
    options = _options()
    keep_freed_memory()
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "finished_detector.json"
    setting = {"arch": ARCH, "size": SIZE, "epochs": EPOCHS, "batch": BATCH, "lr": RATE}
    fresh = {"setting": setting, "machine": machine(), "runs": {}}
    for seed in options.seeds:
        if str(seed) not in with_earlier_runs(file, fresh)["runs"]:
            with tempfile.TemporaryDirectory() as scratch:
                measured = run(seed, options.data / "detection", Path(scratch).resolve())
            results = with_earlier_runs(file, fresh)  # another process may measure another seed
            results["runs"][str(seed)] = measured
            file.write_text(json.dumps(results, indent=1) + "\n")
    print_table([*with_earlier_runs(file, fresh)["runs"].values()])
    print(f"\nall numbers: {file}")


def run(seed: int, data: Path, scratch: Path) -> dict[str, Any]:
    """Train by the plain loop, give the result to knownot in each way, measure all."""
    split = halve(data / SET, scratch / SET)
    torch.manual_seed(seed)
    network = plainly_trained(split)
    ways = {}
    for number, (title, changes) in enumerate(WAYS.items()):
        started = time.monotonic()
        output = scratch / f"model{number}"
        config = DetectionConfig(data=split, output=output, seed=seed, **changes)
        train_detector(config, regions=FinishedFasterRCNN(network))
        seconds = time.monotonic() - started
        model = knownot.load(output, backbone=network, device="auto")
        summary = evaluate_detector(model, split, [data / name for name in OOD[SET]]).summary
        ways[title] = {
            "other_boxes": other_boxes(network, model, read_detection(split, model.classes).paths),
            "map": summary["map"],
            "flagged_id": summary["flagged_id"],
            "parts": model.combined.parts if model.combined else [],
            "fpr95": {
                name: {score: row["scores"][score] for score in SCORES}
                for name, row in summary["ood"].items()
            },
            "seconds": seconds,
        }
    return ways


def plainly_trained(data: Path) -> FasterRCNN:
    """A detector of torchvision's, trained on photos with boxes without knownot."""
    photos = Photos(data)
    sizes = tuple((3 * s, round(3 * s * 2**0.5)) for s in (8, 16, 32))
    network = FasterRCNN(
        Pyramid(),
        num_classes=len(photos.known.classes) + 1,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        min_size=SIZE,
        max_size=SIZE * 5 // 3,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        rpn_post_nms_top_n_train=500,
        rpn_post_nms_top_n_test=200,
        box_batch_size_per_image=64,
    )
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    batches = DataLoader(
        photos, BATCH, shuffle=True, collate_fn=lambda rows: tuple(zip(*rows, strict=True))
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, epochs=EPOCHS, steps_per_epoch=len(batches)
    )
    network.train()
    for _ in range(EPOCHS):
        for images, targets in batches:
            loss = torch.stack([*network(list(images), list(targets)).values()]).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def other_boxes(network: FasterRCNN, model: Any, paths: list[Path]) -> int:
    """Photos in which the model folder has other boxes than the network by itself."""
    others = 0
    own = copy.deepcopy(network).to(memory_format=torch.channels_last)  # as the model's, to the bit
    for path in paths:
        pixels = pil_to_tensor(open_photo(path))
        (expected,), (found,) = own([pixels / 255]), model([pixels])
        same = expected["boxes"].shape == found["boxes"].shape and torch.equal(
            expected["labels"] - 1, found["labels"]
        )
        same = same and torch.allclose(expected["boxes"], found["boxes"], atol=0.05)
        others += not same
    return others


def print_table(runs: list[dict[str, Any]]) -> None:
    print(f"\n| {len(runs)} seeds | {' | '.join(WAYS)} |\n|---|{'---|' * len(WAYS)}")
    rows: dict[str, Callable[[dict[str, Any]], float]] = {
        "photos with other boxes": lambda m: m["other_boxes"],
        "mAP, %": lambda m: 100 * m["map"],
        "boxes on known objects called unknown at α = 0.05, %": lambda m: 100 * m["flagged_id"],
        "to model folder, s": lambda m: m["seconds"],
    }
    for title, value in rows.items():
        print(f"| {title} | {' | '.join(spread(value(run[w]) for run in runs) for w in WAYS)} |")
    print(
        "\nFPR95 over boxes, %, mean over the OOD sets: by the paper's protocol / of found objects\n"
    )
    print(f"| score | {' | '.join(WAYS)} |\n|---|{'---|' * len(WAYS)}")
    for score in SCORES:
        cells = []
        for way in WAYS:
            each = [
                [fmean(100 * s[score][kind] for s in run[way]["fpr95"].values()) for run in runs]
                for kind in ("fpr95", "fpr95_found")
            ]
            cells.append(" / ".join(spread(values) for values in each))
        print(f"| {score} | {' | '.join(cells)} |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
