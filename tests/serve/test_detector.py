"""Detectors behind the service: the boxes of the runtime, in the answers that classifiers give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from knownot.data.inbox import Inbox, kept_facts
from knownot.models.prediction import DetectionPrediction
from knownot.runtime import OnnxDetector
from knownot.serve.service import Batching
from tests.serve.conftest import Running, encoded, running

WINDOW = 20


def photo(seed: int, height: int = 90, width: int = 70) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def detector(exported_detector: tuple[Any, Path]) -> OnnxDetector:
    return OnnxDetector(exported_detector[1], threads=1)


@pytest.fixture
def server(exported_detector: tuple[Any, Path]) -> Iterator[Running]:
    with running(exported_detector[1], batching=Batching(drift_window=WINDOW)) as handle:
        yield handle


def same(found: dict[str, Any], expected: DetectionPrediction) -> bool:
    return (
        found["label"] is None
        and len(found["boxes"]) == len(expected.boxes)
        and all(
            (one["label"], one["is_unknown"], one["nearest_class"])
            == (other.label, other.is_unknown, other.nearest_class)
            and one["box"] == pytest.approx(other.box, abs=1e-2)
            and one["p_value"] == pytest.approx(other.p_value)
            and one["scores"] == pytest.approx(other.scores, abs=1e-4, rel=1e-4)
            for one, other in zip(found["boxes"], expected.boxes, strict=True)
        )
    )


@pytest.mark.parametrize("query", [{}, {"alpha": 0.4, "score": "knn"}])
def test_boxes_are_those_of_the_runtime(
    server: Running, detector: OnnxDetector, query: dict[str, Any]
) -> None:
    # Photos of several sizes at once; the last is larger than the network looks at.
    pictures = [photo(1), photo(2, 40, 120), photo(3, 1, 1), photo(4, 200, 300)]
    answer = server.predict(*map(encoded, pictures), **query)
    assert answer.status_code == 200
    found, expected = answer.json()["photos"], detector.predict(pictures, **query)
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    assert sum(len(one["boxes"]) for one in found) > 4


def test_refusals_are_those_of_classifiers(server: Running) -> None:
    whole = encoded(photo(1))
    assert server.predict(whole[:200]).status_code == 422
    assert server.predict(encoded(Image.new("RGB", (1001, 1000)))).status_code == 413
    torn, other = server.predict(whole[:200], whole).json()["photos"]
    assert (torn["error"]["error"], torn["boxes"]) == ("unreadable_photo", None)
    assert other["error"] is None


def test_the_model_tells_its_task(server: Running, detector: OnnxDetector) -> None:
    told = server.http.get("/model").json()
    assert (told["task"], told["classes"]) == ("detect", detector.classes)
    assert told["box_threshold"] == detector.box_threshold
    assert len(told["calibration_photos"]) == 3 * len(detector.classes)


def test_boxes_are_counted_and_watched(server: Running, detector: OnnxDetector) -> None:
    pictures = [photo(seed) for seed in range(4)]
    server.predict(*map(encoded, pictures))
    answers = detector.predict(pictures)
    flags = [box.is_unknown for answer in answers for box in answer.boxes]
    strange = sum(any(box.is_unknown for box in answer.boxes) for answer in answers)
    assert server.metric('knownot_photos_total{answer="unknown"}') == strange
    assert server.metric('knownot_photos_total{answer="known"}') == len(pictures) - strange
    assert server.metric("knownot_ood_score_count") == len(flags)
    last = flags[-WINDOW:]
    assert server.metric("knownot_unknown_rate") == pytest.approx(sum(last) / len(last))


def test_unknown_boxes_are_kept_as_photos(
    exported_detector: tuple[Any, Path], tmp_path: Path
) -> None:
    with running(exported_detector[1], inbox=Inbox(tmp_path)) as server:
        answers = server.predict(*(encoded(photo(seed)) for seed in range(4))).json()
    unknown = [box for one in answers["photos"] for box in one["boxes"] if box["is_unknown"]]
    kept = [kept_facts(path) for path in sorted(tmp_path.glob("*.jpg"))]
    assert len(kept) == len(unknown) > 0
    assert sorted(facts["box"] for facts in kept) == sorted(box["box"] for box in unknown)
    assert {facts["nearest_class"] for facts in kept} == {box["nearest_class"] for box in unknown}
