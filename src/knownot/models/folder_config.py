"""Contents of a model folder's `config.json`: what a model is rebuilt from, for each task."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from torch import nn

import knownot
from knownot.core.combination import CombinedScore
from knownot.core.scores import FeatureScores
from knownot.errors import ModelFileError
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.detector import UnknownAwareDetector
from knownot.models.earlier_map import EarlierMap
from knownot.models.preprocessing import Preprocessing
from knownot.models.regions import RegionModel
from knownot.models.unknown_aware import ScoreName, UnknownAwareModel, VosSettings


class _Common(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format_version: Literal[1] = 1
    classes: list[str] = Field(min_length=1)
    vos: VosSettings
    alpha: float = Field(gt=0, lt=1)
    classwise: bool
    default_score: ScoreName
    combined_parts: list[ScoreName] = Field(min_length=1)
    bank_size: int = Field(ge=1, le=10_000_000)
    knn_k: int = Field(ge=1)
    versions: dict[str, str] = {}

    def _dress(self, model: UnknownAwareModel, scored_dim: int) -> None:
        """Give a new model the modules that its weights will fill."""
        model.classwise = self.classwise
        model.default_score = self.default_score
        model.feature_scores = FeatureScores(
            len(self.classes), scored_dim, self.bank_size, self.knn_k, model.earlier_dim
        )
        model.combined = CombinedScore(self.combined_parts)


class ClassifierConfig(_Common):
    """A classifier's `config.json`."""

    task: Literal["classify"] = "classify"
    architecture: str
    backbone_dim: int = Field(ge=1, le=1_000_000)
    bottleneck: int | None = Field(ge=1, le=1_000_000)
    bottleneck_relu: bool = True
    standardise: bool
    earlier_map: EarlierMap | None = None
    classes: list[str] = Field(min_length=2)
    preprocessing: Preprocessing

    def build(self, backbone: nn.Module | None) -> UnknownAwareClassifier:
        """A model of this kind with random weights, around `backbone` if one is given."""
        if backbone is None:
            if self.architecture == "custom":
                raise ModelFileError(
                    "was built around a module of your own: in Python load(..., backbone=module); "
                    "commands take its exported file, see docs/finished.md"
                )
            from knownot.models.backbones import create_backbone

            size = self.preprocessing.image_size
            backbone, _ = create_backbone(self.architecture, "none", size)
        model = UnknownAwareClassifier(
            backbone,
            self.backbone_dim,
            self.classes,
            self.preprocessing,
            bottleneck=self.bottleneck,
            bottleneck_relu=self.bottleneck_relu,
            standardise=self.standardise,
            vos=self.vos,
            architecture=self.architecture,
            earlier_map=self.earlier_map,
            alpha=self.alpha,
        )
        self._dress(model, model.scored_dim)
        return model


class DetectorConfig(_Common):
    """A detector's `config.json`."""

    task: Literal["detect"] = "detect"
    # The module of this package that adapts it; not in folders from before there was a second.
    adapter: str = Field("torchvision_faster_rcnn", pattern=r"^[a-z][a-z0-9_]*$")
    detector: dict[str, Any]
    box_threshold: float = Field(ge=0, le=1)

    def build(self, backbone: nn.Module | None) -> UnknownAwareDetector:
        """A model of this kind with random weights, of `backbone` if it was made of such a detector."""
        adapter, described = _adapter(self.adapter), (len(self.classes), self.detector)
        try:
            if backbone is None:
                regions = adapter.rebuild(*described)
            else:
                regions = adapter.rebuild_around(backbone, *described)
        except ValueError as error:
            problem = str(error).splitlines()
            raise ModelFileError(f"detector: {' '.join(problem[:3])}") from None
        model = UnknownAwareDetector(regions, self.classes, vos=self.vos, alpha=self.alpha)
        model.box_threshold = self.box_threshold
        self._dress(model, regions.scored_dim)
        return model


FolderConfig = ClassifierConfig | DetectorConfig
_READER: TypeAdapter[FolderConfig] = TypeAdapter(
    Annotated[FolderConfig, Field(discriminator="task")]
)


def parse_config(text: str) -> FolderConfig:
    """The configuration that a `config.json` holds.

    Raises:
        ValueError: If it is not valid; Pydantic's error says where.
    """
    return _READER.validate_json(text)


def describe(model: UnknownAwareModel) -> FolderConfig:
    """The configuration of a calibrated model.

    Raises:
        ModelFileError: If the model is not calibrated, or of a kind that no folder can hold.
    """
    if not model.calibrations or model.feature_scores is None or model.combined is None:
        raise ModelFileError("the model is not calibrated; call fit_scores() and calibrate() first")
    common: dict[str, Any] = {
        "classes": model.classes,
        "alpha": model.alpha,
        "classwise": model.classwise,
        "default_score": model.default_score,
        "combined_parts": model.combined.parts,
        "bank_size": len(model.feature_scores.bank),
        "knn_k": model.feature_scores.k,
        "versions": {name: version(name) for name in ("torch", "timm", "safetensors")}
        | {"knownot": knownot.__version__},
    }
    if isinstance(model, UnknownAwareClassifier):
        return ClassifierConfig(
            architecture=model.architecture,
            backbone_dim=model.backbone_dim,
            bottleneck=model.bottleneck,
            bottleneck_relu=model.bottleneck_relu,
            standardise=model.standardise,
            earlier_map=model.earlier_map,
            preprocessing=model.preprocessing,
            vos=model.vos_settings,
            **common,
        )
    package, _, adapter = type(getattr(model, "regions", None)).__module__.rpartition(".")
    if isinstance(model, UnknownAwareDetector) and package == __package__:
        return DetectorConfig(
            adapter=adapter,
            detector=model.regions.describe(),
            box_threshold=model.box_threshold,
            vos=model.vos_settings,
            **common,
        )
    raise ModelFileError(f"{type(model).__name__}: no model folder can hold such a model")


def _adapter(name: str) -> type[RegionModel]:
    """The detector that a module of this package adapts."""
    with suppress(ModuleNotFoundError):
        module = import_module(f"{__package__}.{name}")
        for kind in vars(module).values():
            if (
                isinstance(kind, type)
                and issubclass(kind, RegionModel)
                and kind.__module__ == module.__name__ != RegionModel.__module__
                and "rebuild" in vars(kind)  # not what adapters of several modules have in common
            ):
                return kind
    raise ModelFileError(
        f"detector: no {name!r} in this version of knownot; a newer one may know it"
    )
