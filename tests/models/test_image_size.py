"""Transformers, whose patches each have a place, take images of other sizes than their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import load_checkpoint
from timm.models.vision_transformer import checkpoint_filter_fn

from knownot.errors import ConfigError, ModelFileError
from knownot.models.backbones import create_backbone, feature_width
from knownot.models.finished import finished_network
from knownot.models.model_folder import load, save
from tests.helpers import SIZE, pixels, tiny_model

ARCH, OWN, OTHER = "test_vit", 160, 64


def network(size: int, **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(ARCH, img_size=size, **options).eval()


@torch.no_grad()
def test_places_are_interpolated_as_timm_does(tmp_path: Path) -> None:
    torch.save(network(OWN, num_classes=5).state_dict(), tmp_path / "w.pth")
    reference = network(OTHER, num_classes=5)
    load_checkpoint(reference, str(tmp_path / "w.pth"), filter_fn=checkpoint_filter_fn)
    images = torch.randn(2, 3, OTHER, OTHER)
    whole, _ = finished_network(ARCH, str(tmp_path / "w.pth"), OTHER)
    assert torch.equal(whole.eval()(images), reference(images))
    backbone, _ = create_backbone(ARCH, str(tmp_path / "w.pth"), OTHER)
    assert torch.equal(
        backbone.eval()(images), reference.forward_head(reference.forward_features(images), True)
    )


@torch.no_grad()
def test_weights_of_the_other_size_stay_as_they_are(tmp_path: Path) -> None:
    mine = network(OTHER, num_classes=5)
    torch.save(mine.state_dict(), tmp_path / "w.pth")
    images = torch.randn(2, 3, OTHER, OTHER)
    whole, _ = finished_network(ARCH, str(tmp_path / "w.pth"), OTHER)
    assert torch.equal(whole.eval()(images), mine(images))
    with pytest.raises(ModelFileError, match=r"of another shape, first pos_embed"):
        finished_network(ARCH, str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("arch", "size"),
    [("swin_tiny_patch4_window7_224", 96), ("maxvit_tiny_rw_224", 160), ("resnet10t", 96)],
)
def test_others_take_what_they_can(arch: str, size: int) -> None:
    backbone, preprocessing = create_backbone(arch, "none", size)
    assert feature_width(backbone, size) > 0
    assert preprocessing.image_size != size  # the network's own, which a user's word replaces


@pytest.mark.parametrize("size", [100, 8])
def test_a_size_that_it_cannot_take_is_named(size: int) -> None:
    with pytest.raises(ConfigError, match=f"no images of {size} pixels .*its own are of {OWN}"):
        feature_width(create_backbone(ARCH, "none", size)[0], size)


def test_a_folder_keeps_the_size(tmp_path: Path) -> None:
    model = tiny_model(architecture=ARCH)
    assert SIZE != OWN
    again = load(save(model, tmp_path / "m"))
    images = pixels(8, (200, 40, 40), 7000)
    with torch.no_grad():
        assert torch.equal(again(images).logits, model(images).logits)
