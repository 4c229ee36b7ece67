"""`knownot predict`: parse, call the library, print."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from knownot.cli.console import photo_progress, stderr, stdout
from knownot.cli.photo_arguments import expand
from knownot.errors import ConfigError, DataError

if TYPE_CHECKING:
    from knownot.models.prediction import DetectionPrediction, Prediction

    Answer = Prediction | DetectionPrediction


class Format(StrEnum):
    """How answers are written."""

    table = "table"
    jsonl = "jsonl"
    csv = "csv"


def predict(
    model: Annotated[Path, typer.Argument(help="Model folder, or a file of `knownot export`.")],
    photos: Annotated[list[str], typer.Argument(help="Files, folders or globs ('new/*.jpg').")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write, .jsonl or .csv, instead of the screen."
        ),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="(default: by the file's ending, else table)"),
    ] = None,
    save_images: Annotated[
        Path | None,
        typer.Option(help="Folder for annotated copies of the photos."),
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
    json_output: Annotated[bool, typer.Option("--json", help="Same as --format jsonl.")] = False,
) -> None:
    """Label photos, or the boxes in them, or call them [bold]unknown[/].

    [bold]knownot predict model/ new-photos/ --save-images seen/[/]

    [bold]knownot predict model/ 'new/*.jpg' -o answers.csv[/]

    Photos that cannot be read are listed with their error; the exit code is then 1.
    """
    if json_output:
        form = Format.jsonl
    form = form or _by_ending(output)
    if form is Format.table and output is not None:
        raise DataError(f"{output}: a table is for the screen; use --format jsonl or csv")
    paths = expand(photos)
    loaded = _load(model, device)
    answers = []
    with photo_progress(form is not Format.table and output is None) as begin:
        advance = begin("photos", len(paths))
        for answer in loaded.predict_iter(paths, alpha=alpha, score=score):
            answers.append(answer)
            advance(1)
            if save_images is not None and answer.error is None:
                _save_image(answer, loaded.classes, save_images)
    _write(answers, form, output)
    failed = [answer for answer in answers if answer.error]
    for answer in failed[:5]:
        stderr().print(f"[yellow]skipped[/] {answer.error}", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _load(model: Path, device: str) -> Any:
    if not model.is_file():
        from knownot.models.model_folder import load

        return load(model, device=device)
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device: an exported model runs on the CPU, got {device!r}")
    from knownot.runtime import OnnxClassifier

    return OnnxClassifier(model)


def _save_image(answer: Answer, classes: list[str], folder: Path) -> None:
    from knownot.evaluation.annotate import save_annotated, save_drawn
    from knownot.models.prediction import Prediction

    if isinstance(answer, Prediction):
        save_annotated(answer, folder)
    else:
        save_drawn(answer, classes, folder)


def _by_ending(output: Path | None) -> Format:
    if output is None:
        return Format.table
    endings = {".csv": Format.csv, ".jsonl": Format.jsonl, ".json": Format.jsonl}
    if output.suffix not in endings:
        raise DataError(f"{output}: expected a name ending in .jsonl or .csv, or add --format")
    return endings[output.suffix]


def _write(answers: Sequence[Answer], form: Format, output: Path | None) -> None:
    if form is Format.table:
        _print_table(answers)
        return
    if output is None:
        _write_rows(answers, form, sys.stdout)
        return
    temporary = output.with_name(f".{output.name}.part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="") as file:
            _write_rows(answers, form, file)
        temporary.replace(output)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{output}: cannot be written ({error.strerror})") from None


def _write_rows(answers: Sequence[Answer], form: Format, file: TextIO) -> None:
    rows: list[dict[str, Any]] = [answer.to_dict() for answer in answers]
    if form is Format.csv:
        flat = [{k: v for k, v in row.items() if k != "scores"} for row in _csv_rows(rows)]
        writer = csv.DictWriter(file, fieldnames=list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)
        return
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _csv_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a photo, or one row a box; a photo without boxes has one with empty cells."""
    if not rows or "boxes" not in rows[0]:
        return rows
    empty = dict.fromkeys(_BOX_CELLS)
    flat = []
    for row in rows:
        photo = {"path": row["path"], "error": row["error"]}
        for box in row["boxes"] or [{**empty, "box": (None,) * 4}]:
            corners = dict(zip(("x1", "y1", "x2", "y2"), box["box"], strict=True))
            flat.append({**photo, **corners, **{key: box[key] for key in _BOX_CELLS}})
    return flat


_BOX_CELLS = ("label", "is_unknown", "ood_score", "p_value", "nearest_class", "confidence")


def _print_table(answers: Sequence[Answer]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from knownot.models.prediction import Prediction

    table = Table()
    for heading in ("photo", "label", "ood_score", "p-value", "nearest class"):
        table.add_column(
            heading, justify="right" if heading in ("ood_score", "p-value") else "left"
        )
    rows = 0
    unknown = 0
    for answer in answers:
        name = escape(answer.path or "")
        if answer.error:
            table.add_row(name, "[yellow]not readable[/]")
            continue
        found = [answer] if isinstance(answer, Prediction) else answer.boxes
        if not found:
            table.add_row(name, "[dim]nothing found[/]")
        for row in found:
            label = "[bold red]unknown[/]" if row.is_unknown else escape(row.label)
            nearest = f"{escape(row.nearest_class)} {row.confidence:.0%}"
            table.add_row(name, label, f"{row.ood_score:.3f}", f"{row.p_value:.3f}", nearest)
            rows += 1
            unknown += row.is_unknown
    stdout().print(table)
    boxes = "" if not answers or isinstance(answers[0], Prediction) else f", {rows} boxes"
    stdout().print(f"{len(answers)} photos{boxes}, {unknown} unknown")
