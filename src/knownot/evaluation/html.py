"""`report.html`: one file with tables, figures and the worst mistakes as pictures."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import Environment, PackageLoader

import knownot
from knownot.core.calibration import flagged
from knownot.data.kept_files import write_text
from knownot.data.photo import open_photo, small_jpeg
from knownot.errors import DataError
from knownot.evaluation.figures import histograms, roc_curves

if TYPE_CHECKING:
    from knownot.evaluation.evaluate import Report, Scored

_SHOWN = 12
_THUMBNAIL = 160


def write_html(report: Report, path: Path) -> Path:
    """Write the report as one self-contained file and return its path."""
    page = render(
        "report",
        summary=report.summary,
        score=report.score,
        threshold=report.threshold,
        score_names=list(report.id_set.scores),
        histograms=data_url(
            histograms(report.id_set, report.ood_sets, report.score, report.threshold), "png"
        ),
        roc=data_url(roc_curves(report.id_set, report.ood_sets, report.score), "png"),
        mistakes=_mistakes(report),
        classes=report.classes,
    )
    write_text(path, page)
    return path


def render(template: str, **values: Any) -> str:
    """A report's page."""
    environment = Environment(loader=PackageLoader("knownot.evaluation"), autoescape=True)
    page = environment.get_template(f"{template}.html.jinja")
    return page.render(version=knownot.__version__, **values)


def _mistakes(report: Report) -> list[dict[str, Any]]:
    """Galleries of the most confident mistakes, worst first."""
    alpha, id_set = report.summary["alpha"], report.id_set
    classes_wrong = torch.nonzero(~id_set.correct).flatten()
    unknown = torch.nonzero(flagged(id_set.p_values, alpha)).flatten()
    galleries = [
        _gallery(
            "Known photos of the wrong class, most confident first",
            id_set,
            classes_wrong[id_set.confidence[classes_wrong].argsort(descending=True)],
        ),
        _gallery(
            "Known photos called unknown, highest score first",
            id_set,
            unknown[id_set.scores[report.score][unknown].argsort(descending=True)],
        ),
    ]
    for ood in report.ood_sets:
        missed = torch.nonzero(~flagged(ood.p_values, alpha)).flatten()
        order = missed[ood.scores[report.score][missed].argsort()]
        galleries.append(_gallery(f"{ood.name}: accepted as known, lowest score first", ood, order))
    return [gallery for gallery in galleries if gallery["total"]]


def _gallery(title: str, scored: Scored, indices: torch.Tensor) -> dict[str, Any]:
    pictures = []
    for i in indices[:_SHOWN].tolist():
        try:
            source = thumbnail(scored.paths[i])
        except DataError:  # removed since it was scored
            continue
        pictures.append(
            {
                "src": source,
                "path": str(scored.paths[i]),
                "predicted": int(scored.predicted[i]),
                "confidence": float(scored.confidence[i]),
                "p_value": float(scored.p_values[i]),
            }
        )
    return {"title": title, "total": len(indices), "pictures": pictures}


def thumbnail(path: Path) -> str:
    """A photo inside the page, 160 pixels at its longest side.

    Raises:
        DataError: If it cannot be read.
    """
    image = open_photo(path, at_least=_THUMBNAIL)
    return data_url(small_jpeg(image, _THUMBNAIL, quality=80), "jpeg")


def data_url(data: bytes, kind: str) -> str:
    """An image inside the page: bytes of a PNG or JPEG file."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
