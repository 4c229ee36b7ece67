"""What one VOS step costs, forward and backward, against its limit, as K, D, Q, n and the batch grow.

    python -m benchmarks cost                       # table and curves, about 10 min on 2 idle cores
    python -m benchmarks cost --only table
    python -m benchmarks cost --only curves --no-peer

A step is the last layer, cross-entropy and the loss, as in `regulariser`; "added" is its median less that
of last layer and cross-entropy alone, alternating in one run. A new factor of the covariance is not due at
every step: the median is that of all steps, the mean counts the factor as often as it is due in the long
run. The floor is what cannot be left out, by the same library's routines in the same run: the
product of the rows that enter (and leave) in float64, the factor as often as it is due, the rows of the
outliers times the factor, and the last layer on the outliers, forward and backward.

Prints Markdown tables, writes `<output>/cost.json` and draws `<images>/cost.png`. The peer needs the extra
`baselines`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cats_dogs import machine
from knownot import VirtualOutlierLoss
from knownot.core.gaussians import ClassGaussians

KINDS = ("window", "streaming")
TABLE = ((10, 128), (100, 512), (20, 1024), (1000, 2048))
BASE = {"classes": 10, "dim": 128, "queue": 1000, "draws": 10_000, "batch": 128}
CURVES: dict[str, tuple[int, ...]] = {
    "classes": (2, 10, 30, 100, 300, 1000),
    "dim": (16, 64, 256, 1024, 2048),
    "queue": (100, 300, 1000, 3000),
    "draws": (1000, 10_000, 100_000, 10_000_000),
    "batch": (16, 64, 256, 1024),
}
LABELS = {
    "classes": "classes K",
    "dim": "width D",
    "queue": "window Q",
    "draws": "draws n",
    "batch": "batch",
}
# Windows above this are not built: the streaming moments are for them.
WINDOW_LIMIT = 2 * 2**30
# The peer's candidates alone, n x D numbers for each class in turn, and its time, K n D: as far as patience.
PEER_LIMIT = 10 * 10_000 * 300


class Case:
    """One setting: inputs, the loss, the steps to time."""

    def __init__(self, setting: dict[str, int]) -> None:
        torch.manual_seed(0)
        self.setting = setting
        self.head = nn.Linear(setting["dim"], setting["classes"])
        self.means = 3 * torch.randn(setting["classes"], setting["dim"])

    def rows(self, size: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(self.setting["classes"], (size,))
        return self.means[labels] + torch.randn(size, self.setting["dim"]), labels

    def loss(self, kind: str) -> VirtualOutlierLoss:
        """The loss with full windows, or with moments of so many rows that a factor is kept."""
        s = self.setting
        vos = VirtualOutlierLoss(
            self.head,
            s["classes"],
            s["dim"],
            queue_size=s["queue"],
            draws_per_class=s["draws"],
            gaussians=kind,
        )
        needed = s["classes"] * s["queue"]
        for start in range(0, needed if kind == "window" else min(needed, 32_768), 4096):
            labels = torch.arange(start, start + 4096) % s["classes"]
            vos.gaussians.update(self.means[labels] + torch.randn(4096, s["dim"]), labels)
        return vos

    def step(self, loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None) -> float:
        """Seconds of one step on a new batch."""
        features, labels = self.rows(self.setting["batch"])
        features.requires_grad_()
        started = time.perf_counter()
        logits = self.head(features)
        total = F.cross_entropy(logits, labels)
        if loss is not None:
            total = total + loss(features, logits, labels)
        total.backward()
        return time.perf_counter() - started

    def peer(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        from pytorch_ood.loss import VirtualOutlierSynthesizingRegLoss

        s = self.setting
        energy = nn.Linear(s["classes"], 1)
        nn.init.uniform_(energy.weight)
        criterion = VirtualOutlierSynthesizingRegLoss(
            logistic_regression=nn.Linear(1, 2),
            weights_energy=energy,
            fc=self.head,
            sample_number=s["queue"],
            sample_from=s["draws"],
        )
        labels = torch.arange(s["classes"]).repeat_interleave(s["queue"])
        features = self.means[labels] + torch.randn(len(labels), s["dim"])
        with torch.no_grad():
            criterion(self.head(features), features, labels)
        return lambda features, logits, labels: criterion(logits, features, labels)


def measure(setting: dict[str, int], kind: str, compiled: bool, rounds: int) -> dict[str, float]:
    """Times of one setting, in milliseconds, and the memory of its state, in megabytes."""
    case = Case(setting)
    vos = case.loss(kind)
    torch.compiler.reset()
    if compiled:
        vos.compile()
    period = steps_between_factors(vos.gaussians, setting["batch"])
    for _ in range(min(2 * period, 9)):  # both kinds of steps are compiled
        case.step(vos)
    with_factor, without, plain = [], [], []
    for _ in range(rounds):
        before = vos.gaussians.upper._version
        milliseconds = 1000 * case.step(vos)
        is_new = vos.gaussians.upper._version != before
        (with_factor if is_new else without).append(milliseconds)
        plain.append(1000 * case.step(None))
    often, seldom = median(without or with_factor), median(with_factor or without)
    # A few thousand rows ask for a factor more often than the rows of the long run.
    steps = with_factor + without if period <= 2 else without
    state = sum(b.numel() * b.element_size() for b in vos.buffers())
    return {
        "median_ms": median(steps),
        "quartiles_ms": quantiles(steps),
        "mean_ms": (often * (period - 1) + seldom) / period,
        "plain_ms": median(plain),
        "steps_between_factors": period,
        "state_mb": state / 1e6,
        "floor_ms": floor(setting, kind, period, vos.classes_per_step),
    }


def steps_between_factors(gaussians: ClassGaussians, batch: int) -> int:
    """Steps from one factor to the next once windows are full."""
    rows = gaussians.factor_lag * gaussians.num_classes * gaussians.queue_size
    return max(1, -(-int(rows) // batch))


def floor(setting: dict[str, int], kind: str, period: int, outliers: int) -> float:
    """Milliseconds of what no implementation of this design can leave out."""
    d, k, b = setting["dim"], setting["classes"], setting["batch"]
    rows = torch.randn(b, d, dtype=torch.float64)
    total = torch.eye(d, dtype=torch.float64) * (b + d)
    z, upper, weight = torch.randn(outliers, d), torch.randn(d, d), torch.randn(k, d)
    gradient = torch.randn(outliers, k)

    def product() -> None:
        for start in range(0, d, max(1, d // 4)) if d >= 512 else [0]:
            part = rows[:, start : start + d // 4] if d >= 512 else rows
            total[start : start + part.shape[1], start:].addmm_(part.T, rows[:, start:])

    def others() -> None:
        drawn = z @ upper
        drawn @ weight.T
        gradient.T @ drawn

    factor = timed(lambda: torch.linalg.cholesky_ex(total, upper=True))
    return timed(product) * (2 if kind == "window" else 1) + factor / period + timed(others)


def timed(function: Callable[[], Any], repeats: int = 9) -> float:
    """Median milliseconds."""
    function()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return 1000 * median(seconds)


def peer_ms(setting: dict[str, int], repeats: int) -> float | None:
    """Median of the peer's step; None where it would take minutes or does not fit."""
    if setting["classes"] * setting["draws"] * setting["dim"] > PEER_LIMIT:
        return None
    case = Case(setting)
    loss = case.peer()
    return 1000 * median(case.step(loss) for _ in range(repeats))


def window_bytes(setting: dict[str, int]) -> int:
    return 4 * setting["classes"] * setting["queue"] * setting["dim"]


def table(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    print(
        "| K, D | | step, ms | quartiles | mean | without VOS | added | floor | new factor every "
        "| state, MB | pytorch-ood, ms |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for classes, dim in TABLE:
        setting = BASE | {"classes": classes, "dim": dim}
        peer = None if options.no_peer else peer_ms(setting, 3)
        for kind in KINDS:
            if kind == "window" and window_bytes(setting) > WINDOW_LIMIT:
                print(f"| {classes}, {dim} | window | needs {window_bytes(setting) / 1e9:.1f} GB |")
                continue
            for compiled in (False, True):
                row = measure(setting, kind, compiled, options.rounds)
                name = kind + (", compiled" if compiled else "")
                rows.append({**setting, "kind": name, **row, "peer_ms": peer})
                low, _, high = row["quartiles_ms"]
                print(
                    f"| {classes}, {dim} | {name} | {row['median_ms']:.1f} | {low:.1f} to {high:.1f} "
                    f"| {row['mean_ms']:.1f} | {row['plain_ms']:.1f} "
                    f"| {row['median_ms'] - row['plain_ms']:.1f} | {row['floor_ms']:.1f} "
                    f"| {row['steps_between_factors']} | {row['state_mb']:.1f} "
                    f"| {'' if peer is None else f'{peer:.0f}'} |",
                    flush=True,
                )
    return rows


def curves(options: argparse.Namespace) -> list[dict[str, Any]]:
    points = []
    for name, values in CURVES.items():
        for value in values:
            setting = BASE | {name: value}
            for kind in KINDS:
                if kind == "streaming" or window_bytes(setting) <= WINDOW_LIMIT:
                    row = measure(setting, kind, False, max(8, options.rounds // 3))
                    points.append({"curve": name, **setting, "kind": kind, **row})
            peer = None if options.no_peer else peer_ms(setting, 1)
            if peer is not None:
                points.append({"curve": name, **setting, "kind": "pytorch-ood", "mean_ms": peer})
        print(f"curve of {LABELS[name]}: done", flush=True)
    return points


def draw(points: list[dict[str, Any]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(CURVES), sharey=True), CURVES, strict=True):
        for kind in (*KINDS, "pytorch-ood"):
            of = [p for p in points if p["curve"] == name and p["kind"] == kind]
            axes.plot([p[name] for p in of], [p["mean_ms"] for p in of], "o-", ms=3, label=kind)
        axes.set(xscale="log", yscale="log", xlabel=LABELS[name])
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("one step, ms")
    figure.axes[0].legend(fontsize=8)
    base = ", ".join(f"{LABELS[k].split()[-1]} = {v}" for k, v in BASE.items())
    figure.suptitle(f"One step with VOS; where not varied {base}", fontsize=10)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["table", "curves"])
    parser.add_argument("--rounds", type=int, default=40, help="steps of each variant")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    file = options.output / "cost.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    if options.only != "curves":
        result["table"] = table(options)
    if options.only != "table":
        result["curves"] = curves(options)
        draw(result["curves"], options.images / "cost.png")
    result["machine"] = machine()
    options.output.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
