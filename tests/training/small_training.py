"""A training of seconds, for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from knownot.models.model_folder import load
from knownot.training.config import TrainConfig, make_config
from knownot.training.fit import Silent
from knownot.training.train import train
from tests.helpers import tiny_backbone


def settings(photos: Path, output: Path, **changes: Any) -> TrainConfig:
    flags = {"data": photos, "output": output, "image_size": 32, "bottleneck": 4, "epochs": 6}
    flags |= {"batch_size": 16, "lr": 0.01, "backbone_lr": 0.003, "workers": 0, "queue_size": 20}
    return make_config(flags | changes)


def run(photos: Path, output: Path, reporter: Silent | None = None, **changes: Any):
    return train(settings(photos, output, **changes), reporter, backbone=tiny_backbone())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder, backbone=tiny_backbone()).state_dict()
