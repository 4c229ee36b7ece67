"""What the evaluations of classifiers and detectors share: names of sets, files of a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from knownot.data.kept_files import write_text
from knownot.data.plain_json import to_json
from knownot.errors import DataError

Progress = Callable[[str, int], Callable[[int], None]]


def set_names(folders: Sequence[str | Path]) -> dict[str, Path]:
    """Folders by their own name, or by their whole path where two share a name."""
    names = [Path(folder).resolve().name for folder in folders]
    names = [
        name if names.count(name) == 1 else str(folder)
        for name, folder in zip(names, folders, strict=True)
    ]
    names = ["ID/" if name == "ID" else name for name in names]  # the known photos are called so
    return dict(zip(names, map(Path, folders), strict=True))


def save_report(
    summary: dict[str, Any], folder: str | Path, write_page: Callable[[Path], Path]
) -> Path:
    """Write `metrics.json`, and `report.html` by `write_page`, to a folder; returns the latter.

    Raises:
        DataError: If the folder cannot be written.
    """
    folder = Path(folder)
    write_text(folder / "metrics.json", to_json(summary) + "\n")
    try:
        return write_page(folder / "report.html")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from None
