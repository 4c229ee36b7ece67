"""`knownot demo`: the whole idea in about a minute, offline."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from knownot.cli.console import plain, print_json, stderr


class Task(StrEnum):
    """What is demonstrated."""

    classify = "classify"
    detect = "detect"


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for pictures and numbers.")
    ] = Path("knownot-demo"),
    task: Annotated[
        Task, typer.Option(help="classify: digits, a minute. detect: scenes, a few minutes.")
    ] = Task.classify,
    seed: Annotated[int, typer.Option(help="Seed of the first of the runs.")] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Train with and without VOS, offline, and draw what changes.

    [bold]knownot demo[/]

    [bold]knownot demo --task detect[/]   unknown shapes in rendered scenes, marked box by box
    """
    note = stderr()
    progress = None if json_output else note.print
    show: Callable[[dict[str, Any]], None]
    if task is Task.detect:
        from knownot.demo.detection import print_detection_demo as show
        from knownot.demo.detection import run_detection_demo

        results = run_detection_demo(output, seed=seed, progress=progress)
    else:
        from knownot.demo.run import print_demo as show
        from knownot.demo.run import run_demo

        results = run_demo(output, seed=seed, progress=progress)
    if json_output:
        print_json(results)
        return
    show(results)
    note.print(f"pictures and numbers: {plain(output)}/", soft_wrap=True)
