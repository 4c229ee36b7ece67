"""When should VOS start, end to end: after 40 % of the steps, as in the paper, or after a tenth?

    python benchmarks/vos_start.py     # 2 starts, 3 seeds: 18 min to 1 h on 2 cores

Prints validation accuracy over seeds, which may choose the default, and what the choice does to
test photos and OOD sets, which may not. Writes `vos_start.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from cats_dogs import default_data, machine, mean_fpr, measure, spread
from knownot.cli.allocator import keep_freed_memory
from knownot.training.config import make_config
from knownot.training.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--starts", type=float, nargs="+", default=[0.1, 0.4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    keep_freed_memory()
    results: dict[str, Any] = {"machine": machine(), "runs": []}
    options.output.mkdir(parents=True, exist_ok=True)
    for start in options.starts:
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as scratch:
                config = make_config(
                    {
                        "data": options.data / "cats_dogs",
                        "output": Path(scratch, "model"),
                        "finetune": "all",
                        "image_size": 160,
                        "epochs": 4,
                        "vos_start": start,
                        "seed": seed,
                    }
                )
                trained = train(config)
                run = measure(trained.folder, options.data, None)
                results["runs"].append(
                    {
                        "start": start,
                        "seed": seed,
                        "val_accuracy": trained.metrics["val_accuracy"],
                        "test_accuracy": run["accuracy"],
                        "energy_fpr95": mean_fpr(run, "energy") / 100,
                        "combined_fpr95": mean_fpr(run, "combined") / 100,
                    }
                )
            (options.output / "vos_start.json").write_text(json.dumps(results, indent=1) + "\n")
            print(json.dumps(results["runs"][-1]), flush=True)
    print_table(results)


def print_table(results: dict[str, Any]) -> None:
    """Mean ± std over seeds of every start, %, in Markdown."""
    columns = ("val_accuracy", "test_accuracy", "energy_fpr95", "combined_fpr95")
    print("\n| start | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for start in dict.fromkeys(run["start"] for run in results["runs"]):
        runs = [run for run in results["runs"] if run["start"] == start]
        cells = [spread(100 * run[column] for run in runs) for column in columns]
        print(f"| {start} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
