"""Photos a second and memory of `knownot score`, with more workers and with more photos.

    python -m benchmarks score                     # about 20 min on 2 idle cores
    python -m benchmarks score --photos 1000 10000 --rounds 3

Every photo of the set is a link to one of cats and dogs. Each number of photos below the largest is scored
with each number of workers, in turns, `--rounds` times; the largest once, with most workers. The model is
EfficientNet-Lite0 at 64 pixels, on a frozen backbone, unless `--model` names another one. `predict` is
`OnnxClassifier` on one core in this process, on the smallest number of photos. Memory is sampled every
three seconds, proportional set sizes, so that pages that processes share count once. Prints a Markdown
table and writes `<output>/score.json`. Needs the extras `export` and `ray`, and psutil.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from cats_dogs import default_data, machine
from knownot.export.export import export_model
from knownot.models.model_folder import load
from knownot.runtime import OnnxClassifier
from knownot.scale.sources import list_photos
from knownot.training.config import make_config
from knownot.training.train import train

SECONDS_BETWEEN_SAMPLES = 3.0
MEMORY = ("command", "command at the end", "worker", "all")


def main() -> None:
    options = _options()
    result: dict[str, Any] = {"machine": machine() | {"ray": version("ray")}, "jobs": []}
    print(f"{result['machine']}\n")
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or exported(options.data, Path(scratch))
        photos = list_photos(str(options.data / "cats_dogs"))
        sizes = sorted(options.photos)
        folders = {size: linked(photos, size, Path(scratch, str(size))) for size in sizes}
        result["predict, photos/s"] = predict_rate(model, list_photos(str(folders[sizes[0]])))
        print(f"`predict`, one core: {result['predict, photos/s']:.0f} photos/s\n")
        print(f"| photos | workers | s | photos/s | {' | '.join(f'{m}, MB' for m in MEMORY)} |")
        print("|---" * 8 + "|")
        for size in sizes:
            largest = size == sizes[-1] and len(sizes) > 1
            for _ in range(1 if largest else options.rounds):
                for workers in options.workers[-1:] if largest else options.workers:
                    output = Path(scratch, "scores.parquet")
                    result["jobs"].append(job(model, folders[size], output, workers))
                    keep(result, options.output)
        for size in sizes:
            for workers in options.workers:
                row([j for j in result["jobs"] if (j["photos"], j["workers"]) == (size, workers)])


def keep(result: dict[str, Any], folder: Path) -> None:
    """Write what is measured so far."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "score.json").write_text(json.dumps(result, indent=1) + "\n")


def exported(data: Path, scratch: Path) -> Path:
    """The ONNX file of a classifier of cats and dogs at 64 pixels."""
    settings = {"data": data / "cats_dogs", "output": scratch / "model", "device": "cpu"}
    train(make_config(settings | {"image_size": 64}))
    export_model(load(scratch / "model"), scratch / "model.onnx")
    return scratch / "model.onnx"


def linked(photos: list[str], number: int, folder: Path) -> Path:
    """A folder of that many photos, a thousand to a folder below."""
    for i in range(number):
        below = folder / f"{i // 1000:04}"
        if i % 1000 == 0:
            below.mkdir(parents=True)
        (below / f"{i:07}.jpg").symlink_to(Path(photos[i % len(photos)]).absolute())
    return folder


def predict_rate(model: Path, photos: list[str]) -> float:
    """Photos a second in this process, on one core but for decoding."""
    loaded = OnnxClassifier(model, threads=1)
    start = time.perf_counter()
    list(loaded.predict_iter(photos))
    return len(photos) / (time.perf_counter() - start)


def job(model: Path, folder: Path, output: Path, workers: int) -> dict[str, Any]:
    """One run of the command: its summary, and the most memory of its processes in MB."""
    command = [sys.executable, "-m", "knownot", "score", str(model), f"{folder}/**/*.jpg"]
    command += ["-o", str(output), "--workers", str(workers), "--json"]
    samples: list[dict[str, float]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        while True:
            try:
                out, _ = running.communicate(timeout=SECONDS_BETWEEN_SAMPLES)
                break
            except subprocess.TimeoutExpired:
                samples.append(memory(running.pid))
    if running.returncode:
        sys.exit(f"{' '.join(command)}: exit code {running.returncode}")
    output.unlink()
    summary = {name: value for name, value in json.loads(out).items() if name != "output"}
    rate = summary["photos"] / summary["seconds"]
    sizes = {name: max(sample[name] for sample in samples) for name in samples[0]}
    # The command needs most when it loads the model, once; the list of photos stays to the end.
    sizes["command at the end"] = samples[-1]["command"]
    return summary | {"workers": workers, "photos/s": rate, "MB": sizes}


def memory(pid: int) -> dict[str, float]:
    """MB of the command, of its largest worker, and of all its processes."""
    sizes: dict[str, list[float]] = {"command": [0], "worker": [0], "all": []}
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        try:
            size = process.memory_full_info().pss / 1e6
            name = "command" if process.pid == pid else "".join(process.cmdline())
        except psutil.Error:  # it ended
            continue
        sizes["all"].append(size)
        if name == "command" or "MapWorker" in name:
            sizes["command" if name == "command" else "worker"].append(size)
    return {
        "command": max(sizes["command"]),
        "worker": max(sizes["worker"]),
        "all": sum(sizes["all"]),
    }


def row(jobs: list[dict[str, Any]]) -> None:
    """A row of the table: medians over the rounds, and the most memory of any."""
    if jobs:
        middle = {name: median(j[name] for j in jobs) for name in ("seconds", "photos/s")}
        most = [max(j["MB"][name] for j in jobs) for name in MEMORY]
        print(
            f"| {jobs[0]['photos']:,} | {jobs[0]['workers']} | {middle['seconds']:.0f} "
            f"| {middle['photos/s']:.0f} | " + " | ".join(f"{size:.0f}" for size in most) + " |"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--model", type=Path, help="exported file, instead of training one")
    parser.add_argument("--photos", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
