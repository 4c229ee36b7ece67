"""What the service answers, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

_EXAMPLE: dict[str, Any] = {
    "score": "combined",
    "alpha": 0.05,
    "photos": [
        {
            "name": "rex.jpg",
            "label": "dog",
            "is_unknown": False,
            "ood_score": 1.93,
            "p_value": 0.53,
            "confidence": 0.998,
            "nearest": [
                {"label": "dog", "probability": 0.998},
                {"label": "cat", "probability": 0.002},
            ],
            "nearest_photos": [{"label": "dog", "thumbnail": "thumbnails/17?of=5f2a90c1"}],
            "scores": {"combined": 1.93, "knn": 0.21, "vos": -4.4},
            "boxes": None,
            "error": None,
        },
        {"name": "torn.jpg", "error": {"error": "unreadable_photo", "message": "torn.jpg: ..."}},
    ],
}


class Problem(BaseModel):
    """Why there is no answer."""

    error: str = Field(description="One word for programs.", examples=["too_many_pixels"])
    message: str = Field(description="One sentence for people.")


class NearestClass(BaseModel):
    """A known class and its softmax probability."""

    label: str
    probability: float


class NearestPhoto(BaseModel):
    """A training photo that looks alike to the model."""

    label: str = Field(description="Its class.")
    thumbnail: str = Field(description="A small copy, relative to the address of `/predict`.")


class Box(BaseModel):
    """One object of a detector's answer; corners in pixels of the upright photo."""

    box: tuple[float, float, float, float]
    label: str
    is_unknown: bool
    ood_score: float | None
    p_value: float | None
    nearest_class: str
    confidence: float | None
    scores: dict[str, float | None]


class PhotoAnswer(BaseModel):
    """The answer for one photo: of a detector `boxes`; `error` alone if it could not be read."""

    name: str = Field(description="The file's name as it was sent.")
    label: str | None = Field(None, description="Class name, or `unknown`.")
    is_unknown: bool | None = Field(None, description="Whether the p-value is below alpha.")
    ood_score: float | None = Field(None, description="Larger is more out-of-distribution.")
    p_value: float | None = Field(
        None, description="Share of known photos that look at least as strange, in (0, 1]."
    )
    confidence: float | None = Field(None, description="Probability of the nearest class.")
    nearest: list[NearestClass] = Field([], description="Most likely classes, likeliest first.")
    nearest_photos: list[NearestPhoto] = Field(
        [], description="Up to 3, the nearest first, where thumbnails of training photos are kept."
    )
    scores: dict[str, float | None] = Field({}, description="Every ood_score by name.")
    boxes: list[Box] | None = Field(None, description="Objects; only of detectors.")
    error: Problem | None = None

    def judged(self) -> Sequence[PhotoAnswer | Box]:
        """What was called known or unknown: the photo itself, or a detector's boxes."""
        return [self] if self.boxes is None else self.boxes


class Answers(BaseModel):
    """The answers for the photos of a request, in their order."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    score: str = Field(description="The score that decided.")
    alpha: float = Field(description="Share of known photos that may be called unknown.")
    photos: list[PhotoAnswer]


class HistogramInfo(BaseModel):
    """Counts between edges."""

    edges: list[float]
    counts: list[int]


class LimitsInfo(BaseModel):
    """What one request may hold."""

    upload_bytes: int
    photo_pixels: int
    photos: int
    seconds: float
    formats: list[str]


class ModelInfo(BaseModel):
    """The model that answers."""

    task: str
    classes: list[str]
    scores: list[str]
    default_score: str
    alpha: float
    threshold: float | None = Field(
        description="The default score above which a photo is unknown at alpha; null if infinite."
    )
    classwise: bool = Field(description="Calibrated by class; the threshold is then of them all.")
    box_threshold: float | None = Field(description="Least confidence of a detector's box.")
    calibration_photos: list[int] | None = Field(
        description="Photos, or a detector's boxes, that p-values are taken among; of each class "
        "if classwise, of a detector of each class and size (small, medium, large)."
    )
    histograms: dict[str, HistogramInfo] = Field(
        description="Their scores, by name; empty for files exported earlier."
    )
    image_size: int
    precision: str
    versions: dict[str, str]
    samples: int = Field(description="Photos of the owner to try, at /samples/0 and on.")
    limits: LimitsInfo


class Health(BaseModel):
    """That the service lives, or takes photos."""

    status: str = Field(examples=["ok"])
