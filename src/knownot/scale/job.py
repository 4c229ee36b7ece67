"""The folder of a job: what it scores, the list of its photos, and the parts that are done.

    scores.parquet.parts/
      job.json        model, list and settings, which must be the same to continue
      photos.arrow    the list, one record batch a part
      00000000.parquet, ...  the rows of each part that is done

A part is there whole or not at all and has one name, so whoever writes it, and however often, no row
is lost and none doubled. All is joined to one file at the end, in the order of the list.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from knownot.data.kept_files import write_whole
from knownot.errors import DataError, ScoringError

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
PARTS = pa.schema([("part", pa.int64()), ("photos", pa.list_(pa.string()))])
_KEY = b"knownot"
_ROW_GROUP = 65_536


@dataclass(frozen=True)
class JobDescription:
    """What the rows of a job depend on.

    Attributes:
        model: SHA-256 of the exported file.
        photos: SHA-256 of the list of photos.
        number: How many photos it has.
        score: Name of the score that decides.
        alpha: Share of in-distribution photos that may be called unknown.
        part_size: Photos in a part.
        format: Version of this description.
    """

    model: str
    photos: str
    number: int
    score: str
    alpha: float
    part_size: int
    format: int = 1

    def check_same(self, text: str | bytes, file: Path, remedy: str) -> None:
        """Raise `ScoringError` unless `text` is the JSON of the same description."""
        try:
            other = json.loads(text)
            if not isinstance(other, dict):
                raise ValueError("no object")
        except ValueError:
            raise ScoringError(f"{file}: its description is damaged; {remedy}") from None
        differing = [name for name, value in asdict(self).items() if other.get(name) != value]
        if differing:
            words = ", ".join(_WORDS.get(name, name) for name in differing)
            raise ScoringError(f"{file}: is of another job ({words}); {remedy}")


_WORDS = {"model": "another model", "photos": "other photos", "number": "another number of them"}


class Job:
    """A job in its folder; made by `opened`."""

    def __init__(self, output: Path, folder: Path, description: JobDescription) -> None:
        self.output = output
        self.folder = folder
        self.description = description
        # Mapped, not read: the list may be larger than memory.
        self._list = pa.ipc.open_file(pa.memory_map(str(folder / "photos.arrow")))

    def __len__(self) -> int:
        return int(self._list.num_record_batches)

    def part(self, number: int) -> pa.Table:
        """One row of `PARTS`: the photos of a part."""
        return pa.Table.from_batches([self._list.get_batch(number)])

    def missing(self) -> list[int]:
        """Parts that are not done."""
        return [number for number in range(len(self)) if not self._is_whole(number)]

    def size(self, number: int) -> int:
        """Photos of a part."""
        size, count = self.description.part_size, self.description.number
        return min(size, count - number * size)

    def write(self, number: int, rows: pa.Table) -> None:
        """Keep the rows of a part.

        Raises:
            ScoringError: If they are not those of its photos.
            DataError: If they cannot be written.
        """
        if rows["path"].to_pylist() != self.part(number)["photos"][0].as_py():
            raise ScoringError(f"part {number}: its rows are not those of its photos")
        write_whole(self._file(number), lambda file: pq.write_table(rows, file))

    def join(self, advance: Callable[[int], None]) -> Counts:
        """Write the output from all parts, in order, and remove the folder."""
        counts = Counts()
        schema = ROWS.with_metadata({_KEY: json.dumps(asdict(self.description))})

        def write(file: Path) -> None:
            with pq.ParquetWriter(file, schema) as writer:
                waiting: list[pa.Table] = []
                for number in range(len(self)):
                    waiting.append(pq.read_table(self._file(number), schema=ROWS))
                    counts.add(waiting[-1])
                    advance(len(waiting[-1]))
                    if sum(map(len, waiting)) >= _ROW_GROUP:
                        writer.write_table(pa.concat_tables(waiting).cast(schema))
                        waiting.clear()
                if waiting:
                    writer.write_table(pa.concat_tables(waiting).cast(schema))

        write_whole(self.output, write)
        if counts.photos != self.description.number:
            raise ScoringError(f"{self.output}: expected {self.description.number} rows")
        shutil.rmtree(self.folder, ignore_errors=True)
        return counts

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:08}.parquet"

    def _is_whole(self, number: int) -> bool:
        try:  # after a power cut a file may be there, and empty
            return bool(pq.read_metadata(self._file(number)).num_rows == self.size(number))
        except (OSError, pa.ArrowException):
            return False


@dataclass
class Counts:
    """How many rows of each kind."""

    photos: int = 0
    unknown: int = 0
    errors: int = 0

    def add(self, rows: pa.Table) -> None:
        """Count rows of `ROWS`."""
        self.photos += len(rows)
        self.unknown += rows["is_unknown"].to_pylist().count(True)
        self.errors += len(rows) - rows["error"].null_count


@contextmanager
def opened(
    output: Path, photos: Iterable[str], describe: Callable[[str, int], JobDescription], part: int
) -> Iterator[Job | Counts]:
    """The job that writes `output`, begun or continued; or its counts where it is finished.

    Args:
        output: Parquet file; the folder stands beside it.
        photos: Paths and URIs.
        describe: From checksum and length of the list to the whole description.
        part: Photos in a part.

    Raises:
        ScoringError: If the output or the folder is of another job, or another process is at it.
        DataError: If there is no photo or something cannot be written.
    """
    folder = output.with_name(output.name + ".parts")
    described = folder / "job.json"
    existed = folder.is_dir()
    with _locked(folder):
        try:
            fresh = folder / "photos.new.arrow"
            description = describe(*_write_list(fresh, photos, part))
            if output.exists():
                remedy = "remove it, or choose another name with -o"
                description.check_same(_described_in(output), output, remedy)
                shutil.rmtree(folder, ignore_errors=True)
                yield _counted(output)
                return
            if described.exists():
                remedy = (
                    "continue with what it was begun with, remove the folder, or choose another -o"
                )
                description.check_same(described.read_bytes(), folder, remedy)
            os.replace(fresh, folder / "photos.arrow")
            text = json.dumps(asdict(description), indent=1)
            write_whole(described, lambda file: file.write_text(text))
        except BaseException:
            if not existed:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        yield Job(output, folder, description)


def _write_list(file: Path, photos: Iterable[str], size: int) -> tuple[str, int]:
    """Write the list, one batch a part; its checksum and length."""
    checksum, number = hashlib.sha256(), 0
    try:
        with pa.ipc.new_file(str(file), PARTS) as writer:
            left = iter(photos)
            for i in count():
                if not (names := list(islice(left, size))):
                    break
                # An absolute path: the same words in another folder are other photos.
                absolute = (name if "://" in name else os.path.abspath(name) for name in names)
                checksum.update("".join(f"{name}\0" for name in absolute).encode("utf-8"))
                number += len(names)
                writer.write_batch(pa.record_batch([[i], [names]], schema=PARTS))
    except (UnicodeEncodeError, OSError) as error:
        raise DataError(f"{file}: the list cannot be written ({error})") from None
    return checksum.hexdigest(), number


def _described_in(output: Path) -> bytes:
    try:
        metadata = pq.read_schema(output).metadata or {}
    except (OSError, pa.ArrowException):
        metadata = {}
    found: bytes = metadata.get(_KEY, b"")
    return found


def _counted(output: Path) -> Counts:
    counts = Counts()
    with pq.ParquetFile(output) as file:
        for batch in file.iter_batches(columns=["is_unknown", "error"]):
            counts.add(pa.Table.from_batches([batch]))
    return counts


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder; a killed one leaves no lock behind."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ScoringError(f"{folder}: another process is at this job") from None
        yield
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_UN)
