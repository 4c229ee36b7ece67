"""Run both parts of the demo, compare, draw, and write the numbers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from torch import Tensor

from knownot.data.kept_files import write_whole
from knownot.demo.digits import load_sets, measure_digits, train_digits
from knownot.demo.figures import draw_histograms, draw_toy
from knownot.demo.toy import run_toy
from knownot.errors import DataError

_SEEDS = 3
# What is compared: title, which training, which score.
ROWS = (
    ("cross-entropy, softmax (MSP)", "plain", "msp"),
    ("cross-entropy, energy", "plain", "energy"),
    ("VOS, energy", "vos", "vos"),
    ("cross-entropy, combined", "plain", "combined"),
    ("VOS, combined (default)", "vos", "combined"),
)
_WEIGHTS = {"plain": 0.0, "vos": 0.1}


def run_demo(
    output: str | Path, *, seed: int = 0, progress: Callable[[str], object] | None = None
) -> dict[str, Any]:
    """Train digits classifiers and the toy, with and without VOS, and save pictures and numbers.

    Args:
        output: Folder for `toy.png`, `histograms.png` and `demo.json`.
        seed: First of three seeds.
        progress: Told in a sentence what has been done.

    Returns:
        The contents of `demo.json`.

    Raises:
        DataError: If the folder cannot be written.
    """
    say = progress or (lambda text: None)
    started = time.monotonic()
    output = Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error.strerror})") from None
    seeds = list(range(seed, seed + _SEEDS))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in _WEIGHTS}
    shown: dict[str, dict[str, dict[str, Tensor]]] = {}
    for run_seed in seeds:
        sets = load_sets(run_seed)
        for name, weight in _WEIGHTS.items():
            numbers, scores = measure_digits(train_digits(sets, run_seed, weight), sets)
            runs[name].append(numbers)
            shown.setdefault(name, scores)
        say(f"digits, seed {run_seed}: trained without and with VOS")
    toy = run_toy(seed)
    say("toy: trained without and with VOS")
    results = {
        "seeds": seeds,
        "known": "digits 0 to 7",
        "accuracy": {name: _spread([r["accuracy"] for r in runs[name]]) for name in runs},
        "flagged_id": _spread([r["flagged_id"] for r in runs["vos"]]),
        "ood": {
            ood: {
                title: {
                    metric: _spread([r["ood"][ood][score][metric] for r in runs[training]])
                    for metric in ("fpr95", "auroc")
                }
                for title, training, score in ROWS
            }
            for ood in runs["vos"][0]["ood"]
        },
        "toy_confidence_far_from_data": toy.far,
        "runs": runs,
        "seconds": time.monotonic() - started,
    }
    contents = {
        "toy.png": draw_toy(toy),
        "histograms.png": draw_histograms(shown),
        "demo.json": (json.dumps(results, indent=2) + "\n").encode(),
    }
    for name, content in contents.items():
        write_whole(output / name, partial(_write, content))
    return results


def print_demo(results: dict[str, Any]) -> None:
    """Print the comparison as a table."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    accuracy = results["accuracy"]
    console.print(
        f"known: {results['known']}; accuracy {_percent(accuracy['plain'])} without VOS, "
        f"{_percent(accuracy['vos'])} with; known digits called unknown: "
        f"{_percent(results['flagged_id'])} (asked for 5 %); mean ± std of {len(results['seeds'])} "
        "seeds",
        soft_wrap=True,
    )
    table = Table(
        title="FPR95 (unknown images accepted when 95 % of known ones are) / AUROC",
        title_justify="left",
    )
    table.add_column("training, score")
    for name in results["ood"]:
        table.add_column(name, justify="right")
    for title, _, _ in ROWS:
        cells = [
            f"{_percent(row[title]['fpr95'])} / {100 * row[title]['auroc']['mean']:.1f}"
            for row in results["ood"].values()
        ]
        table.add_row(title, *cells)
    console.print(table)
    far = results["toy_confidence_far_from_data"]
    console.print(
        f"toy, far from all data: plain training is {far['plain']:.0%} sure, VOS {far['vos']:.0%}",
        soft_wrap=True,
    )


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": mean(values), "std": stdev(values)}


def _percent(spread: dict[str, float]) -> str:
    return f"{100 * spread['mean']:.1f} ± {100 * spread['std']:.1f} %"


def _write(content: bytes, file: Path) -> None:
    file.write_bytes(content)
