"""`knownot info`: what a model folder holds, or what this machine has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from knownot.cli.console import print_json, stdout


def info(
    model: Annotated[
        Path | None,
        typer.Argument(help="Model folder; without one, the versions and devices of this machine."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Accepted for symmetry; nothing here is random.")] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Describe a model folder, or this installation.

    [bold]knownot info model/[/]
    """
    facts = _installation() if model is None else _model(model)
    if json_output:
        print_json(facts)
        return
    from rich.table import Table

    table = Table(show_header=False)
    for key, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        table.add_row(key, shown)
    stdout().print(table)


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


def _model(folder: Path) -> dict[str, Any]:
    import json

    from knownot.models.model_folder import load

    model = load(folder)
    calibration = model.calibrations[model.default_score]
    metrics_file = folder / "training" / "metrics.json"
    metrics = json.loads(metrics_file.read_text()) if metrics_file.is_file() else {}
    return {
        "task": "classify",
        "architecture": model.architecture,
        "classes": model.classes,
        "image size": model.preprocessing.image_size,
        "backbone features": model.backbone_dim,
        "bottleneck": model.bottleneck,
        "parameters": sum(p.numel() for p in model.parameters()),
        "scores": list(model.calibrations),
        "default score": model.default_score,
        "combined from": model.combined.parts if model.combined else [],
        "alpha": model.alpha,
        "threshold": model.threshold(),
        "calibration photos": len(calibration),
        "radius ratio": round(model.vos.radius_ratio, 3),
        "energy weights": [round(w, 4) for w in model.vos.energy_weights.tolist()],
        "training photos": metrics.get("n_train"),
        "validation accuracy": metrics.get("val_accuracy"),
    }
