"""Which maps of a backbone should a classifier's feature scores read? Judged by ID photos alone.

    python -m benchmarks earlier_maps --on cats_dogs cifar10_frozen --seeds 0           # minutes
    python -m benchmarks earlier_maps --on cats_dogs_finetuned cifar10_small --seeds 0 1

trains with VOS what `knownot benchmark` of that name trains (or takes it from `--models`, the
output folder of one) and compares, for both scores, the last features alone with maps of the backbone
beside them, each a mean over the photo at unit length, by two tests that need no OOD photo:

- altered: validation photos against the same photos altered until they show no class;
- a class left out: the scores are fitted without one class, whose validation photos are the outliers, in
  turn. A network that was trained to tell this class apart is flattered by its last features.

"1 before" is the deepest map of the resolution before the last one, "2 before" that of the one before.
Prints a Markdown table of FPR95 and writes `<output>/earlier_maps_NAME.json`. `--ood` measures afterwards
what each choice gives on the OOD sets; it chooses nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cats_dogs import default_data, machine, spread
from knownot.benchmark.config import load_config
from knownot.benchmark.recipe import Recipe
from knownot.benchmark.run import make_recipe
from knownot.benchmark.workplace import Workplace
from knownot.core.combination import CombinedScore
from knownot.core.metrics import fpr95
from knownot.core.scores import FeatureScores
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.earlier_map import EarlierMap

TRAINING = "vos"
_ROWS = 10_000  # training photos that the scores are fitted to here
# What is read, by resolutions before the last one; 0 is its own map, "last" the last features.
CHOICES: dict[str, list[int | str]] = {
    "last features": ["last"],
    "1 before": [1],
    "1 before, last features": ["last", 1],
    "1 and 2 before, last features": ["last", 1, 2],
    "0 and 1 before, last features": ["last", 0, 1],
    "0, 1 and 2 before, last features": ["last", 0, 1, 2],
}
# Mahalanobis and kNN may read differently.
PAIRS = {
    "both read the last features": ("last features", "last features"),
    "Mahalanobis reads 1 before as well": ("1 before, last features", "last features"),
    "both read 1 before as well": ("1 before, last features", "1 before, last features"),
}


def main() -> None:
    options = _options()
    for name in options.on:
        config = load_config(name)
        models = options.models or Path(f"benchmark-{config.name}")
        recipe = make_recipe(Workplace(config, options.data, models))
        recipe.check()
        sets = [s for s in config.sets if options.ood and s not in config.apart]
        runs = [measure(recipe, seed, sets) for seed in options.seeds or config.seeds]
        options.output.mkdir(parents=True, exist_ok=True)
        file = options.output / f"earlier_maps_{config.name}.json"
        file.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")
        print(f"\n{config.about}\n")
        report(runs)


class AllMaps(nn.Module):
    """A backbone that gives the means of all its maps as a single one."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.widths: list[int] = []

    def forward_head(self, last: Tensor) -> Any:
        return self.backbone.forward_head(last)

    def forward_intermediates(self, pixels: Tensor, indices: Sequence[int]) -> Any:
        last, maps = self.backbone.forward_intermediates(pixels)
        deepest = {one.shape[-1]: one for one in maps}  # of each resolution
        kept = [deepest[side] for side in sorted(deepest)]
        self.widths = [one.shape[1] for one in kept]
        return last, [torch.cat([one.float().mean((2, 3), keepdim=True) for one in kept], 1)]


def measure(recipe: Recipe, seed: int, sets: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """FPR95 by what is read, test and score, of one model."""
    run = (TRAINING, seed)
    model = recipe.model(*run)
    widths = read_all_maps(model)
    ends = [sum(widths[:i]) for i in range(len(widths) + 1)]
    columns: dict[int | str, slice] = {
        what: slice(ends[i], ends[i + 1])
        for i, what in enumerate(["last", *range(len(widths) - 1)])
    }
    train, val = recipe.known(model, run, "train"), recipe.known(model, run, "val")
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:_ROWS]
    learned, labels = train.scored_features[chosen], train.labels[chosen]
    tests = {"altered": [(val.scored_features, rows) for rows in recipe.altered(model, run)]}
    if sets:
        test = recipe.known(model, run, "test").scored_features
        tests["ood"] = [(test, recipe.ood(model, run, name).scored_features) for name in sets]
    results: dict[str, dict[str, dict[str, float]]] = {name: {} for name in (*CHOICES, *PAIRS)}

    def judge(test: str, fits: dict[str, FeatureScores], known: Tensor, others: list[Tensor]):
        read = {name: [columns[what] for what in whats] for name, whats in CHOICES.items()}
        found = {
            name: [fits[name](side_by_side(rows, read[name])) for rows in (known, *others)]
            for name in CHOICES
        }
        for name, (of_known, *of_others) in found.items():
            for score in of_known:
                rates = [fpr95(of_known[score], other[score]) for other in of_others]
                results[name].setdefault(test, {}).setdefault(score, []).extend(rates)
        for name, (distance, neighbours) in PAIRS.items():
            parts = [
                {"mahalanobis": a["mahalanobis"], "knn": b["knn"]}
                for a, b in zip(found[distance], found[neighbours], strict=True)
            ]
            together = CombinedScore(["mahalanobis", "knn"]).fit(parts[0])
            of_known, *of_others = (together(part) for part in parts)
            rates = [fpr95(of_known, other) for other in of_others]
            results[name].setdefault(test, {}).setdefault("together", []).extend(rates)

    def fitted(rows: Tensor, labels: Tensor, classes: int) -> dict[str, FeatureScores]:
        return {
            name: FeatureScores.fit(
                side_by_side(rows, [columns[what] for what in whats]),
                labels,
                classes,
                generator=torch.Generator().manual_seed(0),
            )
            for name, whats in CHOICES.items()
        }

    fits = fitted(learned, labels, len(model.classes))
    for test, pairs in tests.items():
        judge(test, fits, pairs[0][0], [rows for _, rows in pairs])
    for left_out in range(len(model.classes)):
        kept, strange = labels != left_out, val.labels == left_out
        others = labels[kept] - (labels[kept] > left_out).long()
        fits = fitted(learned[kept], others, len(model.classes) - 1)
        known, unknown = val.scored_features[~strange], val.scored_features[strange]
        judge("a class left out", fits, known, [unknown])
    return {
        name: {test: {s: mean(rates) for s, rates in of.items()} for test, of in row.items()}
        for name, row in results.items()
    }


def read_all_maps(model: UnknownAwareClassifier) -> list[int]:
    """Widths of the last features and of the maps, the coarsest first, that it reads from now on."""
    maps = AllMaps(model.backbone)
    model.backbone = maps
    size = model.preprocessing.image_size
    with torch.no_grad():
        maps.forward_intermediates(torch.zeros(1, 3, size, size), [0])
    model.earlier_map = EarlierMap(index=0, width=sum(maps.widths))
    return [model.backbone_dim, *maps.widths]


def side_by_side(rows: Tensor, columns: list[slice]) -> Tensor:
    return torch.cat([F.normalize(rows[:, part], dim=1) for part in columns], 1)


def report(runs: list[dict[str, dict[str, dict[str, float]]]]) -> None:
    tests = list(next(iter(runs[0].values())))
    for names, scores in ((CHOICES, ("mahalanobis", "knn")), (PAIRS, ("together",))):
        print("| FPR95, % |", " | ".join(f"{test}: {s}" for test in tests for s in scores), "|")
        print("|---|" + "---|" * len(tests) * len(scores))
        for name in names:
            cells = [spread(100 * r[name][test][s] for r in runs) for test in tests for s in scores]
            print(f"| {name} |", " | ".join(cells), "|")
        print()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--on", nargs="+", default=["cats_dogs"], help="configurations of knownot benchmark"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="(default: the configuration's)")
    parser.add_argument("--ood", action="store_true", help="measure OOD sets afterwards")
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--models", type=Path, help="(default: benchmark-NAME)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
