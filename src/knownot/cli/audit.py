"""`knownot audit`: parse, call the library, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knownot.cli.console import (
    percent,
    photo_progress,
    print_json,
    report_folder,
    stderr,
    stdout,
)
from knownot.cli.options import Alpha, Device, MoreOod, NoSeed, Score
from knownot.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table


def audit(
    model: Annotated[Path, typer.Argument(help="Model folder of a classifier.")],
    id_folder: Annotated[
        Path, typer.Option("--id", help="Test photos of the known classes, <class>/ folders.")
    ],
    ood: Annotated[
        list[Path], typer.Option("--ood", help="Folder(s) of photos of none of the classes.")
    ],
    more_ood: MoreOod = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write to. (default: <model>-audit)"),
    ] = None,
    decisions: Annotated[
        Path | None,
        typer.Option(help="Filled-in audit.csv: measure without photos that have n in keep, too."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Photos listed of each set, at most.")] = 100,
    score: Score = None,
    alpha: Alpha = None,
    device: Device = "auto",
    seed: NoSeed = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print audit.json.")] = False,
) -> None:
    """Find OOD photos that show a known class, and known ones that do not; measure without them.

    [bold]knownot audit model/ --id photos/test --ood people/ textures/ -o out/[/]

    [bold]knownot audit model/ --id photos/test --ood people/ textures/ -o out/ --decisions out/audit.csv[/]

    The first writes audit.html, where photos are ticked and the decisions downloaded, and audit.csv
    for those who would rather write y or n into its column keep.
    """
    from knownot.evaluation.audit import TABLE
    from knownot.evaluation.audit import audit as run
    from knownot.evaluation.decisions import check_undecided
    from knownot.models.classifier import UnknownAwareClassifier
    from knownot.models.model_folder import load

    output = report_folder(output, model, "audit")
    if decisions is None:
        check_undecided(output / TABLE)  # before any photo is looked at
    loaded = load(model, device=device)
    if not isinstance(loaded, UnknownAwareClassifier):
        raise ConfigError(
            f"{model}: is a detector, and whole photos are audited; knownot evaluate shows the "
            "photos with its worst boxes"
        )
    with photo_progress(json_output) as begin:
        found = run(
            loaded,
            id_folder,
            [*ood, *(more_ood or [])],
            decisions=decisions,
            top=top,
            score=score,
            alpha=alpha,
            progress=begin,
        )
    page = found.save(output)
    if json_output:
        print_json(found.summary)
        return
    _print(found.summary)
    stdout().print(f"look at {page}", soft_wrap=True, markup=False)


def _print(summary: dict[str, Any]) -> None:
    known = summary["id"]
    line = f"{known['n']} known photos, {known['n'] - known['called_known']} called unknown, "
    line += f"accuracy {percent(known['accuracy']['all'])}"
    if known["left_out"]:
        kept = percent(known["accuracy"]["kept"])
        line += f", without {known['left_out']} left out {kept}"
    stdout().print(line, soft_wrap=True)
    if summary["skipped"]:
        stderr().print(
            f"[yellow]skipped[/] {len(summary['skipped'])} unreadable photo(s), see page"
        )
    if summary["left_out_elsewhere"]:
        number = summary["left_out_elsewhere"]
        stderr().print(f"[yellow]unused[/] {number} decision(s) on photos of other folders")
    stdout().print(_table(summary))


def _table(summary: dict[str, Any]) -> Table:
    """One row a set; where photos were left out, one more without them."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"score: {summary['score']}", title_justify="left")
    table.add_column("set", no_wrap=True)
    for heading in ("photos", "called known", "FPR95", "FPR95 (OOD+)", "AUROC", "AUPR in/out"):
        table.add_column(heading, justify="right")
    for name, row in summary["ood"].items():
        table.add_row(escape(name), str(row["n"]), str(row["called_known"]), *_cells(row["all"]))
        if row["kept"] != row["all"]:
            kept = str(row["n"] - row["left_out"])
            table.add_row(f"  without {row['left_out']}", kept, "", *_cells(row["kept"]))
    mean = summary["mean"]
    table.add_section()
    table.add_row("mean over sets", "", "", *_cells(mean["all"]))
    if mean["kept"] != mean["all"]:
        table.add_row("  without those", "", "", *_cells(mean["kept"]))
    return table


def _cells(measures: dict[str, float] | None) -> list[str]:
    if measures is None:
        return ["–"] * 4
    shown = [percent(measures[key]) for key in ("fpr95", "fpr95_ood_positive", "auroc")]
    return [*shown, f"{percent(measures['aupr_in'])} / {percent(measures['aupr_out'])}"]
