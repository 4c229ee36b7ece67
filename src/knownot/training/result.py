"""What a training run leaves behind, and its files in the model folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from knownot.training.config import CommonConfig


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


def write_training_files(
    training: Path, config: CommonConfig, metrics: dict[str, Any], skipped: dict[Path, str]
) -> None:
    """Write resolved settings, numbers and skipped photos to a new folder."""
    training.mkdir()
    (training / "config.yaml").write_text(config.to_yaml())
    (training / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    listed = {str(path): reason for path, reason in skipped.items()}
    (training / "skipped.json").write_text(json.dumps(listed, indent=2) + "\n")
