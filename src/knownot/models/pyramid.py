"""Any timm backbone as a feature pyramid for a detector."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from knownot.errors import ConfigError
from knownot.models.backbones import create_backbone, known_architecture


class TimmPyramid(nn.Module):
    """Feature maps of a timm backbone at several strides, all of the same width, by name.

    Args:
        architecture: timm name.
        weights: As in `create_backbone`.
        strides: Pixels between neighbouring cells of the maps used; one coarser map is added.
        width: Channels of every map.
        frozen_stages: The first so many halvings of the resolution are not trained.
        frozen_norm: Keep the statistics of batch normalisation: right for pretrained weights, as
            a detector's batches are too small to make new ones.

    Raises:
        ConfigError: If the architecture has no such maps, or the weights cannot be had.
    """

    def __init__(
        self,
        architecture: str,
        weights: str,
        *,
        strides: tuple[int, ...] = (8, 16, 32),
        width: int = 128,
        frozen_stages: int = 0,
        frozen_norm: bool = True,
    ) -> None:
        super().__init__()
        self.body = _body(architecture, weights)
        info = self.body.feature_info
        reductions: list[int] = info.reduction()
        if missing := set(strides) - set(reductions):
            raise ConfigError(
                f"arch: {architecture} has no feature map of stride {sorted(missing)}, only "
                f"{reductions}"
            )
        self.levels = [reductions.index(stride) for stride in strides]
        self.frozen_norm = frozen_norm
        self.fpn = FeaturePyramidNetwork(
            [info.channels()[level] for level in self.levels], width, LastLevelMaxPool()
        )
        self.out_channels = width  # torchvision's detectors ask for it by this name
        _freeze(self.body, info.module_name(), reductions, frozen_stages)
        self.train()  # statistics that are frozen are so from the start

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (N, 3, H, W) to maps (N, width, H / stride, W / stride)."""
        maps = self.body(images)
        pyramid: dict[str, Tensor] = self.fpn(
            {str(i): maps[level] for i, level in enumerate(self.levels)}
        )
        return pyramid

    def train(self, mode: bool = True) -> TimmPyramid:
        """Training mode, but for batch normalisation whose statistics are frozen."""
        super().train(mode)
        if self.frozen_norm:
            for module in self.body.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def _body(architecture: str, weights: str) -> Any:
    import timm

    known_architecture(architecture)
    try:
        body = timm.create_model(architecture, features_only=True, pretrained=False)
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ConfigError(
            f"arch: {architecture} offers no feature maps ({error}); a detector needs some, take a "
            "convolutional network such as tf_efficientnet_lite0 or resnet50"
        ) from None
    if weights != "none":
        # One way to get weights for classifiers and detectors: load the whole network, keep a part.
        whole, _ = create_backbone(architecture, weights)
        own = whole.state_dict()
        state = {name: own[_name_in(own, name)] for name in body.state_dict()}
        body.load_state_dict(state)
    return body


def _name_in(state: dict[str, Tensor], name: str) -> str:
    """The name in the whole network: timm writes `stages_0.x` for `stages.0.x` in feature nets."""
    if name in state:
        return name
    dotted = name.replace("_", ".", 1)
    if dotted not in state:
        raise ConfigError(f"arch: {name} is not in the pretrained network; take another --arch")
    return dotted


def _freeze(body: nn.Module, modules: list[str], reductions: list[int], stages: int) -> None:
    inside = [m for m, r in zip(modules, reductions, strict=True) if r <= 2**stages]
    if stages == 0 or not inside:
        return
    prefixes = (f"{inside[-1]}.", f"{inside[-1].replace('.', '_')}.")
    parameters = list(body.named_parameters())
    last = max((i for i, (n, _) in enumerate(parameters) if n.startswith(prefixes)), default=-1)
    for _, parameter in parameters[: last + 1]:
        parameter.requires_grad_(False)
