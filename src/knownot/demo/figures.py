"""The demo's two figures, as PNG bytes."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from knownot.demo.toy import EXTENT, Toy
from knownot.evaluation.figures import ID_COLOUR, OOD_COLOUR, as_png

_CLASS_COLOURS = np.array(["#0072B2", "#E69F00", "#CC79A7"])
_FAR_COLOUR = "#000000"


def draw_toy(toy: Toy) -> bytes:
    """Two maps side by side: how sure plain training is, and how sure VOS is."""
    figure = Figure(figsize=(9.6, 4.3), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    extent = (-EXTENT, EXTENT, -EXTENT, EXTENT)
    for axes, confidence, title in (
        (left, toy.plain, "plain training: largest softmax probability"),
        (right, toy.vos, "with VOS: probability of being in-distribution"),
    ):
        image = axes.imshow(
            confidence.numpy(), extent=extent, origin="lower", vmin=0, vmax=1, cmap="Greens"
        )
        axes.scatter(*toy.points.T.numpy(), s=4, c=_CLASS_COLOURS[toy.labels.numpy()])
        axes.set_title(title, fontsize=11)
    right.scatter(
        *toy.outliers.T.numpy(), s=14, marker="x", c=OOD_COLOUR, lw=1, label="virtual outliers"
    )
    right.legend(loc="lower right", fontsize=9)
    figure.colorbar(image, ax=[left, right], shrink=0.9)
    return as_png(figure)


def draw_histograms(scores: dict[str, dict[str, dict[str, Tensor]]]) -> bytes:
    """Energy without and with VOS, and the combined score, for known and unknown images."""
    panels = (
        ("cross-entropy, energy", "plain", "energy"),
        ("VOS, energy", "vos", "vos"),
        ("VOS, combined score", "vos", "combined"),
    )
    colours = (ID_COLOUR, OOD_COLOUR, _FAR_COLOUR)
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axes, (title, training, score) in zip(figure.subplots(1, 3), panels, strict=True):
        sets = {name: of_set[score].numpy() for name, of_set in scores[training].items()}
        low = min(values.min() for values in sets.values())
        high = max(np.quantile(values, 0.95) for values in sets.values())
        bins = np.linspace(low, high, 50).tolist()
        for (name, values), colour in zip(sets.items(), colours, strict=True):
            weights = np.full(len(values), 1 / len(values))
            shown = values.clip(low, high)
            axes.hist(shown, bins, weights=weights, color=colour, alpha=0.55, label=name)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("ood_score")
        axes.set_ylabel("share of images")
    axes.legend(fontsize=9)
    return as_png(figure)
