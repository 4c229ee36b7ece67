"""Options that several commands have, so that they read and behave the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Score = Annotated[
    str | None,
    typer.Option(help="combined, vos, energy, msp, mahalanobis, knn. (default: the model's)"),
]
Alpha = Annotated[
    float | None,
    typer.Option(help="Share of known photos called unknown. (default: the model's)"),
]
MoreOod = Annotated[
    list[Path] | None,
    typer.Argument(help="More OOD folders, so that --ood people/ textures/ works."),
]
KeepMost = Annotated[int, typer.Option(min=1, help="Photos in that folder; the oldest go first.")]
KeepMib = Annotated[int, typer.Option(min=1, help="MiB in that folder.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")]
NoSeed = Annotated[int, typer.Option(help="Accepted for symmetry; nothing here is random.")]
