"""`UnknownAwareDetector`: a detector whose every box carries `ood_score` and p-value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from knownot.core.calibration import flagged
from knownot.core.virtual_outlier_loss import VirtualOutlierLoss
from knownot.data.given_photos import as_list, to_pil
from knownot.data.photo import open_photo
from knownot.errors import ConfigError, DataError
from knownot.models.prediction import Detection, DetectionPrediction
from knownot.models.regions import Detections, RegionModel, Targets
from knownot.models.unknown_aware import UNKNOWN, UnknownAwareModel, VosSettings

# COCO's borders between small, medium and large objects, square pixels.
SIZE_BORDERS = (32.0**2, 96.0**2)


class UnknownAwareDetector(UnknownAwareModel):
    """A detector that gives, with every box, how far its content is from what it knows.

    Args:
        regions: The detector, adapted.
        classes: Class names, at least one.
        vos: Settings of the loss.
        alpha: Share of boxes around known objects that may be called unknown.

    Attributes:
        box_threshold: Least `scores` of a box that counts, found on ID validation photos.

    Raises:
        ConfigError: If there is no class, or `regions` was built for another number of them.
    """

    def __init__(
        self,
        regions: RegionModel,
        classes: Sequence[str],
        *,
        vos: VosSettings | None = None,
        alpha: float = 0.05,
    ) -> None:
        super().__init__(classes, alpha)
        if not classes:
            raise ConfigError("classes: expected at least one")
        if len(classes) != regions.num_classes:
            raise ConfigError(
                f"classes: regions was built for {regions.num_classes}, got {len(classes)}"
            )
        self.regions = regions
        self.vos_settings = vos or VosSettings()
        self.box_threshold = 0.5
        self.vos = VirtualOutlierLoss(
            head=regions.class_head,
            num_classes=len(self.classes),
            feature_dim=regions.feature_dim,
            background_index=regions.background_index,
            **self.vos_settings.model_dump(),
        )

    def losses(self, images: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Losses of a training step, scalars by name; "loss_vos" is that of the virtual outliers.

        Args:
            images: Photos (3, H, W), uint8 or floats in [0, 1], of any sizes.
            targets: For each photo `boxes` (B, 4), corners in pixels, and `labels` (B,) in [0, K).
        """
        losses, matched = self.regions.losses([_unit_range(image) for image in images], targets)
        losses["loss_vos"] = self.vos(matched.features, matched.logits, matched.labels)
        return losses

    @torch.no_grad()
    def forward(self, images: list[Tensor]) -> list[Detections]:
        """Boxes of photos (3, H, W), uint8 or floats in [0, 1], of any sizes.

        Returns:
            For each photo `boxes` (B, 4), corners in pixels; `labels` (B,); `scores` (B,) in
            [0, 1]; `logits` (B, C); `features` (B, D); every ood_score (B,) by name under
            "ood.<name>"; and once calibrated `ood_score` (B,), `p_value` (B,), float64, and
            `is_unknown` (B,), bool, of the default score at `alpha`.
        """
        found = self.regions.detect([_unit_range(image) for image in images])
        counts = [len(d["labels"]) for d in found]
        logits = torch.cat([d["logits"] for d in found])
        features = torch.cat([d["features"] for d in found])
        for name, values in self.row_scores(logits, features).items():
            for detections, part in zip(found, torch.split(values, counts), strict=True):
                detections[f"ood.{name}"] = part
        if self.calibrations:
            for detections in found:
                p_values = self.p_values(detections, self.default_score)
                detections["ood_score"] = detections[f"ood.{self.default_score}"]
                detections["p_value"] = p_values
                detections["is_unknown"] = flagged(p_values, self.alpha)
        return found

    def p_values(self, detections: Detections, score: str) -> Tensor:
        """p-values (B,), float64, of one score of one photo's boxes."""
        groups = self.groups(detections["boxes"], detections["labels"])
        return self.row_p_values({score: detections[f"ood.{score}"]}, score, groups)

    @staticmethod
    def groups(boxes: Tensor, labels: Tensor) -> Tensor:
        """Calibration group (B,) of boxes (B, 4) and labels (B,): class and size of the box."""
        sides = boxes[:, 2:] - boxes[:, :2]
        borders = torch.tensor(SIZE_BORDERS, device=boxes.device)
        size = torch.bucketize(sides.prod(1), borders)
        return labels * (len(SIZE_BORDERS) + 1) + size

    def calibrate(self, detections: Detections) -> None:
        """Calibrate every score on boxes around known objects of held-out photos.

        Args:
            detections: `boxes`, `labels`, `logits`, `features` of n boxes that were matched with
                an annotated object, from photos that nothing was trained on.
        """
        groups = self.groups(detections["boxes"], detections["labels"]).cpu()
        self.calibrate_rows(detections["logits"], detections["features"], groups)

    def predict(
        self, photos: Any, *, alpha: float | None = None, score: str | None = None
    ) -> list[DetectionPrediction]:
        """Answers for photos: the boxes above `box_threshold`, most certain first.

        Args:
            photos: One or several of: a path, a Pillow image, an array (H, W), (H, W, 3) or
                (H, W, 4) of uint8, a tensor (3, H, W) of uint8 or of floats in [0, 1].
            alpha: Share of boxes around known objects that may be called unknown.
            score: Name of the score that decides; the model's default if not given.

        Returns:
            One answer for each photo, in order. A photo that cannot be read has `error` set.

        Raises:
            DataError: If an object is none of the above kinds.
        """
        return list(self.predict_iter(as_list(photos), alpha=alpha, score=score))

    def predict_iter(
        self,
        photos: Sequence[Any],
        *,
        alpha: float | None = None,
        score: str | None = None,
        box_threshold: float | None = None,
    ) -> Iterator[DetectionPrediction]:
        """Like `predict`, one answer after another; `box_threshold` may differ from the model's."""
        score = score or self.default_score
        self.calibration(score)  # a wrong name is told before any photo is read
        alpha = self.valid_alpha(alpha)
        least = self.box_threshold if box_threshold is None else box_threshold
        for photo in photos:
            path = str(photo) if isinstance(photo, (str, Path)) else None
            try:
                image = open_photo(photo) if path is not None else to_pil(photo)
            except DataError as error:
                if path is None:
                    raise
                yield DetectionPrediction([], 0, 0, path, str(error))
                continue
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(self.device)
            (found,) = self([pixels])
            boxes = self._answer(found, alpha, score, least)
            yield DetectionPrediction(boxes, image.width, image.height, path)

    def _answer(self, found: Detections, alpha: float, score: str, least: float) -> list[Detection]:
        p_values = self.p_values(found, score)
        unknown = flagged(p_values, alpha).tolist()
        names = [key.removeprefix("ood.") for key in found if key.startswith("ood.")]
        scores = {name: found[f"ood.{name}"].tolist() for name in names}
        columns = (found[key].tolist() for key in ("boxes", "labels", "scores"))
        return [
            Detection(
                box=tuple(box),
                label=UNKNOWN if unknown[row] else self.classes[label],
                is_unknown=unknown[row],
                ood_score=scores[score][row],
                p_value=float(p_values[row]),
                nearest_class=self.classes[label],
                confidence=confidence,
                scores={name: values[row] for name, values in scores.items()},
            )
            for row, (box, label, confidence) in enumerate(zip(*columns, strict=True))
            if confidence >= least
        ]


def _unit_range(image: Tensor) -> Tensor:
    return image if image.is_floating_point() else image.float() / 255
