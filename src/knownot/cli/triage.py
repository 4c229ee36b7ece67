"""`knownot triage`: parse, call the library, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from knownot.cli.console import photo_progress, plain, print_json, stderr, stdout
from knownot.cli.options import NoSeed
from knownot.errors import ConfigError


def triage(
    folder: Annotated[Path, typer.Argument(help="Folder of --keep-unknown, or any of photos.")],
    model: Annotated[
        Path | None,
        typer.Option(
            help="Classifier whose backbone says what is alike. (default: an ImageNet backbone)"
        ),
    ] = None,
    min_size: Annotated[int, typer.Option(min=2, help="Least photos of a group.")] = 3,
    name: Annotated[
        list[str] | None,
        typer.Option(help="NUMBER=CLASS: copy this group of the last triage as a class."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Set of photos that named groups are copied to."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps; of --model.")] = "auto",
    seed: NoSeed = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Group unknown photos, name a group, [bold]train on it next[/].

    [bold]knownot triage unknown/[/]

    [bold]knownot triage unknown/ --name 3=bear -o new_set/[/]

    The first writes unknown/triage.html, which shows the groups with their numbers.
    """
    if bool(name) != (output is not None):
        raise ConfigError("--name and -o go together: --name 3=bear -o new_set/")
    if name and output is not None:
        _copy(folder, name, output, json_output)
    else:
        _group(folder, model, device, min_size, json_output)


def _copy(folder: Path, name: list[str], output: Path, json_output: bool) -> None:
    from knownot.evaluation.triage import copy_named, gone, parsed_names

    names = parsed_names(name)
    copied = copy_named(folder, names, output)
    if missing := gone(folder, names):
        stderr().print(f"[yellow]note:[/] {missing} of these photos are in {plain(folder)} no more")
    if json_output:
        print_json({str(output / key): count for key, count in copied.items()})
        return
    for key, count in copied.items():
        stdout().print(f"{count} photos in {output / key}", soft_wrap=True, markup=False)


def _group(folder: Path, model: Path | None, device: str, min_size: int, json_output: bool) -> None:
    from knownot.data.image_folder import list_photos
    from knownot.evaluation.triage import triage as run

    total = len(list_photos(folder))
    loaded = None if model is None else _classifier(model, device)
    with photo_progress(json_output) as begin:
        found = run(folder, loaded, min_size=min_size, progress=begin("photos", total))
    for reason in list(found.skipped.values())[:5]:
        stderr().print(f"[yellow]skipped[/] {plain(reason)}", soft_wrap=True)
    if json_output:
        groups = [
            {"number": c.number, "photos": [str(p) for p in c.photos], "nearest_class": c.nearest}
            for c in found.clusters
        ]
        alone = [str(path) for path in found.alone]
        print_json({"gallery": str(found.gallery), "groups": groups, "alone": alone})
        return
    for cluster in found.clusters:
        nearest = f", nearest class {cluster.nearest}" if cluster.nearest else ""
        stdout().print(f"{cluster.number}: {len(cluster.photos)} similar{nearest}", markup=False)
    stdout().print(f"{len(found.alone)} like no others", markup=False)
    stdout().print(f"look at {found.gallery}", soft_wrap=True, markup=False)
    if found.clusters:
        line = f"next: knownot triage {folder} --name 1=CLASS -o new_set/"
        stdout().print(line, soft_wrap=True, markup=False)


def _classifier(folder: Path, device: str) -> Any:
    from knownot.models.classifier import UnknownAwareClassifier
    from knownot.models.model_folder import load

    loaded = None if folder.is_file() else load(folder, device=device)
    if not isinstance(loaded, UnknownAwareClassifier):
        raise ConfigError(f"{folder}: --model needs the folder of a classifier; leave it out")
    return loaded
