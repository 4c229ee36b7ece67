"""The reports `report.md` and `report.html`: the same tables twice, the page with a figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from knownot.benchmark.config import BenchmarkConfig
from knownot.benchmark.protocols import file_of, get_protocol
from knownot.benchmark.results import KNOWN
from knownot.benchmark.scores import OURS
from knownot.benchmark.summary import FAR, MEAN, NEAR, Line, Summary
from knownot.benchmark.workplace import Workplace
from knownot.data.kept_files import write_text
from knownot.evaluation.figures import ID_COLOUR, OOD_COLOUR, as_png
from knownot.evaluation.html import data_url, render

DEFAULT = ("vos", "combined")  # what `knownot train` and `knownot predict` do unasked
_NAMES = {
    "fpr95": "FPR95, ID positive",
    "fpr95_ood_positive": "FPR95, OOD positive",
    "auroc": "AUROC",
    "aupr_in": "AUPR in",
    "aupr_out": "AUPR out",
}


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: What it shows.
        headings: Of the columns; the first column is text, the others numbers.
        rows: Cells; as many in each as there are headings.
        chosen: Indices of rows to emphasise.
    """

    title: str
    headings: list[str]
    rows: list[list[str]]
    chosen: list[int]

    def markdown(self) -> str:
        """As a Markdown table under its title."""
        headings, *rows = (
            [cell.replace("|", "\\|") for cell in row] for row in (self.headings, *self.rows)
        )
        lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
        for i, row in enumerate(rows):
            cells = [f"**{cell}**" for cell in row] if i in self.chosen else row
            lines.append(f"| {' | '.join(cells)} |")
        return f"{self.title}\n\n" + "\n".join(lines)


def write_report(place: Workplace, protocol: str, summary: Summary, failed: dict[str, str]) -> Path:
    """Write both reports to the output folder and return the page's path."""
    tables = main_tables(place.config, protocol, summary)
    if not place.config.tables:
        tables += [
            area_table(place.config, protocol, summary),
            set_table(place.config, protocol, summary),
        ]
    facts = _facts(place, protocol, summary)
    notes = [f"{method}: {reason}" for method, reason in failed.items()]
    lines = [f"# {place.config.about}", *(f"- {fact}" for fact in facts)]
    text = "\n".join(lines) + "\n\n" + "\n\n".join(table.markdown() for table in tables) + "\n"
    if notes:
        text += "\nNot computed:\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
    write_text(place.output / file_of("report.md", protocol), text)
    page = render(
        "benchmark",
        title=place.config.about,
        facts=facts,
        tables=tables,
        notes=notes,
        figure=data_url(_figure(place.config, protocol, summary), "png"),
    )
    path = place.output / file_of("report.html", protocol)
    write_text(path, page)
    return path


def main_tables(config: BenchmarkConfig, protocol: str, summary: Summary) -> list[Table]:
    """The tables that a person wants to see first: the configuration's own, or all methods."""
    if not config.tables:
        return [accuracy_table(config, summary), method_table(config, protocol, summary)]
    return [
        training_table(title, trainings, config, protocol, summary)
        for title, trainings in config.tables.items()
    ]


def training_table(
    title: str, trainings: list[str], config: BenchmarkConfig, protocol: str, summary: Summary
) -> Table:
    """Some trainings, a row each: accuracy, and every score's mean over far and near sets."""
    metric = get_protocol(protocol).leading
    scores = list(dict.fromkeys(score for t in trainings for score in config.scores(t)))
    groups = [
        group
        for group in (FAR, NEAR)
        if any(config.group(name) == group for name in config.sets if name not in config.apart)
    ]
    columns = [(score, group) for score in scores for group in groups]
    rows = [
        [
            config.training_of(training).about,
            _spread(summary.line(training, "", KNOWN, "accuracy")),
            *(_spread(summary.line(training, score, group, metric)) for score, group in columns),
        ]
        for training in trainings
    ]
    headings = [_made(config), "accuracy", *(f"{shown(s)}, {group}" for s, group in columns)]
    chosen = [i for i, training in enumerate(trainings) if training == DEFAULT[0]]
    return Table(f"{title}: accuracy and {_NAMES[metric]}, %", headings, rows, chosen)


def accuracy_table(config: BenchmarkConfig, summary: Summary) -> Table:
    """ID accuracy of every training."""
    found = [line for line in summary.lines if line.set == KNOWN]
    rows = [[config.training_of(line.training).about, _spread(line)] for line in found]
    return Table("ID accuracy, %", [_made(config), "accuracy"], rows, [])


def method_table(config: BenchmarkConfig, protocol: str, summary: Summary) -> Table:
    """Every method, the best first: means over all sets, near and far ones."""
    metric = get_protocol(protocol).leading
    methods = summary.methods(metric)
    groups = [
        group
        for group in (MEAN, NEAR, FAR)
        if any(line.set == group and line.metric == metric for line in summary.lines)
    ]
    headings = [_made(config), "score", *groups, "95 % interval of the mean", "AUROC"]
    rows = []
    for training, score in methods:
        lines = [summary.line(training, score, group, metric) for group in groups]
        auroc = summary.line(training, score, MEAN, "auroc")
        rows.append(
            [training, shown(score), *map(_spread, lines), _interval(lines[0]), _spread(auroc)]
        )
    title = f"{_NAMES[metric]}, %, lower is better: means over sets; AUROC, %, of the same sets"
    return Table(title, headings, rows, _chosen(config, methods))


def area_table(config: BenchmarkConfig, protocol: str, summary: Summary) -> Table:
    """Every method's areas under curves: means over near sets, over far ones, and over all."""
    methods = summary.methods(get_protocol(protocol).leading)
    areas = [name for name in get_protocol(protocol).metrics if not name.startswith("fpr95")]
    measured = {(line.set, line.metric) for line in summary.lines}
    columns = [(area, group) for area in areas for group in (MEAN, NEAR, FAR)]
    columns = [(area, group) for area, group in columns if (group, area) in measured]
    rows = [
        [training, shown(score)]
        + [_spread(summary.line(training, score, group, area)) for area, group in columns]
        for training, score in methods
    ]
    headings = [_made(config), "score", *(f"{_NAMES[area]}, {group}" for area, group in columns)]
    title = "Areas under curves, %, higher is better: means over sets"
    return Table(title, headings, rows, _chosen(config, methods))


def set_table(config: BenchmarkConfig, protocol: str, summary: Summary) -> Table:
    """Every method on every OOD set, with the interval of each."""
    metric = get_protocol(protocol).leading
    methods = summary.methods(metric)
    names = [f"{name} (apart)" if name in config.apart else name for name in config.sets]
    rows = []
    for training, score in methods:
        lines = [summary.line(training, score, name, metric) for name in config.sets]
        rows.append(
            [training, shown(score), *(f"{_spread(o)} {_interval(o)}".strip() for o in lines)]
        )
    title = f"{_NAMES[metric]}, %, of every set, with 95 % bootstrap interval"
    return Table(title, [_made(config), "score", *names], rows, _chosen(config, methods))


def shown(score: str) -> str:
    """Name of a score in a report: ours and another library's may differ by a capital only."""
    return f"{score} (ours)" if score in OURS else score


def _facts(place: Workplace, protocol: str, summary: Summary) -> list[str]:
    config = place.config
    return [
        f"protocol {protocol}: {get_protocol(protocol).about}",
        f"seeds {', '.join(map(str, config.seeds))}: mean ± standard deviation over them",
        f"95 % intervals: {config.replicates} bootstrap draws of the images, mean over seeds",
        f"near sets: {', '.join(config.near) or 'none'}; far sets: {', '.join(config.far) or 'none'}"
        + (f"; in no mean: {', '.join(config.apart)}" if config.apart else ""),
        f"versions: {' and, of other numbers, '.join(summary.versions)}",
        "OOD images choose no setting, score, weight or threshold",
    ]


def _made(config: BenchmarkConfig) -> str:
    """What the rows are of."""
    return "network" if config.finished else "training"


def _chosen(config: BenchmarkConfig, methods: list[tuple[str, str]]) -> list[int]:
    """The package's default; of networks trained elsewhere its score."""
    return [
        i
        for i, (training, score) in enumerate(methods)
        if score == DEFAULT[1] and (config.finished or training == DEFAULT[0])
    ]


def _spread(line: Line | None) -> str:
    if line is None:
        return "–"
    std = "" if line.std is None else f" ± {100 * line.std:.1f}"
    return f"{100 * line.mean:.1f}{std}"


def _interval(line: Line | None) -> str:
    if line is None or line.low is None or line.high is None:
        return ""
    return f"[{100 * line.low:.1f}, {100 * line.high:.1f}]"


def _figure(config: BenchmarkConfig, protocol: str, summary: Summary) -> bytes:
    """Means with their intervals, the best on top."""
    from matplotlib.figure import Figure

    metric = get_protocol(protocol).leading
    methods = summary.methods(metric)
    figure = Figure(figsize=(8, 1 + 0.2 * max(1, len(methods))), layout="constrained")
    axes = figure.add_subplot()
    chosen = _chosen(config, methods)
    for i, method in enumerate(methods):
        line = summary.line(*method, MEAN, metric)
        assert line is not None
        colour = OOD_COLOUR if i in chosen else ID_COLOUR
        if line.low is not None and line.high is not None:
            axes.plot([100 * line.low, 100 * line.high], [i, i], color=colour, lw=1)
        axes.plot(100 * line.mean, i, "o", ms=4, color=colour)
    axes.set_yticks(range(len(methods)), [f"{t}: {shown(s)}" for t, s in methods], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(f"{_NAMES[metric]}, %, mean over sets and seeds, with 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    return as_png(figure)
