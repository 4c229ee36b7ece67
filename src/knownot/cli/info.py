"""`knownot info`: what a model folder holds, or what this machine has."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knownot.cli.console import plain, print_json, stdout
from knownot.cli.options import NoSeed

if TYPE_CHECKING:
    from knownot.core.virtual_outlier_loss import VirtualOutlierLoss
    from knownot.models.classifier import UnknownAwareClassifier
    from knownot.models.detector import UnknownAwareDetector
    from knownot.models.unknown_aware import UnknownAwareModel


def info(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="Model folder or exported file; without one, the versions and devices of this machine."
        ),
    ] = None,
    seed: NoSeed = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Describe a model folder, or this installation.

    [bold]knownot info model/[/]
    """
    facts = _facts(model)
    if json_output:
        print_json(facts)
        return
    from rich.table import Table

    table = Table(show_header=False)
    for key, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        table.add_row(key, plain(shown))
    stdout().print(table)


def _facts(model: Path | None) -> dict[str, Any]:
    if model is None:
        return _installation()
    return _exported(model) if model.is_file() else _model(model)


def _installation() -> dict[str, Any]:
    import platform
    from importlib.metadata import version

    import torch

    from knownot.models.model_folder import choose_device

    names = ("knownot", "torch", "torchvision", "timm", "lightning", "scikit-learn")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "threads": torch.get_num_threads(),
        "device": str(choose_device()),
    }


def _exported(file: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from knownot.runtime import open_onnx

    facts = asdict(open_onnx(file).metadata)
    summary = facts.pop("calibration")
    rows = "boxes" if facts["task"] == "detect" else "photos"
    facts[f"calibration_{rows}"] = summary and summary["sizes"]
    return {name.replace("_", " "): value for name, value in facts.items()}


def _model(folder: Path) -> dict[str, Any]:
    import json

    from knownot.models.detector import UnknownAwareDetector
    from knownot.models.model_folder import load
    from knownot.training.result import METRICS, TRAINING

    model = load(folder)
    metrics_file = folder / TRAINING / METRICS
    metrics = {}
    with suppress(OSError, ValueError, RecursionError):  # a model works without
        metrics = json.loads(metrics_file.read_bytes())
    if not isinstance(metrics, dict):
        metrics = {}
    return {
        **(_detector(model) if isinstance(model, UnknownAwareDetector) else _classifier(model)),
        "classes": model.classes,
        "parameters": sum(p.numel() for p in model.parameters()),
        "scores": list(model.calibrations),
        "default score": model.default_score,
        "combined from": model.combined.parts if model.combined else [],
        "alpha": model.alpha,
        "threshold": model.threshold(),  # of all together
        "calibration": _calibration(model),
        "thresholds": [*model.threshold_range()],
        **(_vos(model.vos) if model.with_vos else {"trained with VOS": False}),
        "training photos": metrics.get("n_train"),
        **{
            name.replace("val_", "validation "): metrics[name]
            for name in ("val_accuracy", "val_map", "val_map_50")
            if name in metrics
        },
    }


def _calibration(model: UnknownAwareModel) -> str:
    if not model.classwise:
        return "all together"
    return "by class and size of the box" if model.task == "detect" else "by class"


def _vos(vos: VirtualOutlierLoss) -> dict[str, Any]:
    return {
        "trained with VOS": True,
        "radius ratio": vos.radius_ratio and round(vos.radius_ratio, 3),
        "energy weights": [round(w, 4) for w in vos.energy_weights.tolist()],
    }


def _classifier(model: UnknownAwareClassifier) -> dict[str, Any]:
    return {
        "task": "classify",
        "architecture": model.architecture,
        "image size": model.preprocessing.image_size,
        "backbone features": model.backbone_dim,
        "of an earlier map": model.earlier_dim,
        "bottleneck": model.bottleneck,
        "calibration photos": len(model.calibration(model.default_score)),
    }


def _detector(model: UnknownAwareDetector) -> dict[str, Any]:
    return {
        "task": "detect",
        "architecture": model.regions.architecture,
        "image size": model.regions.image_size,
        "box features": model.regions.feature_dim,
        "scored features": model.regions.scored_dim,
        "box threshold": model.box_threshold,
        "calibration boxes": len(model.calibration(model.default_score)),
    }
