"""`UnknownAwareClassifier`: backbone, bottleneck, head and every score of one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knownot.core.calibration import flagged
from knownot.core.virtual_outlier_loss import VirtualOutlierLoss
from knownot.data.given_photos import as_list, to_pil
from knownot.errors import ConfigError
from knownot.models.answers import answers_in_order
from knownot.models.cpu_workers import cpu_workers
from knownot.models.earlier_map import EarlierMap, features_and_map
from knownot.models.modes import evaluating
from knownot.models.prediction import UNKNOWN, Prediction
from knownot.models.preprocessing import Preprocessing
from knownot.models.unknown_aware import UnknownAwareModel, VosSettings

# Small batches keep the activations of one photo in the cache; on CPUs larger ones are slower.
CPU_BATCH, GPU_BATCH = 8, 64


@dataclass(frozen=True)
class ClassifierOutput:
    """Result of a forward pass.

    Attributes:
        logits: Class logits (N, K).
        features: Penultimate features, which the head reads (N, D).
        backbone_features: Features before the bottleneck (N, B).
        scored_features: What the feature scores read (N, S): these, and the means of an earlier map
            behind them where the model reads one; in training mode, these alone.
    """

    logits: Tensor
    features: Tensor
    backbone_features: Tensor
    scored_features: Tensor


class UnitLength(nn.Module):
    """Scale every row to length 1."""

    def forward(self, features: Tensor) -> Tensor:
        """Rows (N, D) to rows of length 1 (N, D)."""
        return F.normalize(features, dim=-1)


class UnknownAwareClassifier(UnknownAwareModel):
    """An image classifier that gives, beside the class, how far the photo is from what it knows.

    Args:
        backbone: Any module that maps normalised images (N, 3, S, S) to features (N, B).
        backbone_dim: Feature width B.
        classes: Class names, at least two.
        preprocessing: How photos become pixels.
        bottleneck: Width D of the layer between backbone and head, or None for the backbone's
            features themselves. Virtual outliers need a narrow layer, see `radius_ratio`.
        bottleneck_relu: Whether a ReLU follows the bottleneck.
        standardise: Scale the backbone's features to unit length and unit variance before the
            bottleneck: right for a frozen backbone, whose features come in any scale; one that is
            trained along adapts by itself, and is less accurate behind such a layer.
        vos: Settings of the loss.
        architecture: timm name to rebuild the backbone from, or "custom".
        earlier_map: A map of the backbone that the Mahalanobis distance reads beside the features, see
            `find_earlier_map`.
        alpha: Share of in-distribution photos that may be called unknown.

    Raises:
        ConfigError: If there are fewer than two classes.
    """

    mean: Tensor
    std: Tensor

    task: ClassVar[Literal["classify", "detect"]] = "classify"

    def __init__(
        self,
        backbone: nn.Module,
        backbone_dim: int,
        classes: Sequence[str],
        preprocessing: Preprocessing | None = None,
        *,
        bottleneck: int | None = 64,
        bottleneck_relu: bool = True,
        standardise: bool = True,
        vos: VosSettings | None = None,
        architecture: str = "custom",
        earlier_map: EarlierMap | None = None,
        alpha: float = 0.05,
    ) -> None:
        super().__init__(classes, alpha)
        if len(classes) < 2:
            raise ConfigError(f"classes: expected at least two, got {list(classes)}")
        self.backbone = backbone
        self.backbone_dim = backbone_dim
        self.preprocessing = preprocessing or Preprocessing()
        self.bottleneck = bottleneck
        self.bottleneck_relu = bottleneck_relu
        self.standardise = standardise and bottleneck is not None
        self.vos_settings = vos or VosSettings()
        self.architecture = architecture
        self.earlier_map = earlier_map
        self.neck = nn.Sequential()
        if self.standardise:
            self.neck.append(UnitLength()).append(nn.BatchNorm1d(backbone_dim, affine=False))
        if bottleneck is not None:
            self.neck.append(nn.Linear(backbone_dim, bottleneck))
            if bottleneck_relu:
                self.neck.append(nn.ReLU())
        width = backbone_dim if bottleneck is None else bottleneck
        self.head = nn.Linear(width, len(self.classes))
        self.vos = VirtualOutlierLoss(
            head=self.head,
            num_classes=len(self.classes),
            feature_dim=width,
            **self.vos_settings.model_dump(),
        )
        self.register_buffer(
            "mean", torch.tensor(self.preprocessing.mean).view(1, 3, 1, 1) * 255, persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(self.preprocessing.std).view(1, 3, 1, 1) * 255, persistent=False
        )

    @property
    def scored_dim(self) -> int:
        """Width S of what the feature scores read."""
        return self.backbone_dim + self.earlier_dim

    @property
    def earlier_dim(self) -> int:
        """Width of the earlier map that the Mahalanobis distance reads too; 0 if there is none."""
        return self.earlier_map.width if self.earlier_map else 0

    def backbone_features(self, images: Tensor) -> Tensor:
        """Features (N, B) of photos (N, 3, S, S), uint8 or floats in [0, 255]."""
        features: Tensor = self.backbone(self._normalised(images))
        return features

    def scored_features(self, images: Tensor) -> Tensor:
        """The same, and the means of the earlier map behind them (N, S) where the model reads one."""
        if self.earlier_map is None:
            return self.backbone_features(images)
        return features_and_map(self.backbone, self._normalised(images), self.earlier_map)

    def classify(self, scored_features: Tensor) -> ClassifierOutput:
        """Bottleneck and head on features (N, S) of `scored_features`, or (N, B) without the map."""
        backbone_features = scored_features[:, : self.backbone_dim]
        features = self.neck(backbone_features)
        return ClassifierOutput(self.head(features), features, backbone_features, scored_features)

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Photos (N, 3, S, S), uint8 or floats in [0, 255], to logits and features."""
        # Nothing is trained by the earlier map, and the backbone may be wrapped or compiled for training.
        read = self.backbone_features if self.training else self.scored_features
        return self.classify(read(images))

    def take_head(self, head: nn.Linear) -> None:
        """Answer as a linear layer (K, D) on the same features does.

        Raises:
            ConfigError: If it is of another shape than the model's own.
        """
        if head.weight.shape != self.head.weight.shape:
            raise ConfigError(
                f"head: expected a layer of {self.head.in_features} features and {len(self.classes)} "
                f"classes, got {head.in_features} and {head.out_features}"
            )
        with torch.no_grad():
            self.head.weight.copy_(head.weight)
            self.head.bias.zero_() if head.bias is None else self.head.bias.copy_(head.bias)

    def fit_scores(self, features: Tensor, labels: Tensor, k: int = 10) -> None:
        """Fit the feature scores to training features (N, S) of `scored_features`, labels (N,).

        Raises:
            ValueError: If the features are of another width, or a label is no class.
        """
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise ValueError(
                f"labels: expected classes from 0 to {len(self.classes) - 1}, got {int(labels.min())} "
                f"to {int(labels.max())}"
            )
        if features.shape[1] != self.scored_dim:
            raise ValueError(
                f"features: expected {self.scored_dim} columns, as scored_features() gives them, "
                f"got {features.shape[1]}"
            )
        super().fit_scores(features, labels, k)

    def scores(self, output: ClassifierOutput) -> dict[str, Tensor]:
        """Every ood_score (N,) of a forward pass, by name; larger means more out-of-distribution.

        "mahalanobis" and "knn" need `fit_scores`, "combined" needs `calibrate`; all of them an output of
        evaluation mode.
        """
        return self.row_scores(output.logits, output.scored_features)

    @torch.no_grad()
    def calibrate(
        self,
        scored_features: Tensor,
        classwise: bool = False,
        altered: Sequence[Tensor] = (),
    ) -> None:
        """Calibrate every score on held-out in-distribution features (n, S) of `scored_features`.

        Args:
            scored_features: Features (n, S) that nothing was trained on.
            classwise: One calibration for each predicted class instead of one for all.
            altered: Features (m, S) of such photos after each way of `knownot.data.altered`: they
                choose the parts of the combined score. Without them it keeps the parts that it has.
        """
        with evaluating(self):
            output, *of_altered = (
                self.classify(rows.to(self.device)) for rows in (scored_features, *altered)
            )
        if altered:
            known, *outliers = ((o.logits, o.scored_features) for o in (output, *of_altered))
            self.choose_combination(known, outliers)
        groups = output.logits.argmax(1).cpu() if classwise else None
        self.calibrate_rows(output.logits, output.scored_features, groups)

    def p_values(
        self,
        output: ClassifierOutput,
        scores: Mapping[str, Tensor],
        score: str,
        alpha: float | None = None,
    ) -> Tensor:
        """p-values (N,), float64, of one score of a forward pass, to be compared with `alpha`."""
        return self.row_p_values(scores, score, output.logits.argmax(1), alpha)

    def predict(
        self,
        photos: Any,
        *,
        alpha: float | None = None,
        score: str | None = None,
        batch_size: int | None = None,
    ) -> list[Prediction]:
        """Answers for photos.

        Args:
            photos: One or several of: a path, a Pillow image, an array (H, W), (H, W, 3) or
                (H, W, 4) of uint8, a tensor (3, H, W) of uint8 or of floats in [0, 1];
                or a stack of N of these.
            alpha: Share of in-distribution photos that may be called unknown; the model's own if
                not given.
            score: Name of the score that decides; the model's default if not given.
            batch_size: Photos sent through the model together.

        Returns:
            One `Prediction` for each photo, in order. What cannot be read, or is none of the above
            kinds, has `error` set.
        """
        photos = as_list(photos)
        return list(self.predict_iter(photos, alpha=alpha, score=score, batch_size=batch_size))

    def predict_iter(
        self,
        photos: Sequence[Any],
        *,
        alpha: float | None = None,
        score: str | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Prediction]:
        """Like `predict`, one answer after another in bounded memory."""
        score = score or self.default_score
        self.calibration(score)  # a wrong name is told before any photo is read
        alpha = self.valid_alpha(alpha)
        size = self.batch_size if batch_size is None else batch_size
        with evaluating(self), cpu_workers(self.device, len(photos), size) as workers:
            yield from answers_in_order(
                photos,
                self._pixels,
                lambda pixels: self._answer(torch.stack(pixels), alpha, score),
                Prediction.failed,
                size,
                workers,
            )

    @property
    def batch_size(self) -> int:
        """Photos sent through the backbone together, by device."""
        return CPU_BATCH if self.device.type == "cpu" else GPU_BATCH

    @torch.no_grad()
    def _answer(self, images: Tensor, alpha: float, score: str) -> list[Prediction]:
        output = self(images.to(self.device))
        scores = self.scores(output)
        p_values = self.p_values(output, scores, score, alpha)
        confidence, index = output.logits.float().softmax(1).max(1)
        unknown = flagged(p_values, alpha).tolist()
        return [
            Prediction(
                label=UNKNOWN if unknown[row] else self.classes[k],
                is_unknown=unknown[row],
                ood_score=float(scores[score][row]),
                p_value=p,
                nearest_class=self.classes[k],
                confidence=float(confidence[row]),
                scores={name: float(values[row]) for name, values in scores.items()},
            )
            for row, (p, k) in enumerate(zip(p_values.tolist(), index.tolist(), strict=True))
        ]

    def _normalised(self, images: Tensor) -> Tensor:
        pixels = (images.to(self.mean.dtype) - self.mean) / self.std
        return pixels.contiguous(memory_format=torch.channels_last)

    def _pixels(self, photo: Any) -> Tensor:
        if isinstance(photo, (str, Path)):
            return self.preprocessing.read(Path(photo))
        return self.preprocessing.from_pil(to_pil(photo))
