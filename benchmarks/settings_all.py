"""Settings of `--finetune all`, judged without a single OOD or test photo.

    python benchmarks/settings_all.py     # 9 settings, 3 seeds: 2 h on 2 cores

Every setting is trained with seeds 10 to 12, which no other figure uses. Two rules, written down and
committed before the runs they judge:

- **Settings of the network** (all but the start of VOS): the default stays unless validation
  accuracy is higher in the mean by more than two standard errors of the seeds' differences.
- **Start of VOS**, 0.4, the paper's, among them: the rule of `knownot.training.altered_rule`.

The start was judged before by fresh virtual outliers instead of altered photos. Energy does not
separate those at all, with VOS or without, so they could not tell starts apart; they are still
measured. Altered photos are how Hendrycks et al. ("Deep Anomaly Detection with Outlier Exposure",
ICLR 2019) choose settings without OOD data, and all seven of their alterations are taken.

"without VOS" is no candidate, there to compare with (added when the start had been chosen).

Prints the table and the choices; writes `settings_all.json`. A run already there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from scipy.stats import sem

import knownot
from cats_dogs import default_data, machine, spread, with_earlier_runs
from knownot.cli.allocator import keep_freed_memory
from knownot.core.energy import energy
from knownot.core.metrics import auroc, fpr95
from knownot.data.altered import ALTERATIONS, alter
from knownot.data.image_folder import read_labelled
from knownot.models.classifier import CPU_BATCH, UnknownAwareClassifier
from knownot.training.altered_rule import choose
from knownot.training.config import make_config
from knownot.training.train import train

PAPER = "VOS from 40 %"
DEFAULT = "VOS from 20 %"
STARTS: dict[str, dict[str, Any]] = {
    "VOS from 0 %": {"vos_start": 0.0},
    "VOS from 10 %": {"vos_start": 0.1},
    DEFAULT: {"vos_start": 0.2},
}
NETWORK: dict[str, dict[str, Any]] = {
    "standardised features": {"standardise": True},
    "backbone learning rate 1e-4": {"backbone_lr": 1e-4},
    "backbone learning rate 4e-4": {"backbone_lr": 4e-4},
    "weight decay 1e-2": {"weight_decay": 1e-2},
}
SETTINGS = {PAPER: {"vos_start": 0.4}, **STARTS, "without VOS": {"vos_start": 1.0}, **NETWORK}
OUTLIERS = 10_000
VAL_PHOTOS = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    keep_freed_memory()
    options.output.mkdir(parents=True, exist_ok=True)
    results_file = options.output / "settings_all.json"
    results = with_earlier_runs(results_file, {"machine": machine(), "runs": {}})
    for setting in options.settings:
        for seed in options.seeds:
            name = f"{setting}, seed {seed}"
            if name not in results["runs"]:
                measured = run(options.data / "cats_dogs", SETTINGS[setting], seed)
                results["runs"][name] = {"setting": setting, "seed": seed, **measured}
                results_file.write_text(json.dumps(results, indent=1) + "\n")
            print(name, results["runs"][name], flush=True)
    report(list(results["runs"].values()))


def run(data: Path, changes: dict[str, Any], seed: int) -> dict[str, float]:
    """Train with changed settings; separate validation photos from virtual outliers."""
    with tempfile.TemporaryDirectory() as scratch:
        config = make_config(
            {
                "data": data,
                "output": Path(scratch, "model"),
                "finetune": "all",
                "image_size": 160,
                "epochs": 4,
                "seed": seed,
                **changes,
            }
        )
        trained = train(config)
        model = knownot.load(trained.folder)
    return {"val_accuracy": trained.metrics["val_accuracy"], **separation(model, data / "val")}


@torch.no_grad()
def separation(model: UnknownAwareClassifier, val: Path) -> dict[str, Any]:
    """How well energy tells validation photos from altered ones and from fresh virtual outliers."""
    paths = read_labelled(val, model.classes).paths
    photos = torch.stack([model.preprocessing.read(path) for path in paths])

    def energies(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([energy(model(batch).logits) for batch in images.split(CPU_BATCH)])

    known = energies(photos)
    torch.manual_seed(0)
    draws = OUTLIERS // len(model.vos.sample_outliers())
    outliers = energy(model.head(torch.cat([model.vos.sample_outliers() for _ in range(draws)])))
    altered = {name: fpr95(known, energies(alter(name, photos, seed=0))) for name in ALTERATIONS}
    return {
        "virtual": fpr95(known, outliers),
        "virtual_auroc": auroc(known, outliers),
        "altered": mean(altered.values()),
        "altered_each": altered,
    }


def report(runs: list[dict[str, Any]]) -> None:
    """Markdown table of mean ± std over seeds, %, and what the rules choose."""
    measured: dict[str, dict[str, list[float]]] = {}
    for setting in dict.fromkeys(r["setting"] for r in runs):
        of_setting = sorted((r for r in runs if r["setting"] == setting), key=lambda r: r["seed"])
        columns = ("val_accuracy", "altered", "virtual", "virtual_auroc")
        measured[setting] = {c: [r[c] for r in of_setting] for c in columns}
    print("\n| | validation accuracy | FPR95, altered photos | virtual outliers | their AUROC |")
    print("|---|---|---|---|---|")
    for setting, columns_of in measured.items():
        shown = (spread([100 * share for share in column]) for column in columns_of.values())
        print(f"| {setting} | {' | '.join(shown)} |")
    if set(measured) >= {PAPER, *STARTS}:
        starts = {name: measured[name] for name in (PAPER, *STARTS)}
        print(f"\nstart: {choose(starts, PAPER, VAL_PHOTOS, VAL_PHOTOS)}")
    if set(measured) >= {DEFAULT, *NETWORK}:
        print(f"network: {better_networks(measured) or DEFAULT}")


def better_networks(measured: dict[str, dict[str, list[float]]]) -> list[str]:
    """The settings that the first rule above takes instead of the default."""
    gains = {name: _differences(measured, name, DEFAULT, "val_accuracy") for name in NETWORK}
    return [name for name, gain in gains.items() if mean(gain) > 2 * sem(gain)]


def _differences(
    measured: dict[str, dict[str, list[float]]], a: str, b: str, column: str
) -> list[float]:
    return [x - y for x, y in zip(measured[a][column], measured[b][column], strict=True)]


if __name__ == "__main__":
    main()
