"""`UnknownAwareDetector`: a detector whose every box carries `ood_score` and p-value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from knownot.core.calibration import ConformalCalibration, flagged
from knownot.core.virtual_outlier_loss import VirtualOutlierLoss
from knownot.data.given_photos import as_list, to_pil
from knownot.data.photo import open_photo
from knownot.errors import ConfigError, DataError
from knownot.models.prediction import UNKNOWN, Detection, DetectionPrediction
from knownot.models.regions import Detections, RegionModel, Targets
from knownot.models.shown_boxes import highest_unclaimed, unclaimed, without_repeats
from knownot.models.unknown_aware import UnknownAwareModel, VosSettings

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
        proposal_calibration: Of the highest objectness that no class claims, over ID photos; None
            where it was not measured.

    Raises:
        ConfigError: If there is no class, or `regions` was built for another number of them.
    """

    task: ClassVar[Literal["classify", "detect"]] = "detect"
    # A photo has many boxes: with four times as many rows a detection takes a twentieth longer.
    max_bank: ClassVar[int] = 5_000

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
        self.proposal_calibration: ConformalCalibration | None = None
        self.vos = VirtualOutlierLoss(
            head=regions.class_head,
            num_classes=len(self.classes),
            feature_dim=regions.feature_dim,
            background_index=regions.background_index,
            **self.vos_settings.model_dump(),
        )

    @property
    def batch_size(self) -> int:
        """Photos that `predict` takes together: one, as their sizes differ."""
        return 1

    def losses(self, images: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Losses of a training step, scalars by name; "loss_vos" is that of the virtual outliers.

        Args:
            images: Photos (3, H, W), uint8 or floats in [0, 1], of any sizes.
            targets: For each photo `boxes` (B, 4), corners in pixels, and `labels` (B,) in [0, K).
        """
        targets = [{**target, "labels": target["labels"].long()} for target in targets]
        losses, matched = self.regions.losses([_unit_range(image) for image in images], targets)
        losses["loss_vos"] = self.vos(matched.features, matched.logits, matched.labels)
        return losses

    @torch.no_grad()
    def forward(
        self, images: list[Tensor], proposals: bool = False, every_score: bool = False
    ) -> list[Detections]:
        """Boxes of photos (3, H, W), uint8 or floats in [0, 1], of any sizes.

        Args:
            images: The photos. Of different sizes, a detector pads them to the largest, which moves
                boxes and scores a little: `predict` and the calibration take them one by one.
            proposals: Whether to add the detector's `proposals` (P, 4) and `objectness` (P,).
            every_score: Whether to compute every ood_score, not the default one alone.

        Returns:
            For each photo `boxes` (B, 4), corners in pixels; `labels` (B,); `scores` (B,) in
            [0, 1]; `logits` (B, C); `features` (B, D); `scored_features` (B, S), which the feature
            scores read; and once calibrated `ood_score` (B,), `p_value` (B,), float64, and `is_unknown`
            (B,), bool, of the default score at `alpha`. Ood_scores (B,) by name under "ood.<name>": the
            default one and its parts, or every one; of a model that is not calibrated, every one.
        """
        if not images:
            return []
        found = self.regions.detect([_unit_range(image) for image in images], proposals)
        for detections in found:
            detections.setdefault("scored_features", detections["features"])
        # All photos' boxes together: a call costs more than the few boxes of one photo.
        boxes, labels, logits, features = (
            torch.cat([detections[name] for detections in found])
            for name in ("boxes", "labels", "logits", "scored_features")
        )
        only = None if every_score or not self.calibrations else self.default_score
        scores = self.row_scores(logits, features, only)
        columns = {f"ood.{name}": values for name, values in scores.items()}
        if self.calibrations:
            columns["ood_score"] = scores[self.default_score]
            p_values = self.row_p_values(scores, self.default_score, self.groups(boxes, labels))
            exact = boxes.device.type != "mps"  # which has no float64
            dtype = p_values.dtype if exact else torch.float32
            columns["p_value"] = p_values.to(boxes.device, dtype)
            columns["is_unknown"] = flagged(p_values, self.alpha).to(boxes.device)
        counts = [len(detections["labels"]) for detections in found]
        for name, values in columns.items():
            for detections, part in zip(found, torch.split(values, counts), strict=True):
                detections[name] = part
        return found

    def p_values(self, detections: Detections, score: str, alpha: float | None = None) -> Tensor:
        """p-values (B,), float64, of one photo's boxes by one of their scores, to be held against `alpha`."""
        groups = self.groups(detections["boxes"], detections["labels"])
        return self.row_p_values({score: detections[f"ood.{score}"]}, score, groups, alpha)

    @staticmethod
    def groups(boxes: Tensor, labels: Tensor) -> Tensor:
        """Calibration group (B,) of boxes (B, 4) and labels (B,): class and size of the box."""
        sides = boxes[:, 2:] - boxes[:, :2]
        borders = torch.tensor(SIZE_BORDERS, device=boxes.device)
        # Comparisons export to any runtime, unlike a search.
        size = (sides.prod(1).unsqueeze(1) > borders).sum(1)
        return labels * (len(SIZE_BORDERS) + 1) + size

    def calibrate(
        self,
        detections: Detections,
        known: Tensor | None = None,
        altered: Sequence[Detections] = (),
    ) -> None:
        """Calibrate every score on boxes around known objects of held-out photos.

        The other boxes, on background and on parts of objects, help to scale the parts of the
        combined score: they fill the range between known objects and unknown ones.

        Args:
            detections: `boxes`, `labels`, `logits`, `scored_features` of n boxes, from photos that
                nothing was trained on.
            known: Which of them were matched with an annotated object (n,), bool; all if not given.
            altered: Boxes, with `scores`, on such photos after each way of `knownot.data.altered`:
                with all boxes of `detections` above the box threshold they choose the parts of the
                combined score, as the paper's protocol counts boxes. Without them it keeps its parts.
        """
        if altered:
            above = [found["scores"] >= self.box_threshold for found in (detections, *altered)]
            rows = [
                (found["logits"][kept], found["scored_features"][kept])
                for found, kept in zip((detections, *altered), above, strict=True)
            ]
            self.choose_combination(rows[0], rows[1:])
        groups = self.groups(detections["boxes"], detections["labels"]).cpu()
        self.calibrate_rows(detections["logits"], detections["scored_features"], groups, known)

    def calibrate_proposals(self, photos: Sequence[Detections]) -> None:
        """Calibrate the objectness above which a proposal that no class claims is shown.

        Of new photos like these, at most a share of `alpha` then shows such a proposal: the
        calibration is of each photo's highest.

        Args:
            photos: `boxes`, `scores`, `proposals` and `objectness` of held-out ID photos.
        """
        highest = [
            highest_unclaimed(p["proposals"], p["objectness"], self._claiming(p)) for p in photos
        ]
        self.proposal_calibration = ConformalCalibration(torch.tensor(highest))

    def unclaimed_proposals(
        self, found: Detections, alpha: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Indices (M,) and p-values (M,) of the proposals to be shown as unknown objects.

        Args:
            found: One photo's `boxes`, `scores`, `proposals` and `objectness`.
            alpha: Share of photos of known objects that may show one.

        Raises:
            ConfigError: If proposals were not calibrated.
        """
        if self.proposal_calibration is None or "proposals" not in found:
            raise ConfigError(
                "proposals: this detector has none that are calibrated; train it anew, or leave "
                "them out"
            )
        left = unclaimed(found["proposals"], found["objectness"], self._claiming(found)).cpu()
        p_values = self.proposal_calibration.p_value(found["objectness"].cpu()[left])
        shown = flagged(p_values, self.valid_alpha(alpha))
        return left[shown], p_values[shown]

    def _claiming(self, found: Detections) -> Tensor:
        """The boxes that proposals are held against, by the model's own threshold."""
        return found["boxes"][found["scores"] >= self.box_threshold]

    def predict(
        self,
        photos: Any,
        *,
        alpha: float | None = None,
        score: str | None = None,
        proposals: bool = False,
    ) -> list[DetectionPrediction]:
        """Answers for photos: the boxes above `box_threshold`, most certain first.

        Args:
            photos: One or several of: a path, a Pillow image, an array (H, W), (H, W, 3) or
                (H, W, 4) of uint8, a tensor (3, H, W) of uint8 or of floats in [0, 1];
                or a stack of N of these.
            alpha: Share of boxes around known objects that may be called unknown.
            score: Name of the score that decides; the model's default if not given.
            proposals: Also show, as unknown, objects that no known class claims.

        Returns:
            One answer for each photo, in order. What cannot be read, or is none of the above kinds,
            has `error` set.

        Raises:
            ConfigError: If a setting is wrong, or proposals were not calibrated.
        """
        answers = self.predict_iter(as_list(photos), alpha=alpha, score=score, proposals=proposals)
        return list(answers)

    def predict_iter(
        self,
        photos: Sequence[Any],
        *,
        alpha: float | None = None,
        score: str | None = None,
        box_threshold: float | None = None,
        proposals: bool = False,
    ) -> Iterator[DetectionPrediction]:
        """Like `predict`, one answer after another; `box_threshold` may differ from the model's."""
        score = score or self.default_score
        self.calibration(score)  # a wrong name is told before any photo is read
        alpha = self.valid_alpha(alpha)
        least = self.box_threshold if box_threshold is None else box_threshold
        if not 0 <= least <= 1:
            raise ConfigError(f"box_threshold: expected a fraction in [0, 1], got {least}")
        for photo in photos:
            path = str(photo) if isinstance(photo, (str, Path)) else None
            try:
                pixels = self.pixels(photo)
            except DataError as error:
                yield replace(DetectionPrediction.failed(str(error)), path=path)
                continue
            (found,) = self([pixels.to(self.device)], proposals, every_score=True)
            boxes = self._answer(found, alpha, score, least)
            if proposals:
                boxes += self._unclaimed_answer(found, alpha)
            height, width = pixels.shape[1:]
            yield DetectionPrediction(boxes, width, height, path)

    def pixels(self, photo: Any) -> Tensor:
        """Pixels (3, H, W), uint8, of a photo of the kinds that `predict` takes, upright.

        Raises:
            DataError: If it cannot be read, or is too thin for this detector.
        """
        from_file = isinstance(photo, (str, Path))
        image = open_photo(photo) if from_file else to_pil(photo)
        self.regions.refuse_size(image.size, str(photo) if from_file else "photo")
        pixels: Tensor = pil_to_tensor(image)
        return pixels

    def _answer(self, found: Detections, alpha: float, score: str, least: float) -> list[Detection]:
        found = {
            key: values[found["scores"] >= least]
            for key, values in found.items()
            if key not in ("proposals", "objectness")
        }
        p_values = self.p_values(found, score, alpha)
        called = flagged(p_values, alpha)
        shown = without_repeats(found["boxes"], found["scores"], called.to(self.device))
        unknown = called.tolist()
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
            if shown[row]
        ]

    def _unclaimed_answer(self, found: Detections, alpha: float) -> list[Detection]:
        rows, p_values = self.unclaimed_proposals(found, alpha)
        return [
            Detection(
                box=tuple(found["proposals"][row].tolist()),
                label=UNKNOWN,
                is_unknown=True,
                ood_score=float(found["objectness"][row]),
                p_value=p_value,
                nearest_class="",
                confidence=float(found["objectness"][row]),
            )
            for row, p_value in zip(rows.tolist(), p_values.tolist(), strict=True)
        ]


def _unit_range(image: Tensor) -> Tensor:
    return image if image.is_floating_point() else image.float().div_(255)
