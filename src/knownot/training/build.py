"""From settings to a classifier that can be trained, or is finished."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from knownot.errors import ConfigError
from knownot.models.backbones import create_backbone, feature_width
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.earlier_map import find_earlier_map
from knownot.models.finished import finished_network, in_order_of, likelier_order, split_head
from knownot.models.preprocessing import Preprocessing
from knownot.training.batches import FeatureRows
from knownot.training.config import TrainConfig


def source_of(weights: str) -> str:
    """What an error calls the network of these weights."""
    downloaded = weights in ("auto", "pypi", "hub")
    return "the published one (yours is --weights FILE)" if downloaded else weights


def build_classifier(
    config: TrainConfig, classes: list[str], backbone: nn.Module | None = None
) -> UnknownAwareClassifier:
    """The classifier that the settings describe, not trained; a finished one with its own last layer.

    Args:
        config: Settings.
        classes: Names of the classes, sorted.
        backbone: A module of the caller's in place of `config.arch`: images (N, 3, S, S) to features (N, D),
            or with finetune none to logits (N, K).

    Raises:
        ConfigError: If architecture, weights or classes do not fit.
    """
    architecture, preprocessing, whose = "custom", Preprocessing(), "the network"
    if backbone is None:
        architecture = config.arch
        whose = source_of(config.weights)
        create = finished_network if config.finetune == "none" else create_backbone
        backbone, preprocessing = create(config.arch, config.weights, config.image_size)
    else:
        _refuse_another_network(config)
    said = config.model_dump(include={*Preprocessing.model_fields}, exclude_none=True)
    preprocessing = preprocessing.model_copy(update=said)
    head = None
    if config.finetune == "none":
        backbone, head = split_head(backbone, preprocessing.image_size)
        if head.out_features != len(classes):
            raise ConfigError(
                f"weights: {whose} tells {head.out_features} classes apart, the photos are of "
                f"{len(classes)}; each of its classes needs a folder"
            )
        head = in_order_of(head, config.outputs or classes, classes)
    width = feature_width(backbone, preprocessing.image_size)
    bottleneck = config.bottleneck_for(width)
    model = UnknownAwareClassifier(
        backbone,
        width,
        classes,
        preprocessing,
        bottleneck=bottleneck,
        bottleneck_relu=config.bottleneck_relu,
        standardise=config.standardised,
        vos=config.vos_settings(len(classes), bottleneck or width),
        architecture=architecture,
        earlier_map=find_earlier_map(backbone, preprocessing.image_size)
        if config.earlier_map
        else None,
        alpha=config.alpha,
    )
    if head is not None:
        model.take_head(head)
    return model.to(memory_format=torch.channels_last)


def _refuse_another_network(config: TrainConfig) -> None:
    """Of a module that is given, `weights` may say that it is not trained, and nothing else."""
    said = {"arch": config.arch, "weights": config.weights}
    usual = {"arch": {type(config).model_fields["arch"].default}, "weights": {"auto", "none"}}
    wrong = [f"{name} {value}" for name, value in said.items() if value not in usual[name]]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)}: was asked for, and a network is given (backbone=); leave it out"
        )


@torch.no_grad()
def check_order(
    model: UnknownAwareClassifier, learned: FeatureRows, outputs: Sequence[str] | None
) -> None:
    """Refuse a finished classifier whose outputs clearly stand for other classes than is said.

    Args:
        model: Has its last layer.
        learned: Features of the training photos, with labels.
        outputs: Classes as the settings order them, if they do.

    Raises:
        ConfigError: If so; with the order that the photos suggest.
    """
    model.eval()
    predicted = model.classify(learned.rows.to(model.device)).logits.argmax(1).cpu()
    refuse_order(model.classes, predicted, learned.labels, outputs, "training photos")


def refuse_order(
    classes: Sequence[str],
    predicted: Tensor,
    labels: Tensor,
    outputs: Sequence[str] | None,
    what: str,
) -> None:
    """Refuse an order of outputs that is clearly not the right one.

    Args:
        classes: Names of the classes.
        predicted: Which of them a network told (N,), in the order that is in force.
        labels: Which it should have told (N,).
        outputs: That order, where it is not `classes`.
        what: What the N are, in words.

    Raises:
        ConfigError: If so; with the order that they suggest.
    """
    order = likelier_order(predicted, labels, len(classes))
    if order is None:
        return
    right = [
        f"{float((found == labels).double().mean()):.0%}"
        for found in (predicted, torch.tensor(order)[predicted])
    ]
    names = [classes[order[classes.index(name)]] for name in outputs or classes]
    listed = ",".join(f'"{name}"' if "," in name else name for name in names)
    raise ConfigError(
        f"outputs: the network is right about {right[0]} of the {what} if its outputs stand for "
        f"{', '.join(outputs or classes)}, about {right[1]} with --outputs '{listed}'"
    )
