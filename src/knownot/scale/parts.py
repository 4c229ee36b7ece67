"""What a job has done so far: a folder with its model and the rows of each finished part.

    scores.parquet.parts/
      job.json     model, photos and settings, which must be the same to continue
      lock         held by the process that works on it
      model.onnx   the exported model
      00000000.parquet, ...  the rows of each part that is done

A part is there whole or not at all and has one name, so whoever writes it, and however often, no row
is lost and none doubled. All are joined to one file at the end, in the order of the photos.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from knownot.data.kept_files import alone_in, write_text, write_whole
from knownot.errors import ScoringError

ROWS = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.string()),
        ("ood_score", pa.float64()),
        ("p_value", pa.float64()),
        ("is_unknown", pa.bool_()),
        ("error", pa.string()),
    ]
)
_PARTS_JOINED_AT_ONCE = 64
_STATE = "state of the photos"  # in the metadata of a part


class Parts:
    """The parts of a job.

    Args:
        output: Parquet file that they become; their folder stands beside it.
        photos: Paths and URIs, in order.
        size: Photos in a part.

    Attributes:
        folder: Where they are kept.
        model: The exported model in it.
    """

    def __init__(self, output: Path, photos: list[str], size: int) -> None:
        self.output = output
        self.folder = output.with_name(output.name + ".parts")
        self.model = self.folder / "model.onnx"
        self._photos = photos
        self._size = size
        self._description = self.folder / "job.json"
        self._states: dict[int, list[str]] = {}  # of the photos of parts to be done, before

    def __len__(self) -> int:
        return -(-len(self._photos) // self._size)

    def photos(self, number: int) -> list[str]:
        """Photos of a part."""
        return self._photos[number * self._size : (number + 1) * self._size]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process works on the same output.

        Raises:
            DataError: If the folder cannot be written.
            ScoringError: If one does.
        """
        busy = ScoringError(
            f"{self.output}: another process is writing it; wait for its end, or choose another name "
            "with -o"
        )
        with alone_in(self.folder, busy):
            try:
                yield
            finally:
                if not self._description.exists():  # nothing was begun, or all is joined
                    shutil.rmtree(self.folder, ignore_errors=True)

    def begun(self, job: dict[str, Any]) -> bool:
        """Whether an earlier run has begun the same job.

        Raises:
            ScoringError: If it has begun another one.
        """
        if not self._description.exists():
            return False
        try:
            earlier = dict(json.loads(self._description.read_bytes()))
        except ValueError:  # after a power cut
            earlier = {}
        if differing := [name for name in job if earlier.get(name) != job[name]]:
            raise ScoringError(
                f"{self.folder}: begun with other {', '.join(differing)}; continue with the same, "
                "remove the folder, or choose another name with -o"
            )
        return True

    def begin(self, job: dict[str, Any], model: Path) -> None:
        """Make the folder, with a copy of the exported model; parts of another job go."""
        for part in self.folder.glob("[0-9]*.parquet"):
            part.unlink()
        write_whole(self.model, lambda file: shutil.copyfile(model, file))
        write_text(self._description, json.dumps(job, indent=1))

    def missing(self) -> list[int]:
        """Parts that are not done, or hold photos that have changed since."""
        missing = [number for number in range(len(self)) if not self._is_done(number)]
        self._states = {number: self._state(number) for number in missing}
        return missing

    def write(self, number: int, rows: pa.Table) -> None:
        """Keep the rows of a part.

        Raises:
            DataError: If they cannot be written.
        """
        state = json.dumps(self._states.get(number) or self._state(number))
        described = rows.replace_schema_metadata({_STATE: state})
        write_whole(self._file(number), lambda file: pq.write_table(described, file))

    def join(self) -> tuple[int, int]:
        """Write the output from all parts, in order, and remove the folder.

        Returns:
            How many photos are unknown, and how many have an error.
        """
        unknown = errors = 0

        def write(file: Path) -> None:
            nonlocal unknown, errors
            with pq.ParquetWriter(file, ROWS) as writer:
                for start in range(0, len(self), _PARTS_JOINED_AT_ONCE):
                    numbers = range(start, min(start + _PARTS_JOINED_AT_ONCE, len(self)))
                    rows = pa.concat_tables(map(self._read, numbers))
                    writer.write_table(rows)
                    unknown += pc.sum(rows["is_unknown"]).as_py() or 0  # null of nothing but errors
                    errors += len(rows) - rows["error"].null_count

        write_whole(self.output, write)
        shutil.rmtree(self.folder, ignore_errors=True)
        return unknown, errors

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:08}.parquet"

    def _read(self, number: int) -> pa.Table:
        with pq.ParquetFile(self._file(number)) as file:
            return file.read().replace_schema_metadata(None)

    def _is_done(self, number: int) -> bool:
        try:  # after a power cut a file may be there, and empty
            found = pq.read_metadata(self._file(number))
        except (OSError, pa.ArrowException):
            return False
        if found.num_rows != len(self.photos(number)):
            return False
        before = json.loads((found.metadata or {}).get(_STATE.encode(), b"null"))
        now = self._state(number)
        return before is None or all(b == n or not n for b, n in zip(before, now, strict=True))

    def _state(self, number: int) -> list[str]:
        """Size and time of change of each photo; empty of one elsewhere, or not there any more."""
        return [_state_of(photo) for photo in self.photos(number)]


def _state_of(photo: str) -> str:
    try:
        found = os.stat(photo)
    except (OSError, ValueError):
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"
