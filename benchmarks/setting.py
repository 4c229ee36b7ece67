"""A setting of the classifier, chosen without a single OOD or test photo.

    python -m benchmarks setting --on cats_dogs         # β, frozen backbone, minutes
    python -m benchmarks setting --on cifar10_frozen    # β, half an hour of one core
    python -m benchmarks setting --on cats_dogs --setting outliers_per_class --values 1 4 16 64
    python -m benchmarks setting --on cats_dogs_finetuned --setting bottleneck --values 64 0 256
    python -m benchmarks setting --on cats_dogs_finetuned --setting way \\
        --values '{head_first: false, fix_norms: false, backbone_lr: 2.0e-4}' '{}'  # several settings

Every value is trained with seeds that no other figure uses. The rule, written down and committed
before the OOD figures of what it chose, is that of `knownot.training.altered_rule`; the first value given
stays unless another gains. Settings of the loss are judged by energy, which the loss shapes, others by
the default score, which users get. `knownot train --vos-weight auto` does the same with the one seed it
has.

Prints the table and the choice; writes `setting_NAME_CONFIGURATION.json`. A run already there is not
repeated. What the choice is worth on OOD sets, afterwards, on the same models:

    knownot benchmark --config setting-NAME/settings.yaml -o setting-NAME --data data/ --seeds 10
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from cats_dogs import default_data, machine, spread, with_earlier_runs
from knownot.benchmark.arrays import Arrays, Fitted, from_scored_features
from knownot.benchmark.config import load_config
from knownot.benchmark.recipe import Recipe
from knownot.benchmark.run import SETTINGS, make_recipe
from knownot.benchmark.scores import SCORES
from knownot.benchmark.workplace import Workplace
from knownot.core.metrics import fpr95
from knownot.data.altered import ALTERATIONS
from knownot.data.kept_files import write_whole
from knownot.training.altered_rule import ACCURACY, ALTERED, choose
from knownot.training.weight_choice import WEIGHTS

SEEDS = [10, 11, 12]
DEFAULT = "altered_default"  # as ALTERED, of the default score
WITHOUT_VOS = "without VOS"  # to compare with, no candidate
OF_THE_LOSS = {"vos_weight", "vos_start", "outliers_per_class", "draws_per_class", "phi"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--on", default="cats_dogs", help="a configuration of knownot benchmark, or a file of one"
    )
    parser.add_argument("--setting", default="vos_weight", help="its name in settings.yaml")
    parser.add_argument(
        "--values",
        nargs="+",
        default=[str(w) for w in WEIGHTS],
        help=f"candidates, the one that stays unless another gains first; '{WITHOUT_VOS}' is none",
    )
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--models", type=Path, help="(default: setting-NAME-CONFIGURATION)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    methods = {
        training(value): {
            "about": f"{options.setting} = {value}",
            "settings": changes(options.setting, value),
            "scores": ["energy", "combined"],
        }
        for value in options.values
    }
    config = load_config(options.on, {"methods": methods, "tables": {}})
    name = f"{options.setting}_{config.name}"
    models = options.models or Path(f"setting-{name}".replace("_", "-"))
    place = Workplace(config, options.data, models)
    recipe = make_recipe(place)
    recipe.check()
    write_whole(place.output / SETTINGS, lambda f: f.write_text(config.to_yaml(), "utf-8"))
    results_file = options.output / f"setting_{name}.json"
    results = with_earlier_runs(results_file, {"machine": machine(), "runs": {}})
    for seed in options.seeds:
        for value in options.values:
            run = f"{options.setting} {value}, seed {seed}"
            if run not in results["runs"]:
                measured = measure(recipe, training(value), seed)
                results["runs"][run] = {"value": value, "seed": seed, **measured}
                results_file.write_text(json.dumps(results, indent=1) + "\n")
            print(run, results["runs"][run], flush=True)
    report(list(results["runs"].values()), options.setting, options.values[0])


def training(value: str) -> str:
    return "value-" + re.sub(r"[^a-z0-9.]+", "-", value.lower()).strip("-")


def changes(setting: str, value: str) -> dict[str, Any]:
    if value == WITHOUT_VOS:
        return {"vos_weight": 0.0}
    parsed = yaml.safe_load(value)
    return parsed if isinstance(parsed, dict) else {setting: parsed}


def measure(recipe: Recipe, name: str, seed: int) -> dict[str, Any]:
    """Train; accuracy on validation photos, and how well scores tell altered ones from them."""
    model = recipe.model(name, seed)
    val = recipe.known(model, (name, seed), "val")
    altered = [
        from_scored_features(model, rows, None) for rows in recipe.altered(model, (name, seed))
    ]
    fitted = Fitted(model, val, val)  # ours are fitted to the training photos by now

    def separated(score: str) -> dict[str, float]:
        scorer = SCORES[score](fitted)
        known = scorer(val)
        return {
            kind: fpr95(known, scorer(arrays))
            for kind, arrays in zip(ALTERATIONS, altered, strict=True)
        }

    each, of_default = separated("energy"), separated("combined")
    return {
        ACCURACY: accuracy(val),
        "images": len(val),
        "altered_images": len(altered[0]),
        ALTERED: mean(each.values()),
        DEFAULT: mean(of_default.values()),
        "altered_each": each,
        "altered_default_each": of_default,
    }


def accuracy(known: Arrays) -> float:
    return float((known.logits.argmax(1) == known.labels).double().mean())


def report(runs: list[dict[str, Any]], setting: str, stays: str) -> None:
    """Markdown table of mean ± std over seeds, %, and what the rule chooses."""
    columns = [c for c in (ACCURACY, ALTERED, DEFAULT) if all(c in r for r in runs)]
    heads = {
        ACCURACY: "validation accuracy",
        ALTERED: "FPR95 of energy, altered photos",
        DEFAULT: "of the default score",
    }
    print(f"\n| {setting} | {' | '.join(heads[c] for c in columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    judged = ALTERED if setting in OF_THE_LOSS else DEFAULT
    measured: dict[str, dict[str, list[float]]] = {}
    for value in dict.fromkeys(r["value"] for r in runs):
        of_value = sorted((r for r in runs if r["value"] == value), key=lambda r: r["seed"])
        found = {c: [r[c] for r in of_value] for c in columns}
        shown = (spread([100 * share for share in found[c]]) for c in columns)
        print(f"| {value} | {' | '.join(shown)} |")
        if value != WITHOUT_VOS:
            measured[value] = {ACCURACY: found[ACCURACY], ALTERED: found[judged]}
    if stays in measured:
        print(f"\nchosen: {choose(measured, stays, runs[0]['images'], runs[0]['altered_images'])}")


if __name__ == "__main__":
    main()
