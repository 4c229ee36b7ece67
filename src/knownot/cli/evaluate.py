"""`knownot evaluate`: parse, call the library, print."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knownot.cli.console import percent, photo_progress, print_json, stderr, stdout

if TYPE_CHECKING:
    from rich.table import Table

    from knownot.evaluation.evaluate import Report


_SHOWN = ("fpr95", "fpr95_ood_positive", "auroc")


def evaluate(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    id_folder: Annotated[
        Path, typer.Option("--id", help="Test photos of the known classes, <class>/ folders.")
    ],
    ood: Annotated[
        list[Path] | None,
        typer.Option("--ood", help="Folder(s) of photos of none of the classes."),
    ] = None,
    more_ood: Annotated[
        list[Path] | None,
        typer.Argument(help="More OOD folders, so that --ood people/ textures/ works."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Report folder. (default: <model>-evaluation)"),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(help="combined, vos, energy, msp, mahalanobis, knn. (default: the model's)"),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Share of known photos called unknown. (default: the model's)"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    seed: Annotated[int, typer.Option(help="Accepted for symmetry; nothing here is random.")] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Measure a model: accuracy on known photos, FPR95, AUROC, AUPR on unknown ones.

    [bold]knownot evaluate model/ --id photos/test --ood people/ textures/[/]

    Writes metrics.json and report.html with histograms, ROC curves and the worst mistakes.
    """
    from knownot.evaluation.evaluate import evaluate as run
    from knownot.models.model_folder import load

    folders = [*(ood or []), *(more_ood or [])]
    loaded = load(model, device=device)
    with photo_progress(json_output) as begin:
        report = run(loaded, id_folder, folders, score=score, alpha=alpha, progress=begin)
    path = report.save(output or model.parent / f"{model.resolve().name}-evaluation")
    if json_output:
        print_json(report.summary)
        return
    _print(report)
    stderr().print(f"report: {path}", soft_wrap=True)


def _print(report: Report) -> None:
    from rich.table import Table

    summary: dict[str, Any] = report.summary
    out = stdout()
    low, high = summary["flagged_id_interval"]
    out.print(
        f"{summary['n_id']} known photos: accuracy {percent(summary['id_acc'])}, called unknown "
        f"{percent(summary['flagged_id'])} (95 % interval {percent(low)} to {percent(high)}, "
        f"asked for {percent(summary['alpha'])})",
        soft_wrap=True,
    )
    if summary["skipped"]:
        stderr().print(
            f"[yellow]skipped[/] {len(summary['skipped'])} unreadable photo(s), see report"
        )
    if not summary["ood"]:
        return
    table = Table(
        title=f"score: {report.score}; FPR95: ID is the positive class", title_justify="left"
    )
    for heading in ("set", "photos", "unknown", "FPR95", "FPR95 (OOD+)", "AUROC", "AUPR in/out"):
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for name, row in summary["ood"].items():
        table.add_row(
            name,
            str(row["n"]),
            percent(row["flagged"]),
            percent(row["fpr95"]),
            percent(row["fpr95_ood_positive"]),
            percent(row["auroc"]),
            f"{100 * row['aupr_in']:.1f} / {100 * row['aupr_out']:.1f}",
        )
    table.add_section()
    table.add_row(
        "mean over sets",
        "",
        "",
        percent(summary["mean_fpr95"]),
        "",
        percent(summary["mean_auroc"]),
        "",
    )
    out.print(table)
    out.print(_every_score(summary))


def _every_score(summary: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title="every score, mean over sets", title_justify="left")
    for heading in ("score", "FPR95", "FPR95 (OOD+)", "AUROC"):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    sets = list(summary["ood"].values())
    for name in sets[0]["scores"]:
        values = ([s["scores"][name][key] for s in sets] for key in _SHOWN)
        table.add_row(name, *(percent(mean(v)) for v in values))
    return table
