"""`knownot benchmark`: parse, call the library, print."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knownot.cli.console import photo_progress, plain, print_json, stderr, stdout
from knownot.errors import ConfigError

if TYPE_CHECKING:
    from knownot.benchmark.config import BenchmarkConfig
    from knownot.benchmark.run import BenchmarkResult


def benchmark(
    config: Annotated[
        str | None,
        typer.Option(
            help="cats_dogs, cats_dogs_finetuned, cifar10_frozen, cifar10_frozen_short, "
            "cifar10_finetuned, cifar10_small, cifar10_wrn40, cifar10_wrn40_photos, "
            "ablations_cats_dogs, ablations_cifar10_frozen, ablations_cifar10_small, or a YAML "
            "file of your own. (default: cats_dogs)"
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with the image sets. (default: the variable KNOWNOT_DATA)"),
    ] = None,
    networks: Annotated[
        Path | None,
        typer.Option(
            help="Networks of your own in place of --config and --data: the folder of their outputs."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="(default: benchmark-<config, or folder of networks>)"),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="paper: ID is the positive class. openood: OOD is.")
    ] = "paper",
    seeds: Annotated[
        str | None, typer.Option(help="Such as 0,1,2. (default: the configuration's)")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Compare OOD methods on the same models and images, over several seeds.

    [bold]knownot benchmark --config cats_dogs --data data/[/]

    [bold]knownot benchmark --config cifar10_small --data data/ --protocol openood[/]

    [bold]knownot benchmark --config ablations_cats_dogs --data data/[/]   one setting changed at a time

    [bold]knownot benchmark --networks networks/[/]   yours, trained with whatever

    Writes results.csv, summary.csv, report.md and report.html (by another protocol summary-openood.csv
    and so on). The same command goes on where the last one was interrupted; what is in the results is
    not measured again.
    """
    from knownot.benchmark.run import run_benchmark
    from knownot.benchmark.workplace import Workplace

    settings, folder = _settings(config, data, networks, {"seeds": _seeds(seeds)})
    place = output or Path(f"benchmark-{settings.name}")
    try:
        with photo_progress(json_output) as begin:
            reporter = _Printer(begin, json_output)
            result = run_benchmark(Workplace(settings, folder, place, None, reporter), protocol)
    except KeyboardInterrupt:
        stderr().print("\n[yellow]interrupted.[/] The same command goes on from here.")
        raise typer.Exit(130) from None
    if json_output:
        from dataclasses import asdict

        lines = [asdict(line) for line in result.summary.lines]
        print_json({"protocol": protocol, "lines": lines, "failed": result.failed})
        return
    _print(settings, protocol, result)
    stderr().print(f"report: {result.report}", soft_wrap=True, markup=False)


def _settings(
    config: str | None, data: Path | None, networks: Path | None, changes: dict[str, Any]
) -> tuple[BenchmarkConfig, Path]:
    """What is compared, and the folder that it is in."""
    from knownot.benchmark.config import load_config, make_config
    from knownot.benchmark.network_recipe import networks_config

    if networks is None:
        return load_config(config or "cats_dogs", changes), _data(data)
    if config is not None or data is not None:
        raise ConfigError(
            "networks: stands in place of --config and --data; for settings of your own give a file "
            "with `training: {recipe: networks}` by --config, and the folder by --data"
        )
    if not networks.is_dir():
        raise ConfigError(f"networks: {networks} is no folder")
    return make_config(networks_config(networks), str(networks), changes), networks


def _data(given: Path | None) -> Path:
    named = os.environ.get("KNOWNOT_DATA")
    if given is None and not named:
        raise ConfigError("data: where are the image sets? Give --data FOLDER, or set KNOWNOT_DATA")
    folder = given or Path(named or "")
    if not folder.is_dir():
        raise ConfigError(f"data: {folder} is no folder")
    return folder


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"seeds: expected numbers such as 0,1,2, got {text!r}") from None


class _Printer:
    """Draws what a benchmark reports."""

    def __init__(self, begin: Callable[[str, int], Callable[[int], None]], quiet: bool) -> None:
        self.stage = begin
        self.quiet = quiet

    def say(self, text: str) -> None:
        """One line on standard error."""
        if not self.quiet:
            stderr().print(text, soft_wrap=True, markup=False)


def _print(config: BenchmarkConfig, protocol: str, result: BenchmarkResult) -> None:
    from rich.table import Table

    from knownot.benchmark.report import main_tables

    for table in main_tables(config, protocol, result.summary):
        drawn = Table(title=table.title, title_justify="left")
        for heading in table.headings:
            drawn.add_column(heading)
        for i, row in enumerate(table.rows):
            style: dict[str, Any] = {"style": "bold"} if i in table.chosen else {}
            drawn.add_row(*row, **style)
        stdout().print(drawn)
    for method, reason in result.failed.items():
        stderr().print(f"[yellow]not computed:[/] {method}: {plain(reason)}", soft_wrap=True)
