"""The results file: one row for each method, seed, OOD set and metric."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from knownot.data.kept_files import write_whole
from knownot.errors import DataError

KNOWN = "known"  # the set of ID test images, in rows of accuracy


@dataclass(frozen=True)
class Row:
    """One number.

    Attributes:
        benchmark: Name of the benchmark.
        protocol: Name of the protocol.
        training: How the model was trained.
        score: Which score; empty for the model's accuracy.
        seed: Seed of the training.
        set: OOD set, or "known".
        group: "near", "far" or "known".
        averaged: Whether means over sets contain it.
        metric: Which metric.
        value: The number, a fraction.
        n_id: ID test images.
        n_ood: Images of the OOD set; 0 for the known ones.
        settings: Fingerprint of the settings, the models' folder names end with it.
        versions: Of the packages that made the number.
    """

    benchmark: str
    protocol: str
    training: str
    score: str
    seed: int
    set: str
    group: str
    averaged: bool
    metric: str
    value: float
    n_id: int
    n_ood: int
    settings: str
    versions: str

    @property
    def method(self) -> tuple[str, str, str, int, str]:
        """What is never measured twice."""
        return self.protocol, self.training, self.score, self.seed, self.settings


def versions() -> str:
    """Versions of the packages behind a number."""
    found = []
    for name in ("knownot", "torch", "timm", "pytorch-ood"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return "; ".join(found)


def read_rows(file: Path) -> list[Row]:
    """The rows of a results file; none if there is no file.

    Raises:
        DataError: If it is something else.
    """
    if not file.is_file():
        return []
    kinds = {field.name: field.type for field in fields(Row)}
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            return [
                Row(**{key: _parse(str(kinds[key]), value) for key, value in line.items()})  # type: ignore[arg-type]
                for line in csv.DictReader(lines)
            ]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(
            f"{file}: is no results file of this version ({error!r}); move it away or choose "
            "another folder with -o"
        ) from None


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Write all rows, whole or not at all."""
    write_table(file, [asdict(row) for row in rows], [field.name for field in fields(Row)])


def write_table(file: Path, lines: list[dict[str, object]], names: list[str]) -> None:
    """Write lines as CSV, whole or not at all; floats with six digits."""

    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, names)
            writer.writeheader()
            for line in lines:
                writer.writerow(
                    {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()}
                )

    write_whole(file, write)


def _parse(kind: str, value: str) -> object:
    if kind == "bool":
        return {"True": True, "False": False}[value]
    return {"int": int, "float": float}.get(kind, str)(value)
