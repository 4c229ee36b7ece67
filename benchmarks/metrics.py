"""Time and memory of the metrics over ten million scores, beside scikit-learn's.

    python benchmarks/metrics.py
    python benchmarks/metrics.py --scores 1000000

Half of the scores are in-distribution. Both get the same arrays in one run, and must agree. Prints a
Markdown table and writes `<output>/metrics.json`.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score
from torch import Tensor

from cats_dogs import machine
from knownot.core import metrics

OURS = ("fpr95", "fpr95_ood_positive", "auroc", "aupr_in", "aupr_out")


def theirs(name: str, known: Tensor, unknown: Tensor) -> float | None:
    """What scikit-learn makes of it; it has no FPR at a TPR."""
    is_ood = np.arange(len(known) + len(unknown)) >= len(known)
    scores = torch.cat([known, unknown]).numpy()
    if name == "auroc":
        return float(roc_auc_score(is_ood, scores))
    if name.startswith("aupr"):
        positive, sign = (is_ood, 1) if name == "aupr_out" else (~is_ood, -1)
        precision, recall, _ = precision_recall_curve(positive, sign * scores)
        return float(auc(recall, precision))
    return None


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", type=int, default=10_000_000)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.manual_seed(0)
    known = torch.randn(options.scores // 2)
    unknown = torch.randn(options.scores - len(known)) + 1
    before = peak_gb()
    rows = {}
    for name in OURS:
        started = time.perf_counter()
        value = getattr(metrics, name)(known, unknown)
        rows[name] = {"value": value, "seconds": time.perf_counter() - started}
    total = sum(row["seconds"] for row in rows.values())
    memory = peak_gb() - before
    for name, row in rows.items():
        started = time.perf_counter()
        other = theirs(name, known, unknown)
        if other is not None:
            assert abs(other - row["value"]) < 1e-9, name
            row["scikit_learn_seconds"] = time.perf_counter() - started
    result = {"machine": machine(), "scores": options.scores, "rows": rows}
    result |= {"seconds": total, "gigabytes": memory}
    (options.output / "metrics.json").write_text(json.dumps(result, indent=1) + "\n")
    print("| | value | seconds | scikit-learn, seconds |\n|---|---|---|---|")
    for name, row in rows.items():
        peer = row.get("scikit_learn_seconds")
        shown = "–" if peer is None else f"{peer:.2f}"
        print(f"| {name} | {row['value']:.6f} | {row['seconds']:.2f} | {shown} |")
    print(f"\nall five: {total:.2f} s, {memory:.2f} GB beside the scores")


if __name__ == "__main__":
    main()
