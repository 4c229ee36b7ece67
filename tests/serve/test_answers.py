"""What the service answers: the exported model's own words."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from knownot.runtime import OnnxClassifier
from tests.helpers import COLOURS, noisy
from tests.serve.conftest import BLUE, GREEN, LIMITS, RED, Running, encoded, running


def same(found: dict[str, Any], expected: Any) -> bool:
    """Whether an answer says what a prediction says; in other batches the last digits differ."""
    return (found["label"], found["is_unknown"], found["p_value"]) == (
        expected.label,
        expected.is_unknown,
        expected.p_value,
    ) and found["scores"] == pytest.approx(expected.scores, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("query", [{}, {"alpha": 0.3}, {"score": "knn"}])
def test_answers_are_those_of_the_runtime(
    server: Running, exported_file: Path, query: dict[str, Any]
) -> None:
    images = [encoded(noisy(c, i)) for i in range(2) for c in COLOURS.values()]
    answer = server.predict(*images, **query)
    assert answer.status_code == 200
    model = OnnxClassifier(exported_file)
    pictures = [noisy(c, i) for i in range(2) for c in COLOURS.values()]
    for found, expected in zip(
        answer.json()["photos"], model.predict(pictures, **query), strict=True
    ):
        assert same(found, expected)
    assert answer.json()["score"] == query.get("score", model.default_score)
    assert answer.json()["alpha"] == query.get("alpha", model.alpha)


@pytest.mark.photos
def test_photo_files_get_the_answers_of_the_runtime(
    server: Running, exported_file: Path, cats_dogs: Path, ood_photos: Path
) -> None:
    paths = sorted([*(cats_dogs / "test").rglob("*.jpg"), *ood_photos.rglob("*.jpg")])[::20]
    model = OnnxClassifier(exported_file)
    for path, expected in zip(paths, model.predict(paths), strict=True):
        (found,) = server.predict(path.read_bytes()).json()["photos"]
        assert same(found, expected)


def test_every_kind_of_file(server: Running, exported_file: Path, tmp_path: Path) -> None:
    colour = noisy((200, 40, 40), 3).resize((90, 60))
    grey = np.asarray(colour.convert("L"))
    frames = {"save_all": True, "append_images": [noisy((40, 200, 40), 3).resize((90, 60))]}
    files = {
        "cmyk.jpg": encoded(colour.convert("CMYK"), "JPEG"),
        "progressive.jpg": encoded(colour, "JPEG", progressive=True),
        "deep.png": encoded(Image.fromarray(grey.astype(np.uint16) * 257)),
        "grey.png": encoded(Image.fromarray(grey)),
        "clear.png": encoded(colour.convert("RGBA")),
        "moving.gif": encoded(colour, "GIF", **frames),
        "moving.webp": encoded(colour, "WEBP", **frames),
        "palette.bmp": encoded(colour.quantize(64), "BMP"),
        "pages.tif": encoded(colour, "TIFF", **frames),
    }
    model = OnnxClassifier(exported_file)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        (found,) = server.predict(data).json()["photos"]
        (expected,) = model.predict(tmp_path / name)
        assert same(found, expected), name


def test_one_answer_for_each_photo_in_order(server: Running) -> None:
    answer = server.predict(RED, b"no photo", BLUE, RED[:200]).json()["photos"]
    assert [photo["name"] for photo in answer] == ["0.png", "1.png", "2.png", "3.png"]
    assert [photo["label"] for photo in answer] == ["red", None, "unknown", None]
    assert [photo["error"] and photo["error"]["error"] for photo in answer] == [
        None,
        "unsupported_photo",
        None,
        "unreadable_photo",
    ]
    assert answer[1]["ood_score"] is None


def test_nearest_classes_are_sorted_probabilities(server: Running) -> None:
    (answer,) = server.predict(GREEN).json()["photos"]
    nearest = [item["probability"] for item in answer["nearest"]]
    assert nearest == sorted(nearest, reverse=True)
    assert sum(nearest) == pytest.approx(1)
    assert answer["nearest"][0]["label"] == "green"
    assert nearest[0] == pytest.approx(answer["confidence"], abs=1e-6)


def test_many_at_once_get_their_own_answers(exported_file: Path) -> None:
    images = [noisy(c, i) for i in range(16) for c in COLOURS.values()]
    expected = OnnxClassifier(exported_file).predict(images)
    found: dict[int, dict[str, Any]] = {}
    with running(exported_file, replace(LIMITS, queue=64)) as server:
        files = [encoded(image) for image in images]
        together = threading.Barrier(len(images))

        def ask(i: int) -> None:
            score = {"score": "knn"} if i % 5 == 0 else {}
            together.wait()
            (found[i],) = server.predict(files[i], **score).json()["photos"]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(images))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        batches = server.metric("knownot_batch_photos_count")
    assert len(found) == len(images)
    for i, answer in found.items():
        assert answer["label"] == expected[i].label or i % 5 == 0
        assert answer["scores"] == pytest.approx(expected[i].scores, abs=1e-5, rel=1e-5)
    assert batches < len(images) + 1  # and the one to warm up: some went together


def test_the_model_describes_itself(server: Running, exported: dict[bool, Any]) -> None:
    model = exported[False][0]
    told = server.http.get("/model").json()
    assert told["classes"] == model.classes
    assert told["threshold"] == model.threshold()
    assert told["calibration_photos"] == [len(model.calibration("combined"))]
    histogram = told["histograms"]["knn"]
    scores = model.calibration("knn").scores.numpy()
    assert histogram["counts"] == np.histogram(scores, histogram["edges"])[0].tolist()
    assert sum(histogram["counts"]) == len(scores)
    assert told["limits"]["photos"] == 4
    assert "png" in told["limits"]["formats"]


def test_metrics_count_photos_and_requests(exported_file: Path) -> None:
    with running(exported_file) as server:
        server.predict(RED, BLUE, b"no")
        server.predict(RED[:100])
        server.http.get("/no/such/route")
        counts = {
            'knownot_photos_total{answer="known"}': 1,
            'knownot_photos_total{answer="unknown"}': 1,
            'knownot_photos_total{answer="error"}': 2,
            'knownot_requests_total{route="/predict",status="200"}': 1,
            'knownot_requests_total{route="/predict",status="422"}': 1,
            'knownot_requests_total{route="other",status="404"}': 1,
            'knownot_request_seconds_count{route="/predict"}': 2,
            "knownot_ood_score_count": 2,
            "knownot_queue_photos": 0,
            "knownot_upload_bytes": 0,
            "knownot_unknown_rate": 0.5,
            "knownot_drift": 0,
        }
        assert {name: server.metric(name) for name in counts} == counts
