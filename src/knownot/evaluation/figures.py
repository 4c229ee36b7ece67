"""Figures of a report, as PNG bytes: score histograms and ROC curves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor


class HasScores(Protocol):
    """A named set of photos or boxes with every ood_score (N,) by name."""

    @property
    def name(self) -> str:
        """Name of the set."""

    @property
    def scores(self) -> dict[str, Tensor]:
        """Every score by name."""


# Okabe and Ito's colours, told apart by colour-blind readers too.
ID_COLOUR = "#0072B2"
OOD_COLOUR = "#D55E00"
THRESHOLD_COLOUR = "#000000"
_BINS = 60


def histograms(
    id_set: HasScores,
    ood_sets: Sequence[HasScores],
    score: str,
    threshold: float,
    rows_are: str = "photos",
) -> bytes:
    """One panel for each OOD set: its scores and the ID scores, with the threshold."""
    panels = max(1, len(ood_sets))
    columns = min(3, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(4.2 * columns, 2.6 * rows), layout="constrained")
    id_scores = id_set.scores[score].numpy()
    for i in range(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        ood = ood_sets[i].scores[score].numpy() if ood_sets else np.empty(0)
        everything = np.concatenate([id_scores, ood])
        low, high = np.quantile(everything, [0.0, 0.99]) if len(everything) else (0.0, 1.0)
        bins = np.linspace(low, max(high, low + 1e-6), _BINS).tolist()
        for values, colour, label in (
            (id_scores, ID_COLOUR, "in-distribution"),
            (ood, OOD_COLOUR, _plain(ood_sets[i].name) if ood_sets else ""),
        ):
            if len(values):
                shown = values.clip(bins[0], bins[-1])
                weights = np.full(len(values), 1 / len(values))
                axes.hist(shown, bins, weights=weights, color=colour, alpha=0.6, label=label)
        if np.isfinite(threshold):
            axes.axvline(min(threshold, bins[-1]), color=THRESHOLD_COLOUR, ls="--", lw=1)
        axes.set_xlabel(f"ood_score ({score})")
        axes.set_ylabel(f"share of {rows_are}")
        axes.legend(fontsize=8)
    return as_png(figure)


def _plain(name: str) -> str:
    """A name as it is: matplotlib takes what stands between dollars for mathematics.

    What begins with an underscore it leaves out of a legend.
    """
    text = name.encode("utf-8", "replace").decode().replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def roc_curves(id_set: HasScores, ood_sets: Sequence[HasScores], score: str) -> bytes:
    """Share of ID accepted against share of OOD accepted, one curve for each OOD set."""
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for ood in ood_sets:
        if not (len(id_set.scores[score]) and len(ood.scores[score])):
            continue  # a detector may find no box at all
        fpr, tpr = roc(id_set.scores[score], ood.scores[score])
        axes.plot(fpr, tpr, lw=1.5, label=_plain(ood.name))
    axes.axhline(0.95, color="grey", lw=0.8, ls=":")
    axes.set_xlabel("OOD accepted (false-positive rate)")
    axes.set_ylabel("ID accepted (true-positive rate)")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="lower right")
    return as_png(figure)


def roc(id_scores: Tensor, ood_scores: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """False- and true-positive rates with ID as the positive class."""
    from sklearn.metrics import roc_curve

    scores = -np.concatenate([id_scores.numpy(), ood_scores.numpy()])
    is_id = np.arange(len(scores)) < len(id_scores)
    fpr, tpr, _ = roc_curve(is_id, np.nan_to_num(scores))
    return fpr, tpr


def as_png(figure: Figure) -> bytes:
    """The PNG file of a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
