"""`knownot evaluate`: parse, call the library, print."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knownot.cli.console import (
    note_if_nothing_is_unknown,
    percent,
    photo_progress,
    plain,
    print_json,
    report_folder,
    stderr,
    stdout,
)
from knownot.cli.options import Alpha, Device, MoreOod, NoSeed, Score
from knownot.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from knownot.evaluation.evaluate import Report
    from knownot.evaluation.evaluate_detector import DetectionReport


_SHOWN = ("fpr95", "fpr95_ood_positive", "auroc")


def evaluate(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    id_folder: Annotated[
        Path,
        typer.Option(
            "--id",
            help="Test photos of the known classes, <class>/ folders; for a detector COCO or VOC.",
        ),
    ],
    ood: Annotated[
        list[Path] | None,
        typer.Option(
            "--ood",
            help="Folder(s) of photos of none of the classes; for a detector also COCO or VOC.",
        ),
    ] = None,
    more_ood: MoreOod = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Report folder. (default: <model>-evaluation)"),
    ] = None,
    score: Score = None,
    alpha: Alpha = None,
    proposals: Annotated[
        bool, typer.Option(help="Detectors: also measure objects that no known class claims.")
    ] = False,
    device: Device = "auto",
    seed: NoSeed = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Measure a model: accuracy or mAP on known photos, FPR95, AUROC, AUPR on unknown ones.

    [bold]knownot evaluate model/ --id photos/test --ood people/ textures/[/]

    [bold]knownot evaluate detector/ --id coco/ --ood ood/annotations/ood.json streets/[/]

    Writes metrics.json and report.html with histograms, ROC curves and the worst mistakes.
    """
    from knownot.models.detector import UnknownAwareDetector
    from knownot.models.model_folder import load
    from knownot.training.recorded_photos import seen_before

    output = report_folder(output, model, "evaluation")
    folders = [*(ood or []), *(more_ood or [])]
    loaded = load(model, device=device)
    report: Report | DetectionReport
    with photo_progress(json_output) as begin:
        if isinstance(loaded, UnknownAwareDetector):
            from knownot.data.detection_folder import only_training_split
            from knownot.evaluation.evaluate_detector import evaluate_detector

            if (training := only_training_split(id_folder)) is not None:
                stderr().print(
                    f"[yellow]note[/] measured on {plain(training)}, by its name a training split: of "
                    "photos that it was trained on a detector says too much good",
                    soft_wrap=True,
                )
            report = evaluate_detector(
                loaded,
                id_folder,
                folders,
                score=score,
                alpha=alpha,
                proposals=proposals,
                progress=begin,
            )
        else:
            from knownot.evaluation.evaluate import evaluate as run

            if proposals:
                raise ConfigError("--proposals: is one of detectors, and the model is a classifier")
            report = run(loaded, id_folder, folders, score=score, alpha=alpha, progress=begin)
    trained_on, calibrated_on = seen_before(model, report.id_set.paths)
    report.summary.update(id_trained_on=trained_on, id_calibrated_on=calibrated_on)
    path = report.save(output)
    if trained_on or calibrated_on:
        stderr().print(
            f"[yellow]note[/] of the known photos it was trained on {trained_on} and calibrated on "
            f"{calibrated_on}: what is measured on them says too much good of it",
            soft_wrap=True,
        )
    note_if_nothing_is_unknown(loaded.calibrated_on, report.summary["alpha"])
    if json_output:
        print_json(report.summary)
        return
    _print(report)
    stderr().print(f"report: {plain(path)}", soft_wrap=True)


def _print(report: Report | DetectionReport) -> None:
    summary: dict[str, Any] = report.summary
    out = stdout()
    for line in _known(summary):
        out.print(line, soft_wrap=True)
    told = {"skipped": "unreadable photo(s) left out", "problems": "problem(s) in annotations"}
    for what, text in told.items():
        if summary.get(what):
            stderr().print(f"[yellow]note:[/] {len(summary[what])} {text}, see the report")
    if not summary["ood"]:
        return
    out.print(_deciding_score(summary))
    out.print(_every_score(summary))
    if summary["task"] == "detect":
        _print_open_set(summary)


def _known(summary: dict[str, Any]) -> list[str]:
    asked = f"asked for {percent(summary['alpha'])}"
    interval = summary["flagged_id_interval"]
    flagged = "none was found"
    if interval is not None:
        flagged = (
            f"called unknown {percent(summary['flagged_id'])} (95 % interval "
            f"{percent(interval[0])} to {percent(interval[1])}, {asked})"
        )
    if summary["task"] == "classify":
        return [f"{summary['n_id']} known photos: accuracy {percent(summary['id_acc'])}, {flagged}"]
    proposals = summary.get("photos_with_proposals")
    return [
        f"{summary['n_id']} known photos: mAP {_share(summary['map'])}, at IoU 0.5 "
        f"{_share(summary['map_50'])}; boxes count from a score of {summary['box_threshold']:.2f}",
        f"{summary['n_id_objects_found']} boxes around known objects: {flagged}",
        *(
            []
            if proposals is None
            else [f"photos with an unclaimed proposal: {percent(proposals)}"]
        ),
    ]


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value)


def _deciding_score(summary: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    detector = summary["task"] == "detect"
    table = Table(
        title=f"score: {summary['score']}; FPR95: ID is the positive class", title_justify="left"
    )
    headings = ["set", "photos", *(["boxes"] if detector else []), "unknown"]
    for heading in (*headings, "FPR95", "FPR95 (OOD+)", "AUROC", "AUPR in/out"):
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for name, row in summary["ood"].items():
        table.add_row(
            escape(name),
            str(row["n"]),
            *([str(row["n_boxes"])] if detector else []),
            _share(row["flagged"]),
            *(_share(row[key]) for key in _SHOWN),
            f"{_share(row['aupr_in'])} / {_share(row['aupr_out'])}",
        )
    if "mean_fpr95" in summary:
        table.add_section()
        table.add_row(
            "mean over sets",
            *([""] * (len(headings) - 1)),
            percent(summary["mean_fpr95"]),
            "",
            percent(summary["mean_auroc"]),
            "",
        )
    return table


def _print_open_set(summary: dict[str, Any]) -> None:
    """Tables of the sets whose unknown objects are annotated; none where none is."""
    annotated = {name: row for name, row in summary["ood"].items() if row["open_set"]["n_unknown"]}
    if not annotated:
        return
    stdout().print(_open_set(annotated, "open_set", "annotated unknown objects"))
    if "photos_with_proposals" in summary:
        title = "the same with proposals that no class claims"
        stdout().print(_open_set(annotated, "open_set_with_proposals", title))


def _open_set(sets: dict[str, Any], key: str, title: str) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("set", "objects", "recall", "AP", "AOSE", "WI"):
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for name, row in sets.items():
        found = row[key]
        table.add_row(
            escape(name),
            str(found["n_unknown"]),
            _share(found["unknown_recall"]),
            _share(found["unknown_ap"]),
            "–" if found["aose"] is None else str(found["aose"]),
            "–" if found["wi"] is None else f"{found['wi']:.3f}",
        )
    return table


def _every_score(summary: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title="every score, mean over sets", title_justify="left")
    detector = summary["task"] == "detect"
    shown = (*_SHOWN, *(["fpr95_found"] if detector else []))
    headings = ("score", "FPR95", "FPR95 (OOD+)", "AUROC", *(["FPR95 (found)"] if detector else []))
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "score" else "right")
    sets = list(summary["ood"].values())
    for name in sets[0]["scores"]:
        columns = ([s["scores"][name][key] for s in sets] for key in shown)
        values = ([v for v in column if v is not None] for column in columns)
        table.add_row(name, *(percent(mean(v)) if v else "–" for v in values))
    return table
