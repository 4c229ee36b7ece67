"""How `knownot predict` writes its answers, each as it comes: table, lines, CSV, COCO results."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from knownot.cli.console import stdout
from knownot.data.plain_json import to_json
from knownot.errors import DataError

if TYPE_CHECKING:
    from rich.console import JustifyMethod

    from knownot.evaluation.coco_results import CocoIds
    from knownot.models.prediction import Detection, DetectionPrediction, Prediction

    Answer = Prediction | DetectionPrediction


class Format(StrEnum):
    """How answers are written."""

    table = "table"
    jsonl = "jsonl"
    csv = "csv"
    coco = "coco"


class Writer(Protocol):
    """Takes answers one after another."""

    def write(self, answer: Answer) -> None:
        """Write one answer."""

    def end(self) -> None:
        """Write what comes after the last."""


class Lines:
    """One JSON object a line."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, answer: Answer) -> None:
        """Write one line; at once, for a program that reads along."""
        self.file.write(to_json(answer.to_dict(), indent=None, ensure_ascii=False) + "\n")
        self.file.flush()

    def end(self) -> None:
        """Nothing more."""


class Cells:
    """CSV: one row a photo or frame, or one row a box; one with empty cells if there is no box."""

    def __init__(self, file: TextIO, videos: bool) -> None:
        self.file = file
        # Before the first answer: it may be of a photo.
        self.frame = ("frame", "time") if videos else ()
        self.writer: csv.DictWriter[str] | None = None

    def write(self, answer: Answer) -> None:
        """Write the rows of one answer, after the first row's names."""
        row = answer.to_dict()
        row.pop("scores", None)
        for cells in _box_rows(row) if "boxes" in row else [row]:
            if self.frame:
                frame = {key: row.get(key) for key in self.frame}
                cells = {"path": row["path"], **frame, **cells}
            if self.writer is None:
                self.writer = csv.DictWriter(self.file, fieldnames=list(cells))
                self.writer.writeheader()
            self.writer.writerow(cells)

    def end(self) -> None:
        """Nothing more."""


def _box_rows(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    empty = {**dict.fromkeys(_BOX_CELLS), "box": (None,) * 4}
    for box in row["boxes"] or [empty]:
        corners = dict(zip(("x1", "y1", "x2", "y2"), box["box"], strict=True))
        cells = {key: box[key] for key in _BOX_CELLS}
        yield {"path": row["path"], "error": row["error"], **corners, **cells}


_ONE = {"photos": "photo", "not readable": "not readable", "frames": "frame", "boxes": "box"}
_BOX_CELLS = ("label", "is_unknown", "ood_score", "p_value", "nearest_class", "confidence")


class CocoList:
    """The list of COCO results, one box a line; without an annotation file one is written beside.

    Args:
        file: Takes the list.
        ids: Ids of photos and categories.
        companion: Takes the ids of the photos, or None.
    """

    def __init__(self, file: TextIO, ids: CocoIds, companion: TextIO | None) -> None:
        self.file = file
        self.ids = ids
        self.companion = companion
        self.images: list[dict[str, Any]] = []
        self.separator = "[\n"

    def write(self, answer: Answer) -> None:
        """Write the boxes of one photo; of one that cannot be read nothing."""
        from knownot.models.prediction import DetectionPrediction

        assert isinstance(answer, DetectionPrediction)
        if answer.error is not None:
            return
        if self.companion is not None:
            self.images.append(self.ids.image(answer))
        for row in self.ids.rows(answer):
            self.file.write(self.separator + json.dumps(row))
            self.separator = ",\n"

    def end(self) -> None:
        """Close the list and write the ids."""
        self.file.write("\n]\n" if self.separator == ",\n" else "[]\n")
        if self.companion is not None:
            annotations = self.ids.annotations(self.images)
            self.companion.write(to_json(annotations, indent=None, ensure_ascii=False))


class Screen:
    """A table; a long one comes in pieces, each with its headings, so that none grows large."""

    _PIECE = 500

    def __init__(self, videos: bool) -> None:
        self.videos = videos
        self.table: Any = None
        self.counts: Counter[str] = Counter()

    def write(self, answer: Answer) -> None:
        """Add the rows of one answer."""
        from rich.markup import escape

        from knownot.data.video import is_video_name
        from knownot.models.prediction import Prediction

        if self.table is None:
            self.table = self._new_table()
        name = [escape(answer.path or "")]
        if self.videos:
            frame = answer.frame is not None
            name += [str(answer.frame), f"{answer.time:.2f} s"] if frame else ["", ""]
        if answer.frame is not None:
            self.counts["frames"] += 1
        elif not is_video_name(Path(answer.path or "")):
            self.counts["photos"] += 1
        if isinstance(answer, Prediction):
            found: Sequence[Prediction | Detection] = [answer]
        else:
            found = answer.boxes
            self.counts["boxes"] += len(found)
        if answer.error:
            self.table.add_row(*name, "[yellow]not readable[/]")
            self.counts["not readable"] += 1
            found = []
        elif not found:
            self.table.add_row(*name, "[dim]nothing found[/]")
        for row in found:
            label = "[bold red]unknown[/]" if row.is_unknown else escape(row.label)
            nearest = f"{escape(row.nearest_class or '–')} {row.confidence:.0%}"
            numbers = (f"{row.ood_score:.3f}", f"{row.p_value:.3f}")
            self.table.add_row(*name, label, *numbers, nearest)
            self.counts["unknown"] += row.is_unknown
        if self.table.row_count >= self._PIECE:
            self._print()

    def end(self) -> None:
        """Print the rest and the counts."""
        self._print()
        shown = [what for what in _ONE if what in self.counts]
        counts = [(self.counts[what], what) for what in shown]
        words = [f"{count} {_ONE[what] if count == 1 else what}" for count, what in counts]
        stdout().print(", ".join([*words, f"{self.counts['unknown']} unknown"]))

    def _print(self) -> None:
        if self.table is not None:
            stdout().print(self.table)
            self.table = None

    def _new_table(self) -> Any:
        from rich.table import Table

        table = Table()
        frame = ("frame", "time") if self.videos else ()
        for heading in ("photo", *frame, "label", "ood_score", "p-value", "nearest class"):
            number = heading in (*frame, "ood_score", "p-value")
            justify: JustifyMethod = "right" if number else "left"
            # A long path is broken, not cut: its end tells photos apart.
            table.add_column(heading, justify=justify, overflow="fold")
        return table


@contextmanager
def output_file(path: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears under its name when all is written.

    Raises:
        DataError: If the file cannot be written.
    """
    if path is None:
        if isinstance(sys.stdout, TextIOWrapper):  # names of files that are no text go through
            sys.stdout.reconfigure(errors="surrogateescape")
        yield sys.stdout
        return
    path = path.resolve() if path.is_symlink() else path  # what a link leads to is replaced
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the name of a file")
    if path.exists() and not path.is_file():  # a device or a pipe stays what it is
        with _opened(path) as file:
            yield file
        return
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _opened(temporary) as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _opened(path: Path) -> TextIO:
    # Names of files may be no text: they go through as they are.
    return path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
