"""What a model answers for one photo."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

# The label of what is no known class.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Prediction:
    """Answer for one photo.

    Attributes:
        label: Class name, or "unknown" if `is_unknown`; empty if the photo could not be read.
        is_unknown: Whether `p_value < alpha`.
        ood_score: Default score; larger means more out-of-distribution.
        p_value: Share of in-distribution photos that look at least as strange, in (0, 1].
        nearest_class: Most likely class, also for an unknown photo.
        confidence: Softmax probability of `nearest_class`, in [0, 1].
        scores: Every score by name, larger meaning more out-of-distribution.
        path: File of the photo, if it came from one.
        error: Why the photo could not be read, or None.
        frame: Number of the frame, from 0, if `path` is a video.
        time: Its time in seconds since the first frame.
    """

    label: str
    is_unknown: bool
    ood_score: float
    p_value: float
    nearest_class: str = ""
    confidence: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    path: str | None = None
    error: str | None = None
    frame: int | None = None
    time: float | None = None

    @classmethod
    def failed(cls, error: str) -> Prediction:
        """The answer for a photo that could not be read."""
        return cls("", False, float("nan"), float("nan"), error=error)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON; numbers that do not exist (a photo with an error) are None."""
        data = _plain(self)
        if self.error is not None:
            for name in ("is_unknown", "ood_score", "p_value", "confidence"):
                data[name] = None
        return data


@dataclass(frozen=True)
class Detection:
    """Answer for one box.

    Attributes:
        box: Corners (x1, y1, x2, y2) in pixels.
        label: Class name, or "unknown" if `is_unknown`.
        is_unknown: Whether `p_value < alpha`.
        ood_score: Default score; larger means more out-of-distribution. Of a proposal that no class
            claims, its objectness.
        p_value: Share of boxes around known objects that look at least as strange, in (0, 1]. Of
            a proposal, the share of photos of known objects with one that is at least as sure.
        nearest_class: Class of the box, also for an unknown one; empty for a proposal.
        confidence: The detector's score of `nearest_class`, or the objectness, in [0, 1].
        scores: Every score by name, larger meaning more out-of-distribution.
    """

    box: tuple[float, ...]
    label: str
    is_unknown: bool
    ood_score: float
    p_value: float
    nearest_class: str
    confidence: float
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DetectionPrediction:
    """Answer for one photo: its boxes.

    Attributes:
        boxes: The boxes, most certain first.
        width: Width of the photo in pixels.
        height: Height of the photo in pixels.
        path: File of the photo, if it came from one.
        error: Why the photo could not be read, or None.
        frame: Number of the frame, from 0, if `path` is a video.
        time: Its time in seconds since the first frame.
    """

    boxes: list[Detection]
    width: int
    height: int
    path: str | None = None
    error: str | None = None
    frame: int | None = None
    time: float | None = None

    @classmethod
    def failed(cls, error: str) -> DetectionPrediction:
        """The answer for a photo that could not be read."""
        return cls([], 0, 0, error=error)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return _plain(self)


def _plain(answer: Prediction | DetectionPrediction) -> dict[str, Any]:
    """All attributes; of a photo without those of a frame."""
    data = asdict(answer)
    if answer.frame is None:
        del data["frame"], data["time"]
    return data
