"""What a person says of listed photos: a CSV with one row a photo and a column `keep`, y or n."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from knownot.data.kept_files import write_whole
from knownot.errors import DataError

COLUMNS = ("path", "set", "rank", "score", "looks_like", "keep")
_KEEP = {"": None, "y": True, "yes": True, "n": False, "no": False}
# Names of files need not be UTF-8: such bytes are written and read as they are.
_TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}


def write_decisions(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows with the values of `COLUMNS`.

    Raises:
        DataError: If the file holds decisions already, or cannot be written.
    """
    check_undecided(path)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode(**_TEXT)
    write_whole(path, lambda file: file.write_bytes(content))


def check_undecided(path: Path) -> None:
    """Raise `DataError` if a file is there that holds decisions."""
    if path.is_file() and any(keep is not None for keep in read_decisions(path).values()):
        raise DataError(
            f"{path}: holds decisions already; use them with --decisions {path}, or choose another "
            "folder with -o"
        )


def read_decisions(path: Path) -> dict[Path, bool | None]:
    """Whether a photo stays in its set, or None where nobody has decided, by its resolved path.

    Raises:
        DataError: If the file is missing, is no such table, or holds something else in `keep`.
    """
    try:
        text = path.read_bytes().decode(**_TEXT).removeprefix("\ufeff")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    # Spreadsheets of some languages write semicolons.
    first_line = text.partition("\n")[0]
    delimiter = ";" if first_line.count(";") > first_line.count(",") else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return _decisions(reader, path)
    except (csv.Error, ValueError) as error:  # a quote without an end, a NUL
        raise DataError(f"{path}, line {reader.line_num}: {error}") from None


def _decisions(reader: csv.DictReader[str], path: Path) -> dict[Path, bool | None]:
    if not {"path", "keep"} <= set(reader.fieldnames or ()):
        raise DataError(f"{path}: has no columns path and keep; expected a file of knownot audit")
    decisions: dict[Path, bool | None] = {}
    for row in reader:
        answer = (row["keep"] or "").strip().lower()
        if answer not in _KEEP or not row["path"]:
            what = f"keep is {answer!r}; write y, n or nothing" if row["path"] else "no path"
            raise DataError(f"{path}, line {reader.line_num}: {what}")
        photo, keep = Path(row["path"]).resolve(), _KEEP[answer]
        before = decisions.get(photo)
        if keep is None:  # a photo of several sets is listed in each
            keep = before
        if before is not None and keep != before:
            raise DataError(
                f"{path}, line {reader.line_num}: keep is {answer!r}, and was the opposite for the "
                f"same photo before ({photo})"
            )
        decisions[photo] = keep
    return decisions
