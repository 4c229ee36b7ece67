"""`knownot export`: parse, call the library, print."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from knownot.cli.console import photo_progress, print_json, stdout


class Format(StrEnum):
    """What is written."""

    onnx = "onnx"
    torch = "torch"


def export(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write. (default: the folder's name + .onnx or .pt2)"
        ),
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="ONNX, or a torch.export program.")
    ] = Format.onnx,
    photos: Annotated[
        list[str] | None,
        typer.Option(
            "--photos",
            help="Files, folders or globs to compare on, beside generated photos. (default: of a "
            "detector 16 of its validation photos)",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a file that exists.")] = False,
    seed: Annotated[int, typer.Option(help="Accepted for symmetry; nothing here is random.")] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Write a model as one file that gives the [bold]same answers[/].

    [bold]knownot export model/ -o model.onnx --photos test/[/]

    [bold]knownot export detector/ -o detector.onnx --photos test/[/]

    Model and file answer for the same photos; if a label, a score or a box differs, nothing is
    written. A detector needs photos with objects, as generated ones hold hardly any: yours, or those
    that it was validated on, where they still are.
    """
    from dataclasses import asdict

    from knownot.cli.photo_arguments import expand
    from knownot.export.export import ENDINGS, check_output, export_model
    from knownot.export.validation_photos import validation_photos
    from knownot.models.model_folder import load

    output = output or Path(model.resolve().name + ENDINGS[form.value])
    check_output(output, overwrite)
    paths = expand(photos or [])
    loaded = load(model)
    if not paths and loaded.task == "detect":
        paths = validation_photos(model)
    with photo_progress(json_output) as begin:
        metadata = export_model(
            loaded,
            output,
            form=form.value,
            photos=paths,
            overwrite=overwrite,
            advance=begin("photos compared", len(paths)) if paths else lambda done: None,
        )
    facts = {
        "file": str(output),
        "mebibytes": round(output.stat().st_size / 2**20, 1),
        **{
            key: value
            for key, value in asdict(metadata).items()
            if key not in ("versions", "calibration")
        },
        "versions": metadata.versions,
    }
    if json_output:
        print_json(facts)
        return
    parity = metadata.parity
    stdout().print(f"[bold]{output}[/], {facts['mebibytes']} MiB, float32")
    given = ""
    if parity["given"]:
        given = f", of yours {parity['max_difference_given']:.1e}"
    compared = "each by two ways"
    if metadata.task == "detect":
        compared = f"{parity['answers']} boxes"
    stdout().print(
        f"same label and unknown flag for {parity['photos']} photos ({parity['given']} of yours), "
        f"{compared}; largest difference of the score {parity['max_difference']:.1e}{given}; "
        f"relative {parity['max_relative']:.1e}, allowed {parity['tolerance']:.0e}"
    )
    if form is Format.onnx:
        stdout().print(f"next: knownot predict {output} new-photos/")
