"""`knownot predict`: parse, call the library, print."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knownot.cli.answers import Cells, CocoList, Format, Lines, Screen, Writer, output_file
from knownot.cli.console import note_if_nothing_is_unknown, photo_progress, plain, stderr
from knownot.cli.copies import Copies
from knownot.cli.options import Alpha, Device, KeepMib, KeepMost, NoSeed, Score
from knownot.cli.photo_arguments import expand, is_video
from knownot.errors import ConfigError, DataError

if TYPE_CHECKING:
    from knownot.data.inbox import Inbox
    from knownot.evaluation.coco_results import CocoIds
    from knownot.evaluation.predict_video import Answer, Model, Progress


def predict(
    model: Annotated[Path, typer.Argument(help="Model folder, or a file of `knownot export`.")],
    photos: Annotated[
        list[str],
        typer.Argument(
            help="Photos: files, folders or globs ('new/*.jpg'). Videos: files or globs "
            "('new/*.mp4'; also .mov, .avi, .mkv, .webm)."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write, .jsonl or .csv, instead of the screen."
        ),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="(default: by the file's ending, else table) coco: results json of a detector, "
            "needs -o.",
        ),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(
            help="COCO json that gives the ids of --format coco, by file name; photos that it does "
            "not have are left out. (default: 1, 2, ..., told in <output>.images.json)"
        ),
    ] = None,
    save_images: Annotated[
        Path | None,
        typer.Option(help="Folder for annotated copies of the photos and videos."),
    ] = None,
    keep_unknown: Annotated[
        Path | None,
        typer.Option(help="Folder that unknown photos, or boxes of them, are copied to."),
    ] = None,
    keep_most: KeepMost = 1000,
    keep_mib: KeepMib = 1024,
    every: Annotated[int, typer.Option(min=1, help="Every how many frames of a video.")] = 1,
    score: Score = None,
    alpha: Alpha = None,
    box_threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Least score of a detector's box. (default: the model's; with --format coco 0, "
            "since mAP is over all boxes)",
        ),
    ] = None,
    proposals: Annotated[
        bool, typer.Option(help="Detectors: also show objects that no known class claims.")
    ] = False,
    device: Device = "auto",
    seed: NoSeed = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Same as --format jsonl.")] = False,
) -> None:
    """Label photos, or the boxes in them, or call them [bold]unknown[/].

    [bold]knownot predict model/ new-photos/ --save-images seen/[/]

    [bold]knownot predict model/ 'new/*.jpg' -o answers.csv[/]

    [bold]knownot predict model/ new/ --keep-unknown unknown/[/], then knownot triage unknown/

    [bold]knownot predict detector/ street.mp4 --every 5 --save-images seen/[/]

    [bold]knownot predict detector/ photos/ --format coco -o results.json[/]

    A video has an answer for each frame: boxes, or the label of a classifier.

    In COCO results unknown boxes have a category of their own (docs/detection.md).

    Photos and videos that cannot be read are listed with their error; the exit code is then 1.
    """
    if json_output:
        form = Format.jsonl
    form = form or _by_ending(output)
    _check_options(form, output, annotations)
    paths = expand(photos)
    videos = [path for path in paths if is_video(path)]
    if videos:
        from knownot.data.video import require_av

        require_av()
    inbox = None if keep_unknown is None else _inbox(keep_unknown, keep_most, keep_mib, videos)
    loaded = _load(model, device)
    settings = _settings(loaded, form, score, alpha, box_threshold, proposals)
    note_if_nothing_is_unknown(loaded.calibrated_on, loaded.alpha if alpha is None else alpha)
    ids = _coco_ids(paths, annotations, loaded) if form is Format.coco else None
    if ids is not None:
        paths = [path for path in dict.fromkeys(paths) if str(path) in ids.images]
    copies = Copies(loaded.classes, save_images, inbox)
    failed: list[str] = []
    with ExitStack() as stack:
        writer = _writer(stack, form, output, bool(videos), ids)
        begin = stack.enter_context(photo_progress(form is not Format.table and output is None))
        for answer in _answers(loaded, paths, every, copies, begin, settings):
            writer.write(answer)
            if answer.error:
                failed.append(answer.error)
        writer.end()
    for error in failed[:5]:
        stderr().print(f"[yellow]skipped[/] {plain(error)}", soft_wrap=True)
    for error in copies.lost[:5]:
        stderr().print(f"[yellow]not kept[/] {plain(error)}", soft_wrap=True)
    if failed or copies.lost:
        raise typer.Exit(1)


def _inbox(folder: Path, most: int, mebibytes: int, videos: list[Path]) -> Inbox:
    if videos:
        raise ConfigError(f"--keep-unknown: keeps photos, and {videos[0]} is a video; leave it out")
    from knownot.data.inbox import Inbox

    return Inbox(folder, most, mebibytes * 2**20)


def _load(model: Path, device: str) -> Model:
    if not model.is_file():
        from knownot.models.model_folder import load

        return load(model, device=device)
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device: an exported model runs on the CPU, got {device!r}")
    from knownot.runtime import open_onnx

    return open_onnx(model)


def _check_options(form: Format, output: Path | None, annotations: Path | None) -> None:
    if form is Format.table and output is not None:
        raise DataError(f"{output}: a table is for the screen; use --format jsonl, csv or coco")
    if form is Format.coco and output is None:
        raise ConfigError("--format coco: needs a file to write; add -o results.json")
    if form is not Format.coco and annotations is not None:
        raise ConfigError("--annotations: gives the ids of --format coco; add that")


def _settings(
    model: Model,
    form: Format,
    score: str | None,
    alpha: float | None,
    box_threshold: float | None,
    proposals: bool,
) -> dict[str, Any]:
    """What the model's `predict_iter` is called with."""
    settings: dict[str, Any] = {"score": score, "alpha": alpha}
    if model.task == "detect":
        if box_threshold is None and form is Format.coco:
            box_threshold = 0.0
        return {**settings, "box_threshold": box_threshold, "proposals": proposals}
    if form is Format.coco:
        raise ConfigError("--format coco: holds boxes, and the model is a classifier; use jsonl")
    if box_threshold is not None:
        raise ConfigError("--box-threshold: is one of detectors, and the model is a classifier")
    if proposals:
        raise ConfigError("--proposals: is one of detectors, and the model is a classifier")
    return settings


def _coco_ids(paths: list[Path], annotations: Path | None, model: Model) -> CocoIds:
    """Ids of the photos; tells those that are left out."""
    from knownot.evaluation.coco_results import ids_of, numbered

    for video in filter(is_video, paths):
        raise DataError(f"{video}: --format coco is for photos; use --format jsonl for videos")
    ids = (
        numbered(paths, model.classes)
        if annotations is None
        else ids_of(annotations, paths, model.classes)
    )
    if ids.left_out:
        shown = ", ".join(str(path) for path in ids.left_out[:3])
        more = ", ..." if len(ids.left_out) > 3 else ""
        stderr().print(
            f"[yellow]left out[/] {len(ids.left_out)} photos that {plain(annotations)} does not have: "
            f"{plain(shown)}{more}",
            soft_wrap=True,
        )
    for note in ids.notes:
        stderr().print(f"[yellow]note[/] {plain(note)}", soft_wrap=True)
    return ids


def _writer(
    stack: ExitStack, form: Format, output: Path | None, videos: bool, ids: CocoIds | None
) -> Writer:
    """What takes the answers; its files are closed with the stack."""
    if form is Format.table:
        return Screen(videos)
    if ids is not None and output is not None:
        companion = None
        if ids.source is None:
            companion = stack.enter_context(output_file(output.with_suffix(".images.json")))
        return CocoList(stack.enter_context(output_file(output)), ids, companion)
    file = stack.enter_context(output_file(output))
    return Lines(file) if form is Format.jsonl else Cells(file, videos)


def _answers(
    model: Model,
    paths: list[Path],
    every: int,
    copies: Copies,
    begin: Progress,
    settings: dict[str, Any],
) -> Iterator[Answer]:
    """Answers in the order of the paths, for photos and for the frames of videos."""
    for are_videos, group in groupby(paths, is_video):
        if are_videos:
            from knownot.evaluation.predict_video import predict_video

            for path in group:
                yield from predict_video(
                    model, path, every=every, save_to=copies.images, progress=begin, **settings
                )
            continue
        photos = list(group)
        advance = begin("photos", len(photos))
        for answer in model.predict_iter(photos, **settings):
            if answer.error is None:
                copies.keep(answer)
            yield answer
            advance(1)


def _by_ending(output: Path | None) -> Format:
    if output is None:
        return Format.table
    endings = {".csv": Format.csv, ".jsonl": Format.jsonl}
    if output.suffix not in endings:
        raise DataError(f"{output}: expected a name ending in .jsonl or .csv, or add --format")
    return endings[output.suffix]
