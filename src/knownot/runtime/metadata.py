"""What an exported file says about itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from knownot.errors import ModelFileError
from knownot.runtime.calibration_summary import CalibrationSummary

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ExportMetadata:
    """Description of an exported model; what classifiers and detectors share.

    A row is a photo (classifier) or a box (detector).

    Attributes:
        classes: Class names, in the order of the class logits.
        scores: Names of the scores, in the order of the graph's `scores`.
        default_score: The one that decides.
        alpha: Share of in-distribution rows that may be called unknown.
        threshold: The default score above which a row is unknown at `alpha`, of the calibration of
            all groups together; None if it is infinite. The graph decides by p-values.
        classwise: Whether calibration is by predicted class (of a detector by class and size).
        image_size: Side S of the squares that the backbone sees, or the shorter side of the photo
            that a detector sees, in pixels.
        mean: Channel means (RGB, in [0, 1]) subtracted inside the graph.
        std: Channel standard deviations divided by inside the graph.
        task: "classify" or "detect".
        precision: Number format of the weights.
        versions: Versions of the packages that made the file.
        parity: What the comparison with the torch model measured.
        calibration: How many rows calibrated it, and histograms of their scores.
        format_version: Version of this description.
        inputs: Names of the graph's inputs, in order; those after the first have defaults.
    """

    inputs: ClassVar[tuple[str, ...]]
    _outputs: ClassVar[tuple[str, ...]]
    least_classes: ClassVar[int]

    classes: list[str]
    scores: list[str]
    default_score: str
    alpha: float
    threshold: float | None
    classwise: bool
    image_size: int
    mean: list[float]
    std: list[float]
    task: str
    precision: str = "float32"
    versions: dict[str, str] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    calibration: CalibrationSummary | None = None
    format_version: int = FORMAT_VERSION

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs, in order."""
        return self._outputs

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> ClassifierMetadata | DetectorMetadata:
        """Read what `to_json` wrote.

        Raises:
            ModelFileError: If it is anything else; the text names no file.
        """
        try:
            data = json.loads(text)
            version, task = data["format_version"], data["task"]
            kind = _KINDS.get(task)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ModelFileError("its description is damaged") from None
        if version != FORMAT_VERSION or kind is None:
            raise ModelFileError(
                f"holds a {task!r} model in format {version!r}; this version of knownot reads "
                f"classifiers and detectors in format {FORMAT_VERSION}: export it anew or update "
                "knownot"
            )
        try:
            if data.get("calibration") is not None:
                data["calibration"] = CalibrationSummary.from_dict(data["calibration"])
            metadata = kind(**data)
            metadata._check()
        except (TypeError, ValueError, KeyError, AttributeError):
            raise ModelFileError("its description is damaged") from None
        return metadata

    def _check(self) -> None:
        names = [*self.classes, *self.scores]
        if not (
            all(isinstance(name, str) for name in names)
            and len(self.classes) >= self.least_classes
            and self.default_score in self.scores
            and 0 < self.alpha < 1
            and isinstance(self.image_size, int)
            and 8 <= self.image_size <= 4096
        ):
            raise ValueError("out of range")


@dataclass(frozen=True, kw_only=True)
class ClassifierMetadata(ExportMetadata):
    """Description of an exported classifier.

    Attributes:
        crop: Share of a photo's shorter side that the centre crop keeps.
        bank_rows: Training photos among which the graph finds the nearest; 0 if it does not.
    """

    inputs: ClassVar[tuple[str, ...]] = ("photos", "prepared", "score", "alpha")
    _outputs: ClassVar[tuple[str, ...]] = (
        "logits",
        "class_index",
        "confidence",
        "scores",
        "ood_score",
        "p_value",
        "is_unknown",
    )
    least_classes: ClassVar[int] = 2

    crop: float
    bank_rows: int = 0
    task: str = "classify"

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs, in order."""
        return (*self._outputs, "nearest_rows") if self.bank_rows else self._outputs

    def _check(self) -> None:
        super()._check()
        if not (0 < self.crop <= 1 and isinstance(self.bank_rows, int) and self.bank_rows >= 0):
            raise ValueError("crop, bank_rows")


@dataclass(frozen=True, kw_only=True)
class DetectorMetadata(ExportMetadata):
    """Description of an exported detector.

    Attributes:
        longest_side: What the longer side of the photo that it sees may be, in pixels.
        box_threshold: Least confidence of a box that is shown, in [0, 1].
    """

    inputs: ClassVar[tuple[str, ...]] = ("photo", "score", "alpha", "box_threshold")
    _outputs: ClassVar[tuple[str, ...]] = (
        "boxes",
        "class_index",
        "confidence",
        "logits",
        "scores",
        "ood_score",
        "p_value",
        "is_unknown",
    )
    least_classes: ClassVar[int] = 1

    longest_side: int
    box_threshold: float
    task: str = "detect"

    def _check(self) -> None:
        super()._check()
        if not (0 <= self.box_threshold <= 1 and isinstance(self.longest_side, int)):
            raise ValueError("box_threshold, longest_side")


_KINDS: dict[str, type[ClassifierMetadata] | type[DetectorMetadata]] = {
    "classify": ClassifierMetadata,
    "detect": DetectorMetadata,
}
