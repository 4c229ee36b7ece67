"""The earlier map against timm's own answers, and what becomes of it in a classifier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import knownot
from knownot.errors import ConfigError, ModelFileError
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.earlier_map import (
    EarlierMap,
    check_earlier_map,
    features_and_map,
    find_earlier_map,
)
from knownot.models.model_folder import save
from knownot.models.preprocessing import Preprocessing

SIDE = 64


def network(name: str = "resnet10t") -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, num_classes=0)


def classifier(earlier: bool = True) -> UnknownAwareClassifier:
    """Of random weights, fitted and calibrated on noise."""
    backbone = network()
    model = UnknownAwareClassifier(
        backbone,
        512,
        ["a", "b"],
        Preprocessing(image_size=SIDE),
        architecture="resnet10t",
        earlier_map=find_earlier_map(backbone, SIDE) if earlier else None,
    ).eval()
    with torch.no_grad():
        rows = model.scored_features(noise(60))
    model.fit_scores(rows[:40], torch.arange(40) % 2)
    model.calibrate(rows[40:])
    return model


def noise(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def test_it_is_the_deepest_map_that_is_finer_than_the_last() -> None:
    backbone = network()
    images = torch.randn(3, 3, SIDE, SIDE)
    found = find_earlier_map(backbone, SIDE)
    assert found is not None
    assert backbone.training  # as it was
    backbone.eval()
    with torch.no_grad():
        _, maps = backbone.forward_intermediates(images)
        rows = features_and_map(backbone, images, found)
        features = backbone(images)
    assert [m.shape[-1] for m in maps[found.index :]] == [4, 2]
    torch.testing.assert_close(rows, torch.cat([features, maps[found.index].mean((2, 3))], 1))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "hiera_tiny_224"])
def test_networks_without_a_usable_map_have_none(name: str) -> None:
    # All maps of one resolution; last features that are others once a single map is asked for.
    assert find_earlier_map(network(name), 224) is None


def test_a_module_of_ones_own_has_none_unless_it_tells_its_maps() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert find_earlier_map(plain, SIDE) is None
    plain.forward_intermediates = lambda images, indices: (images, [images])  # and no forward_head
    assert find_earlier_map(plain, SIDE) is None


def test_a_backbone_that_makes_tensors_of_its_own_is_loaded_with_its_map(tmp_path: Path) -> None:
    class Coordinates(nn.Module):
        """Reads where a pixel is, too, from a tensor that `forward` makes."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(4, 6, 3, 2), nn.Conv2d(6, 8, 3, 2)

        def forward_intermediates(
            self, images: Tensor, indices: object = None, **_: object
        ) -> tuple[Tensor, list[Tensor]]:
            place = torch.linspace(0, 1, images.shape[-1]).expand(len(images), 1, *images.shape[2:])
            first = self.first(torch.cat([images, place], 1))
            last = self.last(first)
            maps = [first, last]
            return last, maps if indices is None else [maps[i] for i in indices]

        def forward_head(self, last: Tensor, pre_logits: bool = True) -> Tensor:
            return last.mean((2, 3))

        def forward(self, images: Tensor) -> Tensor:
            return self.forward_head(self.forward_intermediates(images)[0])

    backbone = Coordinates().eval()
    found = find_earlier_map(backbone, SIDE)
    assert found is not None
    model = UnknownAwareClassifier(
        backbone, 8, ["a", "b"], Preprocessing(image_size=SIDE), earlier_map=found
    ).eval()
    with torch.no_grad():
        rows = model.scored_features(noise(60))
    model.fit_scores(rows[:40], torch.arange(40) % 2)
    model.calibrate(rows[40:])
    again = knownot.load(save(model, tmp_path / "m"), backbone=Coordinates())
    with torch.no_grad():
        assert torch.allclose(again.scored_features(noise(4)), rows[:4], atol=1e-5)


def test_a_map_that_is_not_there_is_told() -> None:
    backbone = network()
    check_earlier_map(backbone, SIDE, EarlierMap(index=3, width=256))
    for wrong in (EarlierMap(index=3, width=255), EarlierMap(index=30, width=256)):
        with pytest.raises(ConfigError, match="earlier_map: the backbone has maps of"):
            check_earlier_map(backbone, SIDE, wrong)


def test_the_head_reads_the_last_features_alone() -> None:
    model = classifier()
    with torch.no_grad():
        evaluated = model(noise(4))
        assert evaluated.scored_features.shape == (4, model.scored_dim)
        assert model.scored_dim == 512 + 256
        torch.testing.assert_close(evaluated.backbone_features, model.backbone_features(noise(4)))
        torch.testing.assert_close(
            evaluated.logits, model.classify(evaluated.backbone_features).logits
        )
        assert model.train()(noise(4)).scored_features.shape == (4, 512)


def test_mahalanobis_reads_the_map_and_no_other_score_does() -> None:
    model = classifier()
    with torch.no_grad():
        output = model(noise(4))
        before = model.scores(output)
        output.scored_features[:, 512:] = output.scored_features[:, 512:].flip(1)
        after = model.scores(output)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"mahalanobis", "combined"}


def test_features_without_the_map_are_refused_by_the_scores() -> None:
    model = classifier()
    with torch.no_grad():
        rows = model.backbone_features(noise(20))
        with pytest.raises(ValueError, match="expected 768 columns, as scored_features"):
            model.fit_scores(rows, torch.arange(20) % 2)
        with pytest.raises(ValueError, match="rows of 768 numbers"):
            model.calibrate(rows)
        with pytest.raises(ValueError, match="rows of 768 numbers"):
            model.scores(model.train()(noise(4)))


def test_a_model_folder_remembers_it_and_older_ones_have_none(tmp_path: Path) -> None:
    for name, earlier in (("new", True), ("old", False)):
        model = classifier(earlier)
        folder = save(model, tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        assert (config["earlier_map"] is not None) == earlier
        if not earlier:  # as folders were written before there was a map
            del config["earlier_map"]
            (folder / "config.json").write_text(json.dumps(config))
        loaded = knownot.load(folder)
        assert isinstance(loaded, UnknownAwareClassifier)
        assert loaded.earlier_map == model.earlier_map
        with torch.no_grad():
            expected, found = (m.scores(m(noise(4))) for m in (model, loaded))
        torch.testing.assert_close(found, expected)


def test_a_folder_that_asks_for_another_map_is_refused(tmp_path: Path) -> None:
    folder = save(classifier(), tmp_path / "model")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["earlier_map"]["index"] = 2
    file.write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match="maps of"):
        knownot.load(folder)
