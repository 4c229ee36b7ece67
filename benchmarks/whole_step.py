"""Time of a whole training step of WRN-40-2 on CIFAR-10: without VOS, with ours, with pytorch-ood's.

    python -m benchmarks whole_step                        # about 5 min on 2 idle cores
    python -m benchmarks whole_step --device cuda --rounds 8 --steps 20 --images 6400
    python -m benchmarks whole_step --device cuda --rounds 8 --steps 20 --images 6400 --graphs

Every variant has its own copy of one network and takes the same batches of 128 photos in turns, in one
run: crops and mirrors, forward, backward and the optimiser, by the loop that `knownot benchmark` trains
with; with `--graphs` as CUDA graphs, as that does on a GPU. Channels last in all; mixed precision in all
where `--precision` says so, as on a GPU. Windows and queues are full before the clock starts.

A step with VOS over one without is reported twice: of the whole steps, round by round, and by parts:
one more than the seconds of the loss alone, forward and backward on the step's own features, over those
of the plain step. The second can tell a thousandth where other programs shake the first by hundredths.
Prints a Markdown table and writes `<output>/whole_step_<device>.json`. Needs the extra `baselines`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from knownot.benchmark.config import SmallImageTraining
from knownot.benchmark.image_sets import known_images
from knownot.benchmark.peer_loss import PytorchOodVos
from knownot.benchmark.small_image_run import SmallImageRun, wide_resnet
from knownot.cli.allocator import keep_freed_memory
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.model_folder import choose_device
from knownot.models.preprocessing import Preprocessing
from knownot.models.unknown_aware import VosSettings

PLAIN, OURS, COMPILED, PEER = "without VOS", "knownot", "knownot, compiled", "pytorch-ood"


class NoLoss(nn.Module):
    """Training without VOS."""

    def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Zero."""
        return logits.new_zeros(())


class Variant:
    """A network of its own, with one of the losses, in the benchmark's training loop."""

    def __init__(self, name: str, network: nn.Module, data: Data) -> None:
        self.name, self.data = name, data
        width = 64 * data.settings.width
        model = UnknownAwareClassifier(
            copy.deepcopy(network),
            width,
            data.classes,
            Preprocessing(image_size=data.settings.image_size, crop=1.0),
            bottleneck=None,
            vos=VosSettings(queue_size=data.queue),
        )
        model = model.to(data.device).to(memory_format=torch.channels_last)
        losses: dict[str, Callable[[], nn.Module]] = {
            PLAIN: NoLoss,
            OURS: lambda: model.vos,
            COMPILED: lambda: model.vos,
            PEER: lambda: PytorchOodVos(model),
        }
        self.loss = losses[name]().to(data.device)
        settings = data.settings
        self.run = SmallImageRun(
            model,
            self.loss,
            settings,
            data.pixels,
            data.labels,
            seed=0,
            cuda_graphs=data.graphs and name != PEER,
        )

    def fill(self) -> None:
        """Full windows: the time of a step does not depend on what is in them."""
        classes = len(self.data.classes)
        labels = torch.arange(classes).repeat_interleave(self.data.queue).to(self.data.device)
        features = torch.randn(len(labels), 64 * self.data.settings.width).to(self.data.device)
        self.run.model.train()
        with torch.no_grad():
            self.loss(features, self.run.model.head(features), labels)
        if self.name == COMPILED:
            self.run.model.vos.compile()

    def step(self, number: int) -> float:
        """Seconds of a whole step; the same batches for all variants."""
        steps = self.data.steps
        return self.data.seconds(lambda: self.run.train_epoch(number, steps)) / steps

    def loss_alone(self) -> float:
        """Seconds of the loss, forward and backward, on features of a batch."""
        batch = slice(self.data.settings.batch_size)
        with torch.no_grad():
            features = self.run.model.backbone_features(self.data.pixels[batch])
        features = features.float().requires_grad_()
        labels = self.data.labels[batch]
        # Cut off: the gradient of the logits goes through the head in the plain step as well.
        logits = self.run.model.head(features).detach().requires_grad_()

        def forward_and_backward() -> None:
            for _ in range(self.data.steps):
                self.loss(features, logits, labels).backward()

        return self.data.seconds(forward_and_backward) / self.data.steps


class Data:
    """Photos of CIFAR-10 in memory, on the device, and how it is trained on them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = choose_device(options.device)
        half = "bf16-mixed" if self.device.type == "cuda" else "32-true"
        self.settings = SmallImageTraining(
            epochs=10_000,
            batch_size=options.batch,
            vos_start=0.0,
            precision=options.precision or half,
        )
        self.queue: int = options.queue
        self.steps: int = options.steps
        self.graphs: bool = options.graphs
        known = known_images("cifar10", options.data, "train")
        self.classes = known.classes
        places = range(0, len(known.images), max(1, len(known.images) // options.images))
        self.pixels = torch.stack([pil_to_tensor(known.images[i]) for i in places]).to(self.device)
        self.labels = known.labels[list(places)].to(self.device)

    def seconds(self, work: Callable[[], None]) -> float:
        """Wall-clock seconds until the device has done it."""
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    options = _options()
    keep_freed_memory()
    torch.manual_seed(0)
    data = Data(options)
    settings = data.settings
    network = wide_resnet(settings.depth, settings.width, settings.dropout)
    names = [name for name in (PLAIN, OURS, COMPILED, PEER) if name not in options.without]
    variants = {name: Variant(name, network, data) for name in names}
    for variant in variants.values():
        variant.fill()
        for warm_up in range(options.warm_up):
            variant.step(warm_up)
    whole: dict[str, list[float]] = {name: [] for name in names}
    alone: dict[str, list[float]] = {name: [] for name in names if name != PLAIN}
    for turn in range(options.rounds):
        for name, variant in variants.items():
            whole[name].append(variant.step(options.warm_up + turn))
        for name, times in alone.items():
            times.append(variants[name].loss_alone())
    result = summary(whole, alone) | {
        "settings": {
            **{name: getattr(options, name) for name in ("batch", "queue", "steps", "graphs")},
            **settings.model_dump(),
        },
        "machine": machine(data.device),
        "rounds": options.rounds,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    graphs = "_graphs" if options.graphs else ""
    file = options.output / f"whole_step_{data.device.type}{graphs}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['machine']}, {settings.precision}, {options.rounds} rounds\n")
    print("| | step, ms | over the step without VOS | the loss alone, ms | ratio by parts |")
    print("|---|---|---|---|---|")
    for name, row in result["variants"].items():
        line = f"| {name} | {1000 * row['median_s']:.1f} |"
        if name != PLAIN:
            low, middle, high = row["ratio_quartiles"]
            line += f" {middle:.3f} ({low:.3f} to {high:.3f}) | {1000 * row['loss_s']:.2f} "
            line += f"| {row['ratio_by_parts']:.4f} |"
        else:
            line += " 1 | | 1 |"
        print(line)


def summary(whole: dict[str, list[float]], alone: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the ratios to the plain step of the same round."""
    plain = whole[PLAIN]
    rows: dict[str, Any] = {}
    for name, times in whole.items():
        rows[name] = {"median_s": median(times), "quartiles_s": quantiles(times)}
        if name != PLAIN:
            ratios = [with_vos / without for with_vos, without in zip(times, plain, strict=True)]
            rows[name]["ratio_quartiles"] = quantiles(ratios)
            rows[name]["loss_s"] = median(alone[name])
            rows[name]["ratio_by_parts"] = 1 + median(alone[name]) / median(plain)
    return {"variants": rows}


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        **{name: version(name) for name in ("knownot", "torch", PEER)},
    }


def default_data() -> Path:
    """Where the photos are: `KNOWNOT_DATA`, or beside the checkout."""
    return Path(os.environ.get("KNOWNOT_DATA", Path(__file__).parents[2] / "shared" / "data"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=default_data(), help="has cifar10.tar.gz")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    parser.add_argument(
        "--precision", choices=["32-true", "bf16-mixed"], help="bf16-mixed on a GPU, else 32-true"
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--queue", type=int, default=1000, help="window of a class")
    parser.add_argument("--images", type=int, default=2000, help="photos to draw batches from")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each variant")
    parser.add_argument("--steps", type=int, default=1, help="steps of a turn; many on a GPU")
    parser.add_argument("--graphs", action="store_true", help="steps as CUDA graphs")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before the clock starts")
    parser.add_argument(
        "--without", nargs="*", default=[], choices=[OURS, COMPILED, PEER], help="leave out"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: quartiles need at least 2")
    if options.graphs and options.device == "cpu":
        parser.error("--graphs: CUDA graphs need --device cuda")
    if options.steps > max(1, options.images // options.batch):
        parser.error("--steps: more than the batches of --images")
    return options


if __name__ == "__main__":
    main()
