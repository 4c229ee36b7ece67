"""How a pretrained backbone is trained end to end: the head first, batch norms as they are."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from knownot.models.backbones import batch_norms, is_pretrained
from knownot.models.model_folder import load
from knownot.training.batches import FeatureRows
from knownot.training.config import TrainConfig, make_config
from knownot.training.head_first import train_head
from knownot.training.train import train
from tests.helpers import tiny_model


def normalised(pretrained: bool) -> nn.Module:
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    ).append(nn.Flatten())
    if pretrained:
        for _ in range(50):
            backbone(torch.randn(16, 3, 32, 32))
    return backbone.eval()


def config(photos: Path, output: Path, **changes: object) -> TrainConfig:
    flags = {"data": photos, "output": output, "finetune": "all", "image_size": 32, "epochs": 1}
    flags |= {"bottleneck": 4, "batch_size": 16, "workers": 0, "queue_size": 20, "device": "cpu"}
    settings = make_config(flags | changes)
    assert isinstance(settings, TrainConfig)
    return settings


def statistics(backbone: nn.Module) -> list[torch.Tensor]:
    return [norm.running_mean.clone() for norm in batch_norms(backbone)]


@pytest.mark.parametrize(
    ("pretrained", "told", "kept"), [(True, None, True), (True, False, False), (False, None, False)]
)
def test_statistics_of_pretraining_are_kept(
    photos: Path, tmp_path: Path, pretrained: bool, told: bool | None, kept: bool
) -> None:
    backbone = normalised(pretrained)
    before = statistics(backbone)
    assert is_pretrained(backbone, "auto") is pretrained
    result = train(config(photos, tmp_path / "m", fix_norms=told), backbone=backbone)
    after = statistics(load(result.folder, backbone=normalised(False)).backbone)
    same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert same is kept
    settings = make_config({}, result.folder / "training" / "config.yaml")
    assert (settings.fix_norms, settings.head_first) == (kept, pretrained)
    assert settings.n_backbone_lr == (5e-5 if pretrained else 2e-4)


def test_what_a_backbone_without_batch_norms_is_follows_from_its_weights() -> None:
    assert is_pretrained(nn.Linear(2, 2), "auto")
    assert not is_pretrained(nn.Linear(2, 2), "none")


@pytest.mark.parametrize("rows", [2, 300])
def test_the_head_learns_and_nothing_else(tmp_path: Path, rows: int) -> None:
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    labels = torch.arange(rows) % len(model.classes)
    features = torch.randn(rows, model.backbone_dim)
    features[range(rows), labels] += 6
    train_head(model, FeatureRows(features, labels), config(tmp_path, tmp_path, lr=0.05))
    found = model.eval().classify(features).logits.argmax(1)
    assert (found == labels).float().mean() > 0.95
    changed = {
        name.split(".")[0]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"neck", "head"}  # nor what VOS remembers


def test_settings_that_are_said_stay(tmp_path: Path) -> None:
    said = config(tmp_path, tmp_path, head_first=False, backbone_lr=0.1).for_backbone(True)
    assert (said.head_first, said.fix_norms, said.n_backbone_lr) == (False, True, 0.1)
