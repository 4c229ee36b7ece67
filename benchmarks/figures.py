"""The figures of the paper from our own runs: decision surface, energies, features.

    python -m benchmarks figures        # 40 s of a core; the first time some minutes more for features

toy.png       three Gaussian classes in the plane, a small network without and with VOS
energy.png    histograms of -E of cats, dogs and everything else, without and with VOS
features.png  their penultimate features, with virtual outliers that the trained loss itself draws

Cats and dogs: frozen EfficientNet-Lite0, one seed, 1,000 test photos, the OOD sets without wild_cats.
Written to `docs/images`, with the numbers behind them in `<results>/figures.json`. Detections with
unknown boxes are drawn by `benchmarks/detection_picture.py`.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.decomposition import PCA
from torch import Tensor

import knownot
from cats_dogs import APART, METHODS, default_data, machine
from knownot.core.metrics import auroc, fpr95
from knownot.data.image_folder import list_photos, read_labelled
from knownot.demo.figures import draw_toy
from knownot.demo.toy import run_toy
from knownot.evaluation.figures import ID_COLOUR, OOD_COLOUR
from knownot.models.classifier import ClassifierOutput, UnknownAwareClassifier
from knownot.training.config import make_config
from knownot.training.feature_cache import default_cache, extract_features
from knownot.training.train import train

OUTLIER_COLOUR = "#000000"
DOG_COLOUR = "#56B4E9"
# Steps whose virtual outliers are drawn, and how many OOD photos.
DRAWS, POINTS = 10, 500


class Outputs(NamedTuple):
    """A trained model on ID test photos, their labels, and OOD photos."""

    model: UnknownAwareClassifier
    known: ClassifierOutput
    labels: Tensor
    ood: ClassifierOutput


def main() -> None:
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    toy = run_toy(options.seed)
    _write(options.output / "toy.png", draw_toy(toy))
    outputs = {name: _trained(name, options.data, options.seed) for name in METHODS}
    figure, energies = _energies(outputs)
    _write(options.output / "energy.png", _png(figure))
    figure, features = _features(outputs["VOS"], options.seed)
    _write(options.output / "features.png", _png(figure))
    numbers = {"seed": options.seed, "machine": machine(), "toy_sure_far_from_data": toy.far}
    numbers |= {"energy": energies, "features": features}
    results = options.results / "figures.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(numbers, indent=1) + "\n")
    print(json.dumps(numbers, indent=1))


def _trained(method: str, data: Path, seed: int) -> Outputs:
    with tempfile.TemporaryDirectory() as scratch:
        settings = {"data": data / "cats_dogs", "output": Path(scratch, "model"), "seed": seed}
        train(make_config(settings | METHODS[method]))
        model = knownot.load(Path(scratch, "model"))
    assert isinstance(model, UnknownAwareClassifier)
    known = read_labelled(data / "cats_dogs" / "test", model.classes)
    sets = [p for p in sorted((data / "ood").iterdir()) if p.is_dir() and p.name != APART]
    ood = [extract_features(model, list_photos(p), default_cache()).rows for p in sets]
    found = extract_features(model, known.paths, default_cache())
    labels = torch.tensor(known.labels)[found.indices]
    with torch.no_grad():
        return Outputs(model, model.classify(found.rows), labels, model.classify(torch.cat(ood)))


def _energies(outputs: dict[str, Outputs]) -> tuple[Figure, dict[str, Any]]:
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    numbers = {}
    for axes, (method, run) in zip(figure.subplots(1, 2), outputs.items(), strict=True):
        known, ood = (o.logits.logsumexp(1) for o in (run.known, run.ood))
        bins = np.linspace(*np.quantile(torch.cat([known, ood]), (0.001, 0.999)), 60).tolist()
        for values, colour, label in (
            (known, ID_COLOUR, "in-distribution: cats and dogs"),
            (ood, OOD_COLOUR, "out-of-distribution"),
        ):
            shares = np.full(len(values), 1 / len(values))
            shown = values.numpy().clip(bins[0], bins[-1])
            axes.hist(shown, bins, weights=shares, color=colour, alpha=0.6, label=label)
        numbers[method] = {
            "mean_known": float(known.mean()),
            "mean_ood": float(ood.mean()),
            "fpr95": fpr95(-known, -ood),
            "auroc": auroc(-known, -ood),
        }
        title = "without VOS" if method == "CE" else "with VOS"
        axes.set_title(f"{title}: FPR95 {100 * numbers[method]['fpr95']:.1f} %", fontsize=11)
        axes.set_xlabel("−E = log Σ exp f (larger: more in-distribution)")
        axes.set_ylabel("share of photos")
        axes.legend(fontsize=9)
    return figure, numbers


@torch.no_grad()
def _features(run: Outputs, seed: int) -> tuple[Figure, dict[str, Any]]:
    """Left the two first principal components of ID features, right how far from the classes."""
    random = torch.Generator().manual_seed(seed)
    outliers = torch.cat([run.model.vos.sample_outliers(random) for _ in range(DRAWS)])
    some = torch.randperm(len(run.ood.features), generator=random)[:POINTS]
    cat, dog = (run.known.features[run.labels == k] for k in range(2))
    groups = (
        (run.model.classes[0], cat, ID_COLOUR, "o"),
        (run.model.classes[1], dog, DOG_COLOUR, "o"),
        ("out-of-distribution", run.ood.features[some], OOD_COLOUR, "o"),
        ("virtual outliers", outliers, OUTLIER_COLOUR, "x"),
    )
    axis = PCA(2, random_state=seed).fit(run.known.features)
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    medians = {}
    for name, rows, colour, marker in groups:
        flat, radius = axis.transform(rows), _distance(run.model, rows)
        medians[name] = float(radius.median())
        style = {"s": 14 if marker == "x" else 6, "c": colour, "marker": marker, "alpha": 0.6}
        style["linewidths"] = 0.8 if marker == "x" else 0
        left.scatter(*flat.T, **style)
        right.scatter(flat[:, 0], radius, label=name, **style)
    share = axis.explained_variance_ratio_
    for axes in (left, right):
        axes.set_xlabel(f"first principal component ({100 * share[0]:.0f} % of the variance)")
    left.set_ylabel(f"second ({100 * share[1]:.0f} %)")
    right.set_ylabel("Mahalanobis distance to the nearest class")
    right.legend(fontsize=9, markerscale=2)
    return figure, {"variance_shown": share.tolist(), "median_distance": medians}


def _distance(model: UnknownAwareClassifier, rows: Tensor) -> Tensor:
    """Of penultimate features (N, D) to the nearest class Gaussian of the loss, (N,)."""
    gaussians = model.vos.gaussians
    whitened = [
        torch.linalg.solve_triangular(gaussians.cholesky(), x.double().T, upper=False).T
        for x in (rows, gaussians.means)
    ]
    return torch.cdist(*whitened).amin(1)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _write(path: Path, png: bytes) -> None:
    """A PNG of 256 colours, which is half as large."""
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"written: {path}, {path.stat().st_size / 1000:.0f} kB")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
