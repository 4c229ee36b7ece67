"""What a training run leaves behind, and its files in the model folder."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from knownot.data.image_folder import names_digest
from knownot.data.plain_json import to_json
from knownot.training.config import CommonConfig

TRAINING = "training"  # the folder, in a model folder
SETTINGS, METRICS, SKIPPED = "config.yaml", "metrics.json", "skipped.json"


@dataclass(frozen=True)
class TrainResult:
    """What a training run leaves behind.

    Attributes:
        folder: The model folder.
        metrics: The numbers of `training/metrics.json`.
        skipped: Path and reason of every photo that could not be used.
    """

    folder: Path
    metrics: dict[str, Any]
    skipped: dict[Path, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> TrainResult:
        """The result that a training left in a model folder."""
        training = folder / TRAINING
        skipped = json.loads((training / SKIPPED).read_text())
        metrics = json.loads((training / METRICS).read_text())
        if metrics["threshold"] is None:  # JSON has no infinity
            metrics["threshold"] = math.inf
        if "threshold_range" in metrics:
            ends = metrics["threshold_range"]
            metrics["threshold_range"] = [math.inf if end is None else end for end in ends]
        return cls(
            folder,
            metrics,
            {Path(path): reason for path, reason in skipped.items()},
        )


def held_out_digest(paths: list[Path], data: Path, skipped: dict[Path, str]) -> dict[str, str]:
    """For the numbers: by what an export tells whether the photos of validation are still the same."""
    return {"val_digest": names_digest([path for path in paths if path not in skipped], data)}


def write_training_files(
    training: Path, config: CommonConfig, metrics: dict[str, Any], skipped: dict[Path, str]
) -> None:
    """Write resolved settings, numbers and skipped photos to a new folder."""
    training.mkdir()
    (training / SETTINGS).write_text(config.to_yaml(), "utf-8")
    (training / METRICS).write_text(to_json(metrics) + "\n", "utf-8")
    listed = {str(path): reason for path, reason in skipped.items()}
    (training / SKIPPED).write_text(json.dumps(listed, indent=2) + "\n")
