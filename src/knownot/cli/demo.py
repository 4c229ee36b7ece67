"""`knownot demo`: the whole idea in about a minute, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from knownot.cli.console import print_json, stderr


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for pictures and numbers.")
    ] = Path("knownot-demo"),
    seed: Annotated[int, typer.Option(help="Seed of the first of the runs.")] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Train with and without VOS on digits, offline, and draw what changes.

    [bold]knownot demo[/]
    """
    from knownot.demo import print_demo, run_demo

    note = stderr()
    results = run_demo(output, seed=seed, progress=None if json_output else note.print)
    if json_output:
        print_json(results)
        return
    print_demo(results)
    note.print(f"pictures and numbers: {output}/")
