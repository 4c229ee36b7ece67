"""Exports of one classifier in several precisions: size, speed, and answers for photos not trained on.

    for p in float32 float16 int8; do knownot export model/ -o $p.onnx --precision $p; done
    python benchmarks/precision.py float32.onnx float16.onnx int8.onnx    # a minute on 2 idle cores

The first file is what the others are compared with. Photos per second are those of `predict` on files, in
rounds in which the files take turns, so that a busy machine slows all: the ratio is the figure to read.
The sets of unknown photos are reported and choose nothing.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from statistics import median
from typing import Any

import torch

from export import default_data, ratios, rounds, spread
from knownot.cli.allocator import keep_freed_memory
from knownot.core.metrics import fpr95
from knownot.data.image_folder import list_photos
from knownot.runtime import open_onnx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="exported files, the first in float32")
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--photos", type=int, default=1000, help="photos of each set, at most")
    parser.add_argument("--timed", type=int, default=64, help="photos in a timed round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--unknown", nargs="*", default=["near_animals", "textures"])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    keep_freed_memory()
    sets = {"known": options.data / "cats_dogs" / "test"}
    sets |= {name: options.data / "ood" / name for name in options.unknown}
    photos = {name: spread(list_photos(path), options.photos) for name, path in sets.items()}
    files = {file.name: file for file in options.files}
    models = {name: open_onnx(file, threads=options.threads) for name, file in files.items()}
    seconds = rounds(models, spread(photos["known"], options.timed), options.rounds)
    answers = {
        file: {name: model.predict(paths) for name, paths in photos.items()}
        for file, model in models.items()
    }
    first = options.files[0].name
    rows = {
        file: {
            "precision": model.metadata.precision,
            "mebibytes": files[file].stat().st_size / 2**20,
            "photos_per_second": options.timed / median(seconds[file]),
            "ratio_quartiles": ratios(seconds[first], seconds[file]),
            **agreement(answers[first]["known"], answers[file]["known"]),
            "fpr95": {name: fpr(answers[file], name) for name in options.unknown},
            "gate": model.metadata.parity,
        }
        for file, model in models.items()
    }
    options.output.mkdir(parents=True, exist_ok=True)
    counts = {name: len(paths) for name, paths in photos.items()}
    result = {"threads": options.threads, "photos": counts, "files": rows}
    (options.output / "precision.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{options.threads} threads, photos: {counts}\n")
    print("| | MiB | photos/s | ratio | same label | same class | unknown | FPR95 |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows.values():
        low, middle, high = row["ratio_quartiles"]
        rates = ", ".join(f"{100 * value:.1f}" for value in row["fpr95"].values())
        print(
            f"| {row['precision']} | {row['mebibytes']:.1f} | {row['photos_per_second']:.0f} "
            f"| {middle:.2f} ({low:.2f} to {high:.2f}) | {100 * row['same_label']:.1f} % "
            f"| {100 * row['same_class']:.1f} % | {100 * row['unknown']:.1f} % | {rates} |"
        )


def agreement(expected: list[Any], found: list[Any]) -> dict[str, float]:
    """Shares of photos with the same label, with the same nearest class, and called unknown."""
    pairs = list(zip(expected, found, strict=True))
    counts = {
        "same_label": sum(a.label == b.label for a, b in pairs),
        "same_class": sum(a.nearest_class == b.nearest_class for a, b in pairs),
        "unknown": sum(b.is_unknown for b in found),
    }
    return {name: count / len(pairs) for name, count in counts.items()}


def fpr(answers: dict[str, list[Any]], name: str) -> float:
    """Share of unknown photos accepted when 95 % of known ones are."""
    known, unknown = (
        torch.tensor([answer.ood_score for answer in answers[of]]) for of in ("known", name)
    )
    return fpr95(known, unknown)


if __name__ == "__main__":
    main()
