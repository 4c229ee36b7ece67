"""A classifier that somebody else's loop trained, before and after `knownot train --finetune none`.

    python -m benchmarks finished                   # 3 seeds, some 5 min of a core each

The loop is what PyTorch's tutorials have: a timm EfficientNet-Lite0 with ImageNet's weights, all of it
trained on photos of cats and dogs by cross-entropy, nothing of knownot in it; its weights are saved as a
`.pth` file. Compared are the answers of that network with those of the model folder, and FPR95 of what
the network offers by itself (softmax, energy) with that of the default score; and the same after
`--finetune head` on the same file, which trains a bottleneck and a new last layer with VOS. Prints Markdown
tables and writes `<output>/finished.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import knownot
from cats_dogs import APART, NEAR, default_data, machine, spread, with_earlier_runs
from knownot.core.metrics import fpr95
from knownot.data.image_folder import list_photos, read_labelled
from knownot.models.backbones import packaged_network
from knownot.training.config import TrainConfig
from knownot.training.feature_cache import extract_features
from knownot.training.train import train

ARCH = "tf_efficientnet_lite0"
SIZE, EPOCHS, BATCH, RATE = 160, 3, 32, 1e-4
WAYS = {"none": "its weights as they are", "head": "a new head with VOS on its frozen features"}
SCORES = ("msp", "energy", "mahalanobis", "knn", "combined")


def main() -> None:
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "finished.json"
    setting = {"arch": ARCH, "size": SIZE, "epochs": EPOCHS, "batch": BATCH, "lr": RATE}
    results = with_earlier_runs(file, {"setting": setting, "machine": machine(), "runs": {}})
    for seed in options.seeds:
        if str(seed) not in results["runs"]:
            with tempfile.TemporaryDirectory() as scratch:
                results["runs"][str(seed)] = run(seed, options.data, Path(scratch))
            file.write_text(json.dumps(results, indent=1) + "\n")
    print_table([*results["runs"].values()])
    print(f"\nall numbers: {file}")


def run(seed: int, data: Path, scratch: Path) -> dict[str, Any]:
    """Train by the plain loop, give the result to knownot in each way, measure all."""
    torch.manual_seed(seed)
    network = plainly_trained(data / "cats_dogs" / "train")
    torch.save(network.state_dict(), scratch / "mine.pth")
    ways = {}
    for way in WAYS:
        started = time.monotonic()
        train(
            TrainConfig(
                data=data / "cats_dogs",
                output=scratch / way,
                finetune=way,
                arch=ARCH,
                weights=str(scratch / "mine.pth"),
                image_size=SIZE,
                seed=seed,
            ),
            cache=scratch / "cache",
        )
        seconds = time.monotonic() - started
        model = knownot.load(scratch / way)
        ways[way] = {**measured(model, network, data, scratch / "cache"), "seconds": seconds}
    return ways


def measured(model: Any, network: nn.Module, data: Path, cache: Path) -> dict[str, Any]:
    """Accuracy, answers beside the network's own, and FPR95 of every score and set."""
    known = read_labelled(data / "cats_dogs" / "test", model.classes)
    labels = torch.tensor(known.labels)

    @torch.no_grad()
    def scores_of(paths: list[Path]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        output = model.classify(extract_features(model, paths, cache).rows)
        return output.logits, model.scores(output)

    logits, of_known = scores_of(known.paths)
    own = logits_of(network, model, known.paths)
    p_values = model.calibration("combined").p_value(of_known["combined"])
    sets = {
        folder.name: scores_of(list_photos(folder))[1]
        for folder in sorted((data / "ood").iterdir())
        if folder.is_dir()
    }
    return {
        "accuracy_before": float((own.argmax(1) == labels).double().mean()),
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "other_answers": int((own.argmax(1) != logits.argmax(1)).sum()),
        "flagged_id": float((p_values < 0.05).double().mean()),
        "parts": model.combined.parts if model.combined else [],
        "fpr95": {
            name: {score: fpr95(of_known[score], of_set[score]) for score in SCORES}
            for name, of_set in sets.items()
        },
    }


def plainly_trained(folder: Path) -> nn.Module:
    """A timm classifier, fine-tuned on class folders without knownot."""
    network = packaged_network(ARCH)
    network.reset_classifier(2)
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=(0.5, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    photos = DataLoader(ImageFolder(str(folder), augment), BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    network.train()
    for _ in range(EPOCHS):
        for images, labels in photos:
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def logits_of(network: nn.Module, model: Any, paths: list[Path]) -> torch.Tensor:
    """What the network itself says of photos that are read as the model reads them."""
    rows = []
    for first in range(0, len(paths), BATCH):
        pixels = torch.stack([model.preprocessing.read(p) for p in paths[first : first + BATCH]])
        rows.append(network((pixels - model.mean) / model.std))
    return torch.cat(rows)


def print_table(runs: list[dict[str, Any]]) -> None:
    print(f"\n| {len(runs)} seeds | {' | '.join(WAYS.values())} |\n|---|{'---|' * len(WAYS)}")
    rows: dict[str, Callable[[dict[str, Any]], float]] = {
        "accuracy of the network by itself, %": lambda m: 100 * m["accuracy_before"],
        "accuracy of the model folder, %": lambda m: 100 * m["accuracy"],
        "test photos with another class": lambda m: m["other_answers"],
        "known photos called unknown at α = 0.05, %": lambda m: 100 * m["flagged_id"],
        "to model folder, s": lambda m: m["seconds"],
    }
    for title, value in rows.items():
        print(f"| {title} | {' | '.join(spread(value(run[w]) for run in runs) for w in WAYS)} |")
    print(f"\nFPR95, %: mean over the OOD sets without {APART} / {NEAR} alone\n")
    print(f"| score | {' | '.join(WAYS.values())} |\n|---|{'---|' * len(WAYS)}")
    for score in SCORES:
        cells = []
        for way in WAYS:
            found = [run[way]["fpr95"] for run in runs]
            means = [fmean(100 * f[n][score] for n in f if n != APART) for f in found]
            cells.append(f"{spread(means)} / {spread(100 * f[NEAR][score] for f in found)}")
        print(f"| {score} | {' | '.join(cells)} |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
