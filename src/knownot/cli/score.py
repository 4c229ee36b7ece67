"""`knownot score`: parse, call the library, print."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from knownot.cli.console import photo_progress, plain, print_json, stderr, stdout
from knownot.cli.options import Alpha, NoSeed
from knownot.errors import ConfigError

if TYPE_CHECKING:
    from knownot.scale.score import ScoreSummary


def score(
    model: Annotated[
        Path, typer.Argument(help="File of `knownot export`, or the model folder of a classifier.")
    ],
    photos: Annotated[
        list[str],
        typer.Argument(
            help="Photos: files, folders or globs ('new/**/*.jpg'), on disk or at s3://, gs:// and "
            "the like."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Parquet file to write, one row a photo.")
    ] = Path("scores.parquet"),
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes, each with one core. (default: all cores)"),
    ] = None,
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
    alpha: Alpha = None,
    seed: NoSeed = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Summary as JSON.")] = False,
) -> None:
    """Score [bold]many photos[/] in several processes or on a Ray cluster.

    [bold]knownot score model/ 'photos/**/*.jpg' -o scores.parquet[/]

    [bold]knownot score model.onnx s3://bucket/photos/ -o scores.parquet --address ray-head:6379[/]

    The rows: path, label, ood_score, p_value, is_unknown, error. A photo that cannot be read is a row
    with its error; if none can, the exit code is 1.

    What is done is kept in <output>.parts; after an interruption the same command continues.
    """
    from knownot.scale.score import require_ray, score_photos
    from knownot.scale.sources import list_photos

    require_ray()
    _refuse_detector(model)
    listed = [photo for source in photos for photo in list_photos(source)]
    try:
        with photo_progress(json_output) as begin:
            summary = score_photos(
                model,
                listed,
                output,
                workers=workers,
                score=decisive,
                alpha=alpha,
                address=address,
                progress=begin("photos", len(listed)),
            )
    except KeyboardInterrupt:
        stderr().print(
            "\n[yellow]interrupted.[/] The same command goes on from the finished parts."
        )
        raise typer.Exit(130) from None
    _print(summary, json_output)
    if summary.errors == summary.photos:
        raise typer.Exit(1)


def _print(summary: ScoreSummary, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print_json(asdict(summary))
    else:
        stdout().print(
            f"{plain(summary.output)}: {summary.photos:,} photos, {summary.unknown:,} of them unknown, "
            f"in {summary.seconds:.0f} s ({summary.continued:,} were there before)",
            soft_wrap=True,
        )
    if summary.errors:
        stderr().print(
            f"[yellow]not readable[/] {summary.errors:,} photos; the column error tells why",
            soft_wrap=True,
        )


def _refuse_detector(model: Path) -> None:
    from knownot.models.hub import CONFIG

    with suppress(OSError, ValueError, AttributeError):  # what is wrong there is told later
        if json.loads((model / CONFIG).read_text()).get("task") == "detect":
            raise ConfigError(f"{model}: is a detector, and whole photos are scored")
