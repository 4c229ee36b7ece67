"""What classifier and detector share: the scores of features and logits, and their calibration."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from knownot.core.calibration import ConformalCalibration
from knownot.core.columns import joined
from knownot.core.combination import CombinedScore, choose_parts
from knownot.core.energy import energy
from knownot.core.gaussians import Shrinkage
from knownot.core.other_outliers import OutlierName
from knownot.core.phi import PhiName
from knownot.core.scores import FeatureScores, max_softmax
from knownot.core.virtual_outlier_loss import VirtualOutlierLoss
from knownot.errors import ConfigError, DataError, ModelFileError
from knownot.models.hub import HubMethods
from knownot.models.prediction import UNKNOWN

COMBINED = "combined"
ScoreName = Literal["energy", "vos", "msp", "mahalanobis", "knn", "combined"]
# What the default score may combine: what the method trains, and what features give for free.
COMBINED_PARTS = ("vos", "mahalanobis", "knn")
_ROWS = 1024  # that are scored together


class VosSettings(BaseModel):
    """Settings of the virtual outlier loss, as in `VirtualOutlierLoss`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(0.1, ge=0)
    queue_size: int = Field(1000, ge=2)
    draws_per_class: float = Field(10_000.0, ge=1)
    outliers_per_class: int = Field(1, ge=1)
    tail_probability: float | None = Field(None, gt=0, lt=1)
    radius_ratio: float | None = Field(None, gt=0)
    phi: PhiName = "monotone"
    gaussians: Literal["window", "streaming"] = "window"
    shrinkage: Shrinkage = "oas"
    outliers: OutlierName = "gaussian"


class UnknownAwareModel(HubMethods, nn.Module):
    """A model whose answers, one a row, carry `ood_score` and p-value.

    A row is a photo (classifier) or a box (detector). Sub-classes build `vos` and compute features
    and logits.

    Args:
        classes: Class names.
        alpha: Share of in-distribution rows that may be called unknown.

    Raises:
        ConfigError: If a class name is empty, holds control characters, or would lead out of a
            folder that is named after it.

    Attributes:
        card: Markdown text of the model card; None until one is written or loaded, and again after
            a new calibration.
    """

    task: ClassVar[Literal["classify", "detect"]]
    max_bank: ClassVar[int] = 20_000  # rows that the kNN score remembers
    vos: VirtualOutlierLoss
    vos_settings: VosSettings

    def __init__(self, classes: Sequence[str], alpha: float) -> None:
        super().__init__()
        self.classes = [_plain_name(name) for name in classes]
        if len(set(self.classes)) < len(self.classes) or UNKNOWN in self.classes:
            raise ConfigError(
                f"classes: expected different names, none of them {UNKNOWN!r}, got {self.classes}"
            )
        self.alpha = self.valid_alpha(alpha)
        self.classwise = False
        self.default_score = COMBINED
        self.feature_scores: FeatureScores | None = None
        self.combined: CombinedScore | None = None
        self.calibrations: dict[str, ConformalCalibration] = {}
        self.card: str | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vos.raw_energy_weights.device

    @property
    def with_vos(self) -> bool:
        """Whether the virtual outlier loss takes part in training."""
        return self.vos_settings.weight > 0

    @property
    def earlier_dim(self) -> int:
        """How many of the features that feature scores read, the last ones, are an earlier layer's."""
        return 0

    def row_scores(
        self, logits: Tensor, features: Tensor, only: str | None = None
    ) -> dict[str, Tensor]:
        """Every ood_score (N,) by name; larger means more out-of-distribution.

        Args:
            logits: Logits (N, C), a background column included where the model has one.
            features: What the feature scores read (N, S); used once these are fitted.
            only: Name of a score: then it alone, and the parts that it combines.
        """
        combined = self.combined if only in (None, COMBINED) else None
        parts = combined.parts if combined is not None else [only]
        scores = self._single_scores(logits, features, None if only is None else parts)
        if combined is not None:
            scores[COMBINED] = combined(scores)
        return scores

    def _single_scores(
        self, logits: Tensor, features: Tensor, names: Sequence[str | None] | None = None
    ) -> dict[str, Tensor]:
        """The scores of these names, all if not given, that are no combination."""
        of_logits: dict[str, Callable[[], Tensor]] = {
            "energy": lambda: energy(self.vos.class_logits(logits)),
            "vos": lambda: self.vos.ood_score(logits),
            "msp": lambda: max_softmax(logits, self.vos.background_index),
        }
        scores = {
            name: score() for name, score in of_logits.items() if names is None or name in names
        }
        if self.feature_scores is not None:
            scores |= self.feature_scores(features, names)
        return scores

    @torch.no_grad()
    def fit_scores(self, features: Tensor, labels: Tensor, k: int = 10) -> None:
        """Fit the feature scores to training features (N, S) with labels (N,).

        Calibrations of before are of other scores, and go.
        """
        self.calibrations = {}
        generator = torch.Generator().manual_seed(0)
        self.feature_scores = FeatureScores.fit(
            features.cpu(),
            labels.cpu().long(),
            len(self.classes),
            k=k,
            max_bank=self.max_bank,
            generator=generator,
            earlier_dim=self.earlier_dim,
        ).to(self.device)

    @torch.no_grad()
    def choose_combination(
        self, known: tuple[Tensor, Tensor], outliers: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        """Choose the parts of the combined score by outliers made of in-distribution photos.

        Calibrations from now on combine these parts; without a choice, all of `COMBINED_PARTS`.

        Args:
            known: Logits (n, C) and features (n, S) of held-out rows.
            outliers: The same of each kind of outliers, see `knownot.core.combination.choose_parts`.

        Raises:
            DataError: If there is no known row.
        """
        if not len(known[0]):
            raise DataError("known: no row to choose the parts of the combined score by")
        of_known = self.scores_to_calibrate(*known)
        of_outliers = [self.scores_to_calibrate(*rows) for rows in outliers if len(rows[0])]
        parts = [part for part in COMBINED_PARTS if part in of_known]
        self.combined = CombinedScore(choose_parts(of_known, of_outliers, parts))

    def scores_to_calibrate(self, logits: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Every score (n,) but the combined one, on the CPU, of logits (n, C) and features (n, S)."""
        # In parts: each row is compared with all that the kNN score remembers.
        parts = [
            self._single_scores(some.to(self.device), theirs.to(self.device))
            for some, theirs in zip(
                torch.split(logits, _ROWS), torch.split(features, _ROWS), strict=True
            )
        ]
        return {name: values.cpu() for name, values in joined(parts).items()}

    @torch.no_grad()
    def calibrate_rows(
        self,
        logits: Tensor,
        features: Tensor,
        groups: Tensor | None = None,
        known: Tensor | None = None,
    ) -> None:
        """Calibrate every score on held-out in-distribution rows.

        Args:
            logits: Logits (n, C) of rows that nothing was trained on.
            features: Their features (n, S).
            groups: Group of each row (n,) for one calibration each; None pools all.
            known: Which rows are calibrated on (n,), bool, all if not given. The others only set,
                with them, the scales on which the parts of the combined score are added.
        """
        self.calibrate_scores(self.scores_to_calibrate(logits, features), groups, known)

    @torch.no_grad()
    def calibrate_scores(
        self,
        scores: Mapping[str, Tensor],
        groups: Tensor | None = None,
        known: Tensor | None = None,
    ) -> None:
        """The same, on scores that another runtime may have computed.

        Args:
            scores: Every score (n,) but the combined one, by name.
            groups: As in `calibrate_rows`.
            known: As in `calibrate_rows`.
        """
        if not all(map(len, scores.values())):
            raise ValueError("scores: expected those of at least one held-out row")
        self.card = None
        chosen = COMBINED_PARTS if self.combined is None else self.combined.parts
        scores = dict(scores)
        combined = CombinedScore([part for part in chosen if part in scores])
        scores[COMBINED] = combined.fit_and_score(scores)
        self.combined = combined.to(self.device)
        self.classwise = groups is not None
        if known is not None:
            scores = {name: score[known] for name, score in scores.items()}
            groups = None if groups is None else groups[known]
        self.calibrations = {
            name: ConformalCalibration(score, groups) for name, score in scores.items()
        }

    def row_p_values(
        self,
        scores: Mapping[str, Tensor],
        score: str,
        groups: Tensor | None,
        alpha: float | None = None,
    ) -> Tensor:
        """p-values (N,), float64, of one score, to be compared with `alpha`, the model's by default.

        `groups` (N,) count where calibration is by group.
        """
        groups = groups if self.classwise else None
        return self.calibration(score).p_value(scores[score], groups, self.valid_alpha(alpha))

    @property
    def calibrated_on(self) -> int:
        """Held-out rows that p-values are ranks among; 0 of a model that is not calibrated."""
        return len(next(iter(self.calibrations.values()), ()))

    def threshold(self, alpha: float | None = None, score: str | None = None) -> float:
        """The score above which a row is unknown (of the pooled calibration)."""
        return self.calibration(score or self.default_score).threshold(self.valid_alpha(alpha))

    def threshold_range(
        self, alpha: float | None = None, score: str | None = None
    ) -> tuple[float, float]:
        """The lowest and the highest threshold in use: equal unless calibration is by group.

        Of groups with too few rows the pooled threshold counts.
        """
        calibration, alpha = self.calibration(score or self.default_score), self.valid_alpha(alpha)
        groups = set() if calibration.groups is None else set(calibration.groups.tolist())
        found = [calibration.threshold(alpha, group) for group in (None, *groups)]
        return min(found), max(found)

    def valid_alpha(self, alpha: float | None) -> float:
        """The given alpha, or the model's own for None.

        Raises:
            ConfigError: If it is outside (0, 1).
        """
        try:
            found = self.alpha if alpha is None else float(alpha)
        except (TypeError, ValueError):
            found = math.nan
        if not 0 < found < 1:
            raise ConfigError(f"alpha: expected a fraction in (0, 1), got {alpha!r}")
        return found

    def calibration(self, score: str) -> ConformalCalibration:
        """The calibration of a score.

        Raises:
            ModelFileError: If the model is not calibrated.
            ConfigError: If there is no such score.
        """
        if not self.calibrations:
            raise ModelFileError("the model is not calibrated; call calibrate() or train it anew")
        if score not in list(self.calibrations):  # which may be anything, a list too
            raise ConfigError(
                f"score: expected one of {', '.join(self.calibrations)}, got {score!r}"
            )
        return self.calibrations[score]


def _plain_name(name: str) -> str:
    # Names come from model folders of strangers and end up in file names and on terminals.
    parts = re.split(r"[/\\]", name)
    if (
        not name.strip()
        or ".." in parts
        or not parts[0]
        or any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in name)
    ):
        raise ConfigError(f"classes: {name!r} is no usable name; rename it")
    return name
