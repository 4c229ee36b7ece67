"""Means over seeds and sets, with standard deviations and bootstrap intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

from knownot.benchmark.bootstrap import Bootstrap, interval
from knownot.benchmark.protocols import get_protocol
from knownot.benchmark.results import KNOWN, Row, write_table
from knownot.benchmark.workplace import Workplace
from knownot.data.kept_files import read_tensors

MEAN, NEAR, FAR = "mean", "near", "far"


@dataclass(frozen=True)
class Line:
    """One number of a method over seeds.

    Attributes:
        training: How the models were trained.
        score: Which score; empty for accuracy.
        set: OOD set, "known", or "mean", "near", "far" for means over sets.
        metric: Which metric.
        mean: Mean over seeds, a fraction.
        std: Standard deviation over seeds; None for one seed.
        low: Lower end of the 95 % bootstrap interval of the mean over seeds, where there is one.
        high: Upper end.
        seeds: Number of seeds.
    """

    training: str
    score: str
    set: str
    metric: str
    mean: float
    std: float | None
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class Summary:
    """All lines, found by what they are about.

    Attributes:
        lines: The lines.
        versions: Of the packages that made the numbers; several if they were not made together.
    """

    lines: list[Line]
    versions: list[str] = field(default_factory=list)

    def line(self, training: str, score: str, name: str, metric: str) -> Line | None:
        """The line, or None if it was not measured."""
        for line in self.lines:
            if (line.training, line.score, line.set, line.metric) == (
                training,
                score,
                name,
                metric,
            ):
                return line
        return None

    def methods(self, metric: str) -> list[tuple[str, str]]:
        """Training and score of every method, the lowest mean of a metric first."""
        lines = [line for line in self.lines if line.set == MEAN and line.metric == metric]
        lines.sort(key=lambda line: line.mean)
        return [(line.training, line.score) for line in lines]

    def save(self, file: Path) -> None:
        """Write all lines as CSV."""
        write_table(file, [asdict(line) for line in self.lines], [f.name for f in fields(Line)])


def summarise(place: Workplace, protocol: str, rows: list[Row]) -> Summary:
    """Summarise the rows that belong to the benchmark's settings.

    Args:
        place: Settings and folders; the scores kept there make the intervals.
        protocol: Which protocol's rows.
        rows: All rows of the results file.
    """
    config = place.config
    by_method: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        wanted = row.training in config.methods and row.seed in config.seeds
        if (
            wanted
            and row.protocol == protocol
            and (row.score == "" or row.score in config.scores(row.training))
            and row.settings == place.fingerprint(row.training, row.seed) + config.code(row.score)
            and (row.set == KNOWN or row.set in config.sets)
        ):
            if row.set != KNOWN:  # a set may have been moved to another group since
                group, averaged = config.group(row.set), row.set not in config.apart
                row = replace(row, group=group, averaged=averaged)
            by_method.setdefault((row.training, row.score), []).append(row)
    lines: list[Line] = []
    for (training, score), of_method in by_method.items():
        replicates = {} if score == "" else _replicates(place, protocol, training, score, of_method)
        lines += _lines(training, score, of_method, replicates, get_protocol(protocol).leading)
    used = {row.versions for of_method in by_method.values() for row in of_method}
    return Summary(lines, sorted(used))


def _lines(
    training: str, score: str, rows: list[Row], replicates: dict[str, Tensor], leading: str
) -> list[Line]:
    seeds = sorted({row.seed for row in rows})
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row.set, [row.set])
        if row.averaged:
            for group in (MEAN, row.group):
                if row.set not in groups.setdefault(group, []):
                    groups[group].append(row.set)
    value = {(row.seed, row.set, row.metric): row.value for row in rows}
    lines = []
    for metric in dict.fromkeys(row.metric for row in rows):
        for group, names in groups.items():
            of_seeds = [mean(value[seed, name, metric] for name in names) for seed in seeds]
            ends: tuple[float | None, float | None] = (None, None)
            if metric == leading and all(name in replicates for name in names):
                ends = interval(torch.stack([replicates[name] for name in names]).mean(0))
            std = stdev(of_seeds) if len(seeds) > 1 else None
            lines.append(
                Line(training, score, group, metric, mean(of_seeds), std, *ends, len(seeds))
            )
    return lines


def _replicates(
    place: Workplace, protocol: str, training: str, score: str, rows: list[Row]
) -> dict[str, Tensor]:
    """Bootstrap values (B,) of the leading metric of every set, mean over seeds."""
    bootstrap = Bootstrap(place.config.replicates, get_protocol(protocol).ood_positive)
    of_seeds = []
    for seed in sorted({row.seed for row in rows}):
        scores = read_tensors(place.scores_file(training, seed, score))
        if scores is None:  # the folder holds the results alone
            return {}
        ood = {name: scores[name] for name in {row.set for row in rows} if name in scores}
        of_seeds.append(bootstrap.fpr95(scores[KNOWN], ood))
    return {
        name: torch.stack([values[name] for values in of_seeds]).mean(0) for name in of_seeds[0]
    }
