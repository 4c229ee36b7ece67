"""What an exported file says about itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from knownot.errors import ModelFileError
from knownot.runtime.calibration_summary import CalibrationSummary

FORMAT_VERSION = 1
# Names of the graph's inputs and outputs, in order. The inputs after the first have defaults.
INPUTS = ("photos", "prepared", "score", "alpha")
OUTPUTS = (
    "logits",
    "class_index",
    "confidence",
    "scores",
    "ood_score",
    "p_value",
    "is_unknown",
)


@dataclass(frozen=True)
class ExportMetadata:
    """Description of an exported model.

    Attributes:
        classes: Class names, in the order of the logits.
        scores: Names of the scores, in the order of the graph's `scores`.
        default_score: The one that decides.
        alpha: Share of in-distribution photos that may be called unknown.
        threshold: The default score above which a photo is unknown at `alpha`, of the calibration
            of all classes together; None if it is infinite. The graph decides by p-values.
        classwise: Whether calibration is by predicted class.
        image_size: Side S of the squares that the backbone sees, in pixels.
        crop: Share of a photo's shorter side that the centre crop keeps.
        mean: Channel means (RGB, in [0, 1]) subtracted inside the graph.
        std: Channel standard deviations divided by inside the graph.
        task: "classify".
        precision: Number format of the weights.
        versions: Versions of the packages that made the file.
        parity: What the comparison with the torch model measured.
        calibration: How many photos calibrated it, and histograms of their scores.
        format_version: Version of this description.
    """

    classes: list[str]
    scores: list[str]
    default_score: str
    alpha: float
    threshold: float | None
    classwise: bool
    image_size: int
    crop: float
    mean: list[float]
    std: list[float]
    task: str = "classify"
    precision: str = "float32"
    versions: dict[str, str] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    calibration: CalibrationSummary | None = None
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> ExportMetadata:
        """Read what `to_json` wrote.

        Raises:
            ModelFileError: If it is anything else; the text names no file.
        """
        try:
            data = json.loads(text)
            version, task = data["format_version"], data["task"]
        except (ValueError, TypeError, KeyError):
            raise ModelFileError("its description is damaged") from None
        if version != FORMAT_VERSION or task != "classify":
            raise ModelFileError(
                f"holds a {task!r} model in format {version!r}; this version of knownot reads "
                f"classifiers in format {FORMAT_VERSION}: export it anew or update knownot"
            )
        try:
            if data.get("calibration") is not None:
                data["calibration"] = CalibrationSummary.from_dict(data["calibration"])
            metadata = cls(**data)
            metadata._check()
        except (TypeError, ValueError, KeyError, AttributeError):
            raise ModelFileError("its description is damaged") from None
        return metadata

    def _check(self) -> None:
        names = [*self.classes, *self.scores]
        if not (
            all(isinstance(name, str) for name in names)
            and len(self.classes) >= 2
            and self.default_score in self.scores
            and 0 < self.alpha < 1
            and isinstance(self.image_size, int)
            and 8 <= self.image_size <= 2048
            and 0 < self.crop <= 1
        ):
            raise ValueError("out of range")
