"""What the loss would cost where these machines do not reach: a model, and how well it fits.

    python -m benchmarks plan

Reads `cost.json` and `score.json`, which `python -m benchmarks cost` and `score` write, and prints
Markdown tables:
fit         milliseconds of a step as a sum of counted operations, each with one constant, fitted to all
            measured points; its error at each point when that point is left out of the fit
models      operations, state and exchange of a step for ImageNet-1K and 21K, beside those of a ResNet-50
photos      seconds of a scoring job as those of its start and of each photo on a core, fitted; what
            follows for more photos and cores, with the price of the cores
Nothing here was run at that size: rows say from which counts they follow. Writes `<output>/plan.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

# Of ResNet-50 at 224 pixels: multiplications of one photo forward, and of a training step three times.
RESNET50_MACS, RESNET50_WEIGHTS = 4.1e9, 25.6e6
TURNS = 128  # `classes_per_step`
PLANNED = {"ImageNet-1K": (1000, 2048), "ImageNet-21K": (21_841, 2048)}
BATCH = 256
RANKS = (1, 8, 64)
JOBS = ((1_000_000, 16), (100_000_000, 64))  # photos, cores
TERMS = ("calls", "moments", "factor", "placing", "last layer")


def counts(classes: int, dim: int, batch: int, windows: bool, period: int) -> list[float]:
    """How often each part of a step is done: 1, and millions of multiplications."""
    outliers = min(classes, TURNS)
    millions = (
        batch * dim**2 / 2 * (2 if windows else 1),
        (dim**3 / 3 + 12 * dim**2) / period,
        outliers * dim**2,
        (batch + 2 * outliers) * dim * classes,
    )
    return [1.0, *(m / 1e6 for m in millions)]


def of_point(point: dict[str, Any]) -> list[float]:
    keys = ("classes", "dim", "batch")
    period = point["steps_between_factors"]
    return counts(*(point[k] for k in keys), point["kind"] == "window", period)


def fit(points: list[dict[str, Any]]) -> np.ndarray:
    """Milliseconds of each term's unit, at least 0: relative errors are least squares."""
    measured = np.array([p["mean_ms"] for p in points])
    rows = np.array([of_point(p) for p in points]) / measured[:, None]
    return nnls(rows, np.ones(len(points)))[0]


def left_out(points: list[dict[str, Any]]) -> np.ndarray:
    """Predicted over measured time of each point, by a fit without it."""
    ratios = []
    for i, point in enumerate(points):
        constants = fit(points[:i] + points[i + 1 :])
        ratios.append(float(np.dot(of_point(point), constants)) / point["mean_ms"])
    return np.array(ratios)


def state_bytes(classes: int, dim: int, queue: int = 0) -> int:
    """Sum of products (float64) and factor (float32), sums of classes (float64), window (float32)."""
    return 12 * dim**2 + 8 * classes * dim + 4 * classes * queue * dim


def plan_fit(points: list[dict[str, Any]]) -> dict[str, Any]:
    constants, ratios = fit(points), left_out(points)
    print("| part of a step | constant fitted |\n|---|---|")
    for name, value in zip(TERMS, constants, strict=True):
        print(f"| {name} | {value:.4f} {'ms' if name == 'calls' else 'ms a million'} |")
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    print(
        f"\n{len(points)} points, each predicted by a fit without it: predicted over measured time "
        f"{middle:.2f} (median), {low:.2f} to {high:.2f} (80 %), {ratios.min():.2f} to "
        f"{ratios.max():.2f} (all)\n"
    )
    ratio = [
        state_bytes(p["classes"], p["dim"], p["queue"] * (p["kind"] == "window"))
        / (1e6 * p["state_mb"])
        for p in points
        if p["state_mb"] > 10  # below, what is small counts: quantiles, counters
    ]
    print(f"state above 10 MB: predicted over measured {min(ratio):.3f} to {max(ratio):.3f}\n")
    return {
        "constants": dict(zip(TERMS, constants.tolist(), strict=True)),
        "ratios": ratios.tolist(),
    }


def plan_models(constants: np.ndarray) -> list[dict[str, Any]]:
    rows = []
    print(
        "| data, ranks | state, MB | with windows Q = 1000, GB | loss, 10^9 mult. a rank | of the "
        "network's, % | exchanged, MB a rank | of the gradients', % | loss on 2 CPU cores, ms |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name, (classes, dim) in PLANNED.items():
        for ranks in RANKS:
            joint = BATCH * ranks
            period = max(1, -(-int(0.02 * classes * 1000) // joint))
            parts = counts(classes, dim, joint, False, period)
            # The joint rows reach the moments of every rank; the last layer of the batch is the task's.
            parts[-1] = 2 * min(classes, TURNS) * dim * classes / 1e6
            network = 3 * BATCH * RESNET50_MACS
            exchanged = 4 * joint * (dim + 1) if ranks > 1 else 0
            row = {
                "data": name,
                "ranks": ranks,
                "state_mb": state_bytes(classes, dim) / 1e6,
                "window_gb": state_bytes(classes, dim, 1000) / 1e9,
                "gmacs": sum(parts[1:]) / 1e3,
                "of_network": 1e6 * sum(parts[1:]) / network,
                "exchanged_mb": exchanged / 1e6,
                "of_gradients": exchanged / (2 * 4 * RESNET50_WEIGHTS),
                "cpu_ms": float(np.dot(parts, constants)),
            }
            rows.append(row)
            print(
                f"| {name}, {ranks} | {row['state_mb']:.0f} | {row['window_gb']:.1f} "
                f"| {row['gmacs']:.1f} | {100 * row['of_network']:.2f} | {row['exchanged_mb']:.0f} "
                f"| {100 * row['of_gradients']:.0f} | {row['cpu_ms']:.0f} |"
            )
    return rows


def plan_photos(jobs: list[dict[str, Any]], price: float) -> dict[str, Any]:
    measured = np.array([job["seconds"] for job in jobs])
    rows = np.array([[1.0, job["photos"] / job["workers"]] for job in jobs])
    start, each = nnls(rows / measured[:, None], np.ones(len(jobs)))[0]
    ratios = rows @ [start, each] / measured
    print(
        f"\n{len(jobs)} jobs: {start:.0f} s to start, {1000 * each:.1f} ms a photo on a core; "
        f"predicted over measured seconds {ratios.min():.2f} to {ratios.max():.2f}\n"
    )
    print("| photos | cores | hours | photos an hour | price of the cores |\n|---|---|---|---|---|")
    planned = []
    for photos, cores in JOBS:
        hours = (start + each * photos / cores) / 3600
        row = {"photos": photos, "cores": cores, "hours": hours, "price": hours * cores * price}
        planned.append(row)
        print(
            f"| {photos:,} | {cores} | {hours:.2f} | {photos / hours:,.0f} | {row['price']:,.2f} |"
        )
    return {"start_s": start, "photo_s": each, "ratios": ratios.tolist(), "jobs": planned}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--price", type=float, default=0.04, help="of a core for an hour")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    file = options.output / "cost.json"
    if not file.is_file():
        parser.error(f"{file}: not found; run `python -m benchmarks cost` first")
    cost = json.loads(file.read_text())
    points = [p for p in cost["table"] + cost["curves"] if p["kind"] in ("window", "streaming")]
    fitted = plan_fit(points)
    result: dict[str, Any] = {
        "fit": fitted,
        "models": plan_models(np.array(list(fitted["constants"].values()))),
    }
    score = options.output / "score.json"
    if score.is_file():
        jobs = json.loads(score.read_text())["jobs"]
        result["photos"] = plan_photos(jobs, options.price)
    (options.output / "plan.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
