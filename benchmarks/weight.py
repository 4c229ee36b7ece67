"""The weight β of the uncertainty loss, chosen without a single OOD or test photo.

    python -m benchmarks weight --on cats_dogs --data data/        # frozen backbone, minutes
    python -m benchmarks weight --on cifar10_frozen --data data/   # half an hour of one core
    python -m benchmarks weight --on cifar10_small --data data/    # 2 h of one core

Every weight is trained with seeds that no other figure uses. The rule, written down and committed
before the OOD figures of what it chose, is that of `knownot.training.altered_rule`, which chose the start
of VOS. `knownot train --vos-weight auto` does the same with the one seed it has.

Prints the table and the choice; writes `weight_NAME.json`. A run already there is not repeated. What the
choice is worth on OOD sets, afterwards, on the same models:

    knownot benchmark --config weight-NAME/settings.yaml -o weight-NAME --data data/ --seeds 10
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from torch import Tensor

from cats_dogs import default_data, machine, spread, with_earlier_runs
from knownot.benchmark.arrays import Arrays, from_backbone_features
from knownot.benchmark.config import load_config
from knownot.benchmark.recipe import Recipe
from knownot.benchmark.run import SETTINGS, make_recipe
from knownot.benchmark.workplace import Workplace
from knownot.core.energy import energy
from knownot.core.metrics import fpr95
from knownot.data.altered import ALTERATIONS
from knownot.data.kept_files import write_whole
from knownot.training.altered_rule import ACCURACY, ALTERED, choose
from knownot.training.weight_choice import PAPER, WEIGHTS

SEEDS = [10, 11, 12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--on", default="cats_dogs", help="a configuration of knownot benchmark")
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, *WEIGHTS])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--models", type=Path, help="(default: weight-NAME)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    methods = {
        training(w): {
            "about": f"β = {w}",
            "settings": {"vos_weight": w},
            "scores": ["energy", "combined"],
        }
        for w in options.weights
    }
    config = load_config(options.on, {"methods": methods, "tables": {}})
    place = Workplace(config, options.data, options.models or Path(f"weight-{options.on}"))
    recipe = make_recipe(place)
    recipe.check()
    write_whole(place.output / SETTINGS, lambda f: f.write_text(config.to_yaml(), "utf-8"))
    results_file = options.output / f"weight_{options.on}.json"
    results = with_earlier_runs(results_file, {"machine": machine(), "runs": {}})
    for seed in options.seeds:
        for weight in options.weights:
            name = f"weight {weight}, seed {seed}"
            if name not in results["runs"]:
                measured = run(recipe, training(weight), seed)
                results["runs"][name] = {"weight": weight, "seed": seed, **measured}
                results_file.write_text(json.dumps(results, indent=1) + "\n")
            print(name, results["runs"][name], flush=True)
    report(list(results["runs"].values()))


def training(weight: float) -> str:
    return f"weight-{weight:g}"


def run(recipe: Recipe, name: str, seed: int) -> dict[str, Any]:
    """Train; accuracy on validation photos, and how well energy tells altered ones from them."""
    model = recipe.model(name, seed)
    val = recipe.known(model, (name, seed), "val")

    def separated(rows: Tensor) -> float:
        altered = from_backbone_features(model, rows, None)
        return fpr95(energy(val.logits), energy(altered.logits))

    altered = recipe.altered(model, (name, seed))
    each = {kind: separated(rows) for kind, rows in zip(ALTERATIONS, altered, strict=True)}
    return {
        ACCURACY: accuracy(val),
        "images": len(val),
        "altered_images": len(altered[0]),
        ALTERED: mean(each.values()),
        "altered_each": each,
    }


def accuracy(known: Arrays) -> float:
    return float((known.logits.argmax(1) == known.labels).double().mean())


def report(runs: list[dict[str, Any]]) -> None:
    """Markdown table of mean ± std over seeds, %, and what the rule chooses."""
    print("\n| β | validation accuracy | FPR95 of energy, altered photos |\n|---|---|---|")
    measured: dict[float, dict[str, list[float]]] = {}
    for weight in sorted({r["weight"] for r in runs}):
        of_weight = sorted((r for r in runs if r["weight"] == weight), key=lambda r: r["seed"])
        columns = {c: [r[c] for r in of_weight] for c in (ACCURACY, ALTERED)}
        shown = (spread([100 * share for share in column]) for column in columns.values())
        print(f"| {weight:g} | {' | '.join(shown)} |")
        if weight > 0:  # without VOS: to compare with, no candidate
            measured[weight] = columns
    if PAPER in measured:
        print(
            f"\nchosen: {choose(measured, PAPER, runs[0]['images'], runs[0]['altered_images']):g}"
        )


if __name__ == "__main__":
    main()
