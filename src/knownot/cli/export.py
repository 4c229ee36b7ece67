"""`knownot export`: parse, call the library, print."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from knownot.cli.console import photo_progress, plain, print_json, stderr, stdout
from knownot.cli.options import NoSeed

# Of the photos of validation. In reduced precision: the standard error of a share of 95 % is then one
# point. Of a detector in float32: every box must be the same.
_MOST_COMPARED, _MOST_WITH_BOXES = 500, 16


class Format(StrEnum):
    """What is written."""

    onnx = "onnx"
    torch = "torch"


class Precision(StrEnum):
    """Number format of a backbone."""

    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


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
    precision: Annotated[
        Precision,
        typer.Option(help="Number format of the backbone; scores stay in float32."),
    ] = Precision.float32,
    photos: Annotated[
        list[str] | None,
        typer.Option(
            "--photos",
            help="Files, folders or globs to compare on, beside generated photos; with --precision "
            "float16 or int8, of known classes. (default: of a detector 16 of its validation "
            "photos, in reduced precision up to 500)",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a file that exists.")] = False,
    seed: NoSeed = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Write a model as one file that gives the [bold]same answers[/].

    [bold]knownot export model/ -o model.onnx --photos test/[/]

    [bold]knownot export detector/ -o detector.onnx --photos test/[/]

    [bold]knownot export model/ -o small.onnx --precision int8[/]

    Model and file answer for the same photos; if a label, a score or a box differs, nothing is
    written. A detector needs photos with objects, as generated ones hold hardly any: yours, or those
    that it was validated on, where they are still the same.

    In float16 or int8 answers do differ: the file is calibrated anew on the validation photos, and
    nothing is written if fewer than 95 % of photos of the known classes, or of the boxes in them, get
    the same label.
    """
    from dataclasses import asdict

    from knownot.cli.photo_arguments import expand
    from knownot.data.thumbnails import FOLDER
    from knownot.export.export import ENDINGS, check_output, export_model
    from knownot.models.model_folder import load
    from knownot.training.recorded_photos import (
        classifier_photos,
        detector_photos,
        spread,
        with_objects,
    )

    output = output or Path(model.resolve().name + ENDINGS[form.value])
    check_output(output, overwrite, form.value)
    compared = expand(photos or [])
    loaded = load(model)
    reduced = precision is not Precision.float32
    trained_on: list[Path] = []
    validated_on: Any = []
    if loaded.task == "detect":
        trained_on, validated_on = detector_photos(model, loaded.classes)
        most = _MOST_COMPARED if reduced else _MOST_WITH_BOXES
        compared = compared or spread(with_objects(validated_on), most)
    elif reduced:
        trained_on, validated_on = classifier_photos(model, loaded.classes)
        compared = compared or spread(validated_on, _MOST_COMPARED)
    with photo_progress(json_output) as begin:
        metadata = export_model(
            loaded,
            output,
            form=form.value,
            precision=precision.value,
            photos=compared,
            trained_on=trained_on,
            validated_on=validated_on,
            nearest=(model / FOLDER).is_dir(),
            overwrite=overwrite,
            advance=begin("photos compared", len(compared)) if compared else lambda done: None,
        )
    unread = len(compared) - metadata.parity.get("given", len(compared))
    if unread > 0:
        stderr().print(
            f"[yellow]note:[/] {unread} of the given photos cannot be read, and were not compared"
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
    stdout().print(f"[bold]{plain(output)}[/], {facts['mebibytes']} MiB, {precision.value}")
    stdout().print((_same if precision is Precision.float32 else _alike)(metadata.task, parity))
    if form is Format.onnx:
        stdout().print(f"next: knownot predict {plain(output)} new-photos/")


def _same(task: str, parity: dict[str, Any]) -> str:
    given = ""
    if parity["given"]:
        given = f", of yours {parity['max_difference_given']:.1e}"
    compared = f"{parity['answers']} boxes" if task == "detect" else "each by two ways"
    return (
        f"same label and unknown flag for {parity['photos']} photos ({parity['given']} of yours), "
        f"{compared}; largest difference of the score {parity['max_difference']:.1e}{given}; "
        f"relative {parity['max_relative']:.1e}, allowed {parity['tolerance']:.0e}"
    )


def _alike(task: str, parity: dict[str, Any]) -> str:
    anew = "calibration unchanged: the validation photos are not there"
    if parity["calibrated_on"]:
        anew = f"calibrated anew on {parity['calibrated_on']} validation photos"
    compared = f"{parity['answers']} photos of known classes"
    if task == "detect":
        compared = f"{parity['answers']} boxes in {parity['photos']} photos"
    return (
        f"same label for {parity['same']} of {compared} (at least {parity['least_same']:.0%}), same "
        f"nearest class for {parity['same_class']}; unknown are {parity['unknown_exported']}, before "
        f"{parity['unknown']}; {anew}"
    )
