"""What a network makes of images, saved: what its last layer reads, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from knownot.benchmark.network_files import read_head, read_outputs
from knownot.benchmark.network_outputs import save_outputs
from knownot.errors import ConfigError, DataError
from tests.benchmark.networks import MEAN, STD, Sets
from tests.helpers import tiny_backbone


def test_features_are_what_the_last_layer_reads(saved: Path, networks, sets: Sets) -> None:
    folder, network = saved / "Tiny_1" / "0", networks[0]
    head = read_head(folder)
    assert torch.equal(head.weight, network[1].weight)
    found = read_outputs(folder, "test", head)
    with torch.no_grad():
        images = torch.cat([images for images, _ in sets["test"]])
        assert torch.allclose(found["features"], network[0](images), atol=1e-5)
        assert torch.allclose(found["logits"], network(images), atol=1e-5)
    assert torch.equal(found["labels"], torch.cat([labels for _, labels in sets["test"]]))
    assert set(load_file(folder / "near" / "grey.safetensors")) == {"logits", "features"}


def test_saving_goes_on_where_it_was_interrupted(
    sets: Sets, networks, saved: Path, tmp_path: Path
) -> None:
    class Interrupted(list):
        def __iter__(self):
            yield self[0]
            raise KeyboardInterrupt

    first = {**sets, "test": Interrupted(sets["test"])}
    with pytest.raises(KeyboardInterrupt):
        save_outputs(tmp_path, networks[0], first, MEAN, STD)
    written = (tmp_path / "val.safetensors").stat().st_mtime_ns
    assert not list(tmp_path.glob("test*"))
    save_outputs(tmp_path, networks[0], sets, MEAN, STD)
    assert (tmp_path / "val.safetensors").stat().st_mtime_ns == written
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    whole = saved / "Tiny_1" / "0"
    assert files == {str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file()}
    for file in files:
        for name, values in load_file(tmp_path / file).items():
            assert torch.equal(values, load_file(whole / file)[name]), (file, name)


def test_what_cannot_be_saved_is_named(sets: Sets, networks, tmp_path: Path) -> None:
    def saved(sets: Sets, *normalised, network: nn.Module = networks[0]) -> None:
        save_outputs(tmp_path / "a", network, sets, *normalised)

    blue, test = sets["far/blue"], sets["test"]
    images, labels = test[0]
    saved({"test": test})
    with pytest.raises(DataError, match=r"head\.safetensors: is of another network"):
        saved({"val": sets["val"]}, network=networks[1])
    another = nn.Sequential(tiny_backbone(5), networks[0][1])  # under the same last layer
    with pytest.raises(DataError, match=r"head\.safetensors: is of another network"):
        saved({"val": sets["val"]}, network=another)
    with pytest.raises(ConfigError, match=r"expected train, val, test, near/NAME.*got blue"):
        saved({"blue": blue})
    with pytest.raises(ConfigError, match=r"near/.* can be read once only"):
        saved({"near/x": iter(blue)})
    with pytest.raises(DataError, match="train: expected batches of images and labels"):
        saved({"train": blue})
    with pytest.raises(DataError, match="sets: expected batches of images, got none"):
        saved({"far/none": []})
    with pytest.raises(DataError, match="far/none: expected batches of images, got none"):
        saved({"near/some": blue, "far/none": []})
    for batch, got in (({"image": images}, "got dict"), (images[0], r"got shape \(3, 32, 32\)")):
        with pytest.raises(ConfigError, match=got):
            saved({"val": [batch]})
    for wrong in (labels + 1, labels.float(), labels[:3], nn.functional.one_hot(labels)):
        with pytest.raises(DataError, match=r"val: .*labels"):
            saved({"val": [(images, wrong)]})
    with pytest.raises(DataError, match="far/nan: logits of 1 images are not finite"):
        saved({"far/nan": [torch.cat([images[:2], images[:1] * torch.nan])]})
    with pytest.raises(ConfigError, match=r"were not in \[0, 1\], but from"):
        saved({"val": sets["val"]}, (120.0,) * 3, (60.0,) * 3)
    for mean, std in ((MEAN, None), (None, STD), (MEAN, (0.0, 1.0, 1.0))):
        with pytest.raises(ConfigError, match="mean, std: expected both, std above 0"):
            saved({"val": sets["val"]}, mean, std)
    with pytest.raises(ConfigError, match="not the output of a plain linear layer"):
        save_outputs(tmp_path / "c", nn.Sequential(networks[0], nn.Softmax(1)), sets)
    assert not (tmp_path / "c").exists()
    names = {path.stem for path in (tmp_path / "a").rglob("*.safetensors")}
    assert names == {"head", "test", "some"}  # nothing that was refused is kept


def test_labels_of_an_ood_set_may_be_anything(sets: Sets, networks, tmp_path: Path) -> None:
    images = sets["far/blue"][0]
    for name, labels in (("names", ["a.jpg"] * 8), ("none", None), ("ids", {"id": 1})):
        save_outputs(tmp_path, networks[0], {f"far/{name}": [(images, labels)]})
        assert len(load_file(tmp_path / "far" / f"{name}.safetensors")["logits"]) == 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(sets: Sets, networks, saved: Path, tmp_path: Path) -> None:
    network = nn.Sequential(tiny_backbone(), nn.Linear(8, 2)).eval()
    network.load_state_dict(networks[0].state_dict())
    save_outputs(tmp_path, network.cuda(), sets, MEAN, STD)
    assert next(network.parameters()).is_cuda
    for file in (saved / "Tiny_1" / "0").rglob("*.safetensors"):
        found = load_file(tmp_path / file.relative_to(saved / "Tiny_1" / "0"))
        for name, values in load_file(file).items():
            torch.testing.assert_close(found[name], values, rtol=1e-3, atol=1e-3)
