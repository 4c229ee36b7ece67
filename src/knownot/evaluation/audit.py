"""OOD photos that look like a class, ID photos that look like none, and what they do to the measures.

A person decides which of them do not belong in their set; the model only says where to look.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from knownot.core.calibration import flagged
from knownot.data.kept_files import write_text
from knownot.errors import DataError
from knownot.evaluation.decisions import COLUMNS, read_decisions, write_decisions
from knownot.evaluation.evaluate import Report, Scored, evaluate
from knownot.evaluation.measures import separation
from knownot.evaluation.report import Progress
from knownot.models.classifier import UnknownAwareClassifier

TABLE = "audit.csv"


@dataclass(frozen=True)
class Audit:
    """Listed photos, and the measures with and without those that a person left out.

    Attributes:
        summary: What `audit.json` holds: measures by set, listed photos, photos left out.
        decisions: The file that they were read from, or None.
    """

    summary: dict[str, Any]
    decisions: Path | None

    def save(self, folder: str | Path) -> Path:
        """Write `audit.html`, `audit.json` and, where no decisions were given, `audit.csv`.

        Returns:
            The page.

        Raises:
            DataError: If `audit.csv` holds decisions already, or a file cannot be written.
        """

        folder = Path(folder)
        if self.decisions is None:  # else it may be the very file that a person filled in
            write_decisions(folder / TABLE, self.summary["listed"])
        numbers = json.dumps(self.summary, indent=1) + "\n"
        write_text(folder / "audit.json", numbers)
        write_text(folder / "audit.html", _page(self.summary))
        return folder / "audit.html"


def audit(
    model: UnknownAwareClassifier,
    id_folder: str | Path,
    ood_folders: Sequence[str | Path],
    *,
    decisions: str | Path | None = None,
    top: int = 100,
    score: str | None = None,
    alpha: float | None = None,
    progress: Progress | None = None,
) -> Audit:
    """List the photos of each set that look least as if they belonged there.

    Args:
        model: A calibrated model.
        id_folder: `<class>/` folders of test photos of the model's classes.
        ood_folders: Folders of photos of none of the classes.
        decisions: Filled-in `audit.csv`: photos with `keep` n are left out of the second measures.
        top: Photos listed of each set at most; those left out are listed in any case.
        score: Score that ranks and is measured; the model's default if not given.
        alpha: Share of ID photos that may be called unknown; the model's own if not given.
        progress: As for `evaluate`.

    Raises:
        DataError: If a folder or the decisions cannot be used, or all ID photos are left out.
    """
    decided = {} if decisions is None else read_decisions(Path(decisions))
    report = evaluate(model, id_folder, ood_folders, score=score, alpha=alpha, progress=progress)
    sets = [report.id_set, *report.ood_sets]
    kept = [_kept(scored, decided) for scored in sets]
    if not kept[0].any():
        raise DataError(f"{decisions}: leaves no ID photo; nothing can be measured")
    out = {path for path, keep in decided.items() if keep is False}
    here = {path.resolve() for scored in sets for path in (*scored.paths, *scored.skipped)}
    if out and not out & here:
        raise DataError(
            f"{decisions}: none of the {len(out)} photos with keep n is in these folders, for example "
            f"{min(out)}; its paths count from where knownot audit was run"
        )
    summary = {
        **{key: report.summary[key] for key in ("task", "score", "alpha")},
        **_measures(report, kept),
        "left_out_elsewhere": len(out - here),
        "listed": [row for scored in sets for row in _listed(report, scored, decided, top)],
        "skipped": report.summary["skipped"],
    }
    return Audit(summary, None if decisions is None else Path(decisions))


def _kept(scored: Scored, decided: dict[Path, bool | None]) -> Tensor:
    """Which photos of a set nobody left out (N,), bool."""
    return torch.tensor([decided.get(p.resolve()) is not False for p in scored.paths])


def _measures(report: Report, kept: list[Tensor]) -> dict[str, Any]:
    """Each set's numbers of all its photos, and of those kept, against all or the kept of the ID set."""
    known = report.id_set
    id_scores = known.scores[report.score]
    counts = [
        {
            "n": len(mask),
            "left_out": int((~mask).sum()),
            "called_known": int((~flagged(scored.p_values, report.summary["alpha"])).sum()),
        }
        for scored, mask in zip([known, *report.ood_sets], kept, strict=True)
    ]
    sets: dict[str, dict[str, Any]] = {}
    for ood, mask, count in zip(report.ood_sets, kept[1:], counts[1:], strict=True):
        scores = ood.scores[report.score]
        sets[ood.name] = {
            **count,
            "all": separation(id_scores, scores),
            "kept": separation(id_scores[kept[0]], scores[mask]) if mask.any() else None,
        }
    return {
        "id": {
            **counts[0],
            "accuracy": {
                "all": float(known.correct.double().mean()),
                "kept": float(known.correct[kept[0]].double().mean()),
            },
        },
        "ood": sets,
        "mean": {which: _mean(sets, which) for which in ("all", "kept")},
    }


def _mean(sets: dict[str, dict[str, Any]], which: str) -> dict[str, float] | None:
    """Mean of each measure over the OOD sets that have one."""
    rows = [row[which] for row in sets.values() if row[which] is not None]
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]} if rows else None


def _listed(
    report: Report, scored: Scored, decided: dict[Path, bool | None], top: int
) -> list[dict[str, Any]]:
    """The photos of a set that look least as if they belonged there, those first."""
    is_id = scored is report.id_set
    values = scored.scores[report.score]
    rows = []
    for rank, i in enumerate(values.argsort(descending=is_id, stable=True).tolist(), 1):
        keep = decided.get(scored.paths[i].resolve())
        if rank > top and keep is not False:
            continue
        rows.append(
            {
                "path": str(scored.paths[i]),
                "set": scored.name,
                "rank": rank,
                "score": float(values[i]),
                "p_value": float(scored.p_values[i]),
                "looks_like": report.classes[scored.predicted[i]],
                "label": report.classes[scored.labels[i]] if is_id else None,
                "keep": {None: "", True: "y", False: "n"}[keep],
            }
        )
    return rows


def _page(summary: dict[str, Any]) -> str:
    from knownot.evaluation.html import render

    rows = summary["listed"]
    groups = [
        {"set": name, "pictures": [_picture(number, row) for number, row in group]}
        for name, group in groupby(enumerate(rows), key=lambda numbered: numbered[1]["set"])
    ]
    table = [COLUMNS, *([row[name] for name in COLUMNS] for row in rows)]
    return render("audit", summary=summary, groups=groups, table=table)


def _picture(number: int, row: dict[str, Any]) -> dict[str, Any]:
    from knownot.evaluation.html import thumbnail

    try:
        source = thumbnail(Path(row["path"]))
    except DataError:  # removed since it was scored
        source = None
    return {**row, "row": number, "src": source}
