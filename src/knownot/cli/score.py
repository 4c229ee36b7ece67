"""`knownot score`: parse, call the library, print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from knownot.cli.console import photo_progress, print_json, stderr, stdout
from knownot.errors import ConfigError

if TYPE_CHECKING:
    from knownot.scale.score import ScoreSummary


def score(
    model: Annotated[
        Path, typer.Argument(help="File of `knownot export`, or the model folder of a classifier.")
    ],
    photos: Annotated[
        list[str] | None,
        typer.Argument(
            help="Photos: files, folders or globs ('new/**/*.jpg'), on disk or at s3://, gs:// and "
            "the like."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Parquet file to write, one row a photo.")
    ] = Path("scores.parquet"),
    from_list: Annotated[
        Path | None,
        typer.Option("--list", help="Text file of paths and URIs, one a line, instead of PHOTOS."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes, each with one core. (default: all cores of Ray)"),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Photos that go through the model together.")
    ] = 8,
    part_size: Annotated[
        int,
        typer.Option(min=1, help="Photos that are kept together; an interruption loses no more."),
    ] = 512,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster. (default: RAY_ADDRESS, else this machine alone)"),
    ] = None,
    decisive: Annotated[
        str | None,
        typer.Option(
            "--score",
            help="combined, vos, energy, msp, mahalanobis, knn. (default: the model's)",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Share of known photos called unknown. (default: the model's)"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Accepted for symmetry; nothing here is random.")] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Summary as JSON.")] = False,
) -> None:
    """Score [bold]many photos[/] in several processes or on a Ray cluster.

    [bold]knownot score model/ 'photos/**/*.jpg' -o scores.parquet[/]

    [bold]knownot score model.onnx s3://bucket/photos/ -o scores.parquet --address ray-head:6379[/]

    The rows: path, label, ood_score, p_value, is_unknown, error. A photo that cannot be read is a row
    with its error.

    What is done is kept in <output>.parts; the same command continues after any interruption.

    The exit code is 0 when every photo has its row, and 1 if none of them could be read.
    """
    from knownot.scale.cluster import require_ray

    require_ray()
    from knownot.scale.score import score_photos

    with photo_progress(json_output) as begin:
        summary = score_photos(
            model,
            _named(photos or [], from_list),
            output,
            workers=workers,
            batch_size=batch_size,
            part_size=part_size,
            score=decisive,
            alpha=alpha,
            address=address,
            begin=begin,
        )
    _print(summary, json_output)
    if summary.errors == summary.photos:
        raise typer.Exit(1)


def _named(photos: list[str], from_list: Path | None) -> Iterator[str]:
    from knownot.scale.sources import list_photos, listed_in

    if bool(photos) == (from_list is not None):
        raise ConfigError("photos: give files, folders or globs, or --list FILE")
    return list_photos(photos) if from_list is None else listed_in(from_list)


def _print(summary: ScoreSummary, as_json: bool) -> None:
    from dataclasses import asdict

    from rich.table import Table

    if as_json:
        print_json(asdict(summary))
    else:
        table = Table(title=summary.output, show_header=False)
        table.add_row("photos", f"{summary.photos:,}")
        table.add_row("of them unknown", f"{summary.unknown:,}")
        table.add_row("not readable", f"{summary.errors:,}")
        if summary.continued:
            table.add_row("there before", f"{summary.continued:,}")
        if summary.workers:
            table.add_row("workers", f"{summary.workers}")
            table.add_row("time", f"{summary.seconds:.0f} s")
            table.add_row("photos per second", f"{summary.photos_per_second:.0f}")
        stdout().print(table)
    if summary.errors:
        stderr().print(
            f"[yellow]not readable[/] {summary.errors:,} photos; the column error tells why",
            soft_wrap=True,
        )
