"""`report.html` of a detector: tables, figures, and photos with the worst mistakes drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from knownot.data.kept_files import write_text
from knownot.data.photo import open_photo, small_jpeg
from knownot.errors import DataError
from knownot.evaluation.draw_boxes import DrawnBox, draw_boxes
from knownot.evaluation.figures import histograms, roc_curves
from knownot.evaluation.html import data_url, render
from knownot.models.prediction import UNKNOWN

if TYPE_CHECKING:
    from torch import Tensor

    from knownot.evaluation.evaluate_detector import DetectionReport, ScoredBoxes

_SHOWN = 12
_LEAST_SIDE = 480


def write_detection_html(report: DetectionReport, path: Path) -> Path:
    """Write the report as one self-contained file and return its path."""
    sets = report.id_set, report.ood_sets, report.score
    page = render(
        "detection",
        summary=report.summary,
        score=report.score,
        threshold=report.threshold,
        score_names=list(report.id_set.scores),
        histograms=data_url(histograms(*sets, report.threshold, "boxes"), "png"),
        roc=data_url(roc_curves(*sets), "png"),
        mistakes=_mistakes(report),
    )
    write_text(path, page)
    return path


def _mistakes(report: DetectionReport) -> list[dict[str, Any]]:
    """Galleries of photos, the one with the worst box first."""
    id_set = report.id_set
    refused = [u & r for u, r in zip(id_set.unknown, id_set.right, strict=True)]
    galleries = [
        _gallery(report, "Known objects called unknown, highest score first", id_set, refused, 1.0)
    ]
    for ood in report.ood_sets:
        accepted = [k & ~u for k, u in zip(ood.counted, ood.unknown, strict=True)]
        title = f"{ood.name}: accepted as known, lowest score first"
        galleries.append(_gallery(report, title, ood, accepted, -1.0))
    return [gallery for gallery in galleries if gallery["total"]]


def _gallery(
    report: DetectionReport, title: str, scored: ScoredBoxes, wrong: list[Tensor], sign: float
) -> dict[str, Any]:
    worst = {
        i: float((sign * scored.found[i][f"ood.{report.score}"][mask]).max())
        for i, mask in enumerate(wrong)
        if mask.any()
    }
    pictures = []
    for i in sorted(worst, key=lambda i: -worst[i])[:_SHOWN]:
        try:
            pictures.append({"src": _picture(report, scored, i), "path": str(scored.paths[i])})
        except DataError:  # removed since it was scored
            continue
    return {"title": title, "total": len(worst), "pictures": pictures}


def _picture(report: DetectionReport, scored: ScoredBoxes, i: int) -> str:
    image = open_photo(scored.paths[i])
    found, kept = scored.found[i], scored.counted[i]
    boxes = [
        DrawnBox(
            box=tuple(found["boxes"][row].tolist()),
            label=UNKNOWN if scored.unknown[i][row] else report.classes[found["labels"][row]],
            is_unknown=bool(scored.unknown[i][row]),
            score=float(found["scores"][row]),
            p_value=float(scored.p_values[i][row]),
            class_index=int(found["labels"][row]),
        )
        for row in torch.nonzero(kept).flatten().tolist()
    ]
    drawn = draw_boxes(image, boxes, least_side=_LEAST_SIDE)
    return data_url(small_jpeg(drawn, max(drawn.size), quality=80), "jpeg")
