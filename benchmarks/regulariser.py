"""Time of one VOS step, forward and backward: knownot beside pytorch-ood, alternating in one run.

    python benchmarks/regulariser.py                 # K = 10, D = 128, Q = 1000, n = 10 000, B = 128
    python benchmarks/regulariser.py --classes 20 --dim 256 --repeats 5

Both get the same features, logits and labels and add cross-entropy; windows and queues are full
before the clock starts. Ours is timed as it is and after `vos.compile()`. Prints a Markdown table and
writes `<output>/regulariser.json`.
Needs the extra `baselines`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles

import torch
import torch.nn.functional as F
from pytorch_ood.loss import VirtualOutlierSynthesizingRegLoss
from torch import Tensor, nn

from knownot import VirtualOutlierLoss

PEER = "pytorch-ood"
# Steps of ours for each step of the peer: it is hundreds of times faster.
OURS_PER_ROUND = 20
WARM_UP = 5


class Workload:
    """The inputs both see: a batch of features that need a gradient, drawn around class means."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.options = options
        self.means = 3 * torch.randn(options.classes, options.dim)
        self.head = nn.Linear(options.dim, options.classes)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(self.options.classes, (size,))
        features = self.means[labels] + torch.randn(size, self.options.dim)
        return features.requires_grad_(), labels

    def fill(self, step: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Feed every class until its window is full, and check that the loss has started."""
        labels = torch.arange(self.options.classes).repeat_interleave(self.options.queue)
        features = self.means[labels] + torch.randn(len(labels), self.options.dim)
        with torch.no_grad():
            step(features, labels)
        features, labels = self.batch(self.options.batch)
        self.head.zero_grad()
        started = step(features, labels)
        assert started > F.cross_entropy(self.head(features), labels), "outliers take no part"


def ours(work: Workload, compiled: bool) -> Callable[[Tensor, Tensor], Tensor]:
    options = work.options
    vos = VirtualOutlierLoss(
        work.head,
        options.classes,
        options.dim,
        queue_size=options.queue,
        draws_per_class=options.draws,
        gaussians=options.gaussians,
    )
    if compiled:
        vos.compile()

    def step(features: Tensor, labels: Tensor) -> Tensor:
        logits = work.head(features)
        return F.cross_entropy(logits, labels) + vos(features, logits, labels)

    return step


def theirs(work: Workload) -> Callable[[Tensor, Tensor], Tensor]:
    options = work.options
    energy = nn.Linear(options.classes, 1)
    nn.init.uniform_(energy.weight)
    criterion = VirtualOutlierSynthesizingRegLoss(
        logistic_regression=nn.Linear(1, 2),
        weights_energy=energy,
        fc=work.head,
        sample_number=options.queue,
        sample_from=options.draws,
    )
    return lambda features, labels: criterion(work.head(features), features, labels)


def main() -> None:
    options = _options()
    work = Workload(options)
    steps = {
        "knownot": ours(work, compiled=False),
        "knownot, compiled": ours(work, compiled=True),
        PEER: theirs(work),
    }
    for name, step in steps.items():
        work.fill(step)
        for _ in range(0 if name == PEER else WARM_UP):
            timed(step, work)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.repeats):
        for name, step in steps.items():
            for _ in range(1 if name == PEER else OURS_PER_ROUND):
                seconds[name].append(timed(step, work))
    result = {
        "settings": {key: v for key, v in vars(options).items() if key != "output"},
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            **{name: version(name) for name in ("knownot", "torch", PEER)},
        },
        "median_s": {name: median(times) for name, times in seconds.items()},
        "quartiles_s": {name: quantiles(times) for name, times in seconds.items()},
        "steps": {name: len(times) for name, times in seconds.items()},
    }
    result["times_as_fast"] = {
        name: result["median_s"][PEER] / seconds for name, seconds in result["median_s"].items()
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "regulariser.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['settings']}, {result['machine']}\n")
    print("| | median, ms | quartiles, ms | steps | times as fast |\n|---|---|---|---|---|")
    for name in steps:
        low, _, high = (1000 * value for value in result["quartiles_s"][name])
        print(
            f"| {name} | {1000 * result['median_s'][name]:.2f} | {low:.2f} to {high:.2f} "
            f"| {result['steps'][name]} | {result['times_as_fast'][name]:.0f} |"
        )


def timed(step: Callable[[Tensor, Tensor], Tensor], work: Workload) -> float:
    """Seconds of one step, forward and backward, on a new batch."""
    features, labels = work.batch(work.options.batch)
    started = time.perf_counter()
    step(features, labels).backward()
    return time.perf_counter() - started


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=10, help="K")
    parser.add_argument("--dim", type=int, default=128, help="D")
    parser.add_argument("--queue", type=int, default=1000, help="Q")
    parser.add_argument("--draws", type=int, default=10_000, help="n")
    parser.add_argument("--batch", type=int, default=128, help="B")
    parser.add_argument("--gaussians", choices=["window", "streaming"], default="window")
    parser.add_argument("--repeats", type=int, default=15, help="steps of pytorch-ood")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if options.repeats < 2:
        parser.error("--repeats: quartiles need at least 2")
    return options


if __name__ == "__main__":
    main()
